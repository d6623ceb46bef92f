"""Claim: loss and gradient on a GPU in float32 are those of the CPU in float64, up to rounding."""

import copy

import pytest
import torch

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.models.logprobs import token_divergence, token_logps
from tests.gpu.parts import _TINY, record


@pytest.mark.parametrize("order", [None, 0.0, -1.0, 1.0])
def test_the_cpu_is_the_judge(scale, order):
    """Sampled (no order) and exact, with two references: to 1e-4 of the largest gradient."""
    policy, *references = (scale.model(seed, **_TINY) for seed in range(3))
    rows = scale.rows(4, 5, 7)
    rows.input_ids.remainder_(_TINY["vocab_size"])
    rows.targets.remainder_(_TINY["vocab_size"])
    found = {}
    for device, kind in ((scale.device, torch.float32), ("cpu", torch.float64)):
        model, *frozen = (copy.deepcopy(one).to(device, kind) for one in (policy, *references))
        if order is None:
            loss = token_logps(model, rows.to(device)).logps.sum()
        else:
            terms = [Term(order, Mix(order, (0.4, 0.6)))]
            loss = token_divergence(model, frozen, terms, rows.to(device)).divergence.sum()
        loss.backward()
        gradient = torch.cat([p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None])
        found[kind] = float(loss.detach()), gradient
    (loss, gradient), (judge, true) = found[torch.float32], found[torch.float64]
    far = float((gradient - true).abs().max() / true.abs().max())
    record("parity with the CPU", gradient_off=far, loss_off=abs(loss - judge) / max(1.0, abs(judge)))
    assert far <= 1e-4 and loss == pytest.approx(judge, rel=1e-4, abs=1e-4) and float(true.abs().max()) > 0
