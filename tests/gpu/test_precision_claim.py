"""Claim: bf16_mixed and bf16_master train what float32 trains, and plain bf16 does not."""

import torch

from multiref_cli.config.schema import PRECISIONS, Optimizer
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.precision import Precision
from multiref_cli.training.optimizer import Optimizers
from tests.gpu.parts import record


def update(scale, name):
    """(share of weights that change, float32 change of all of them) of two steps at learning rate 1e-6."""
    precision = Precision(name, scale.device)
    kind = torch.bfloat16 if precision.parameters(False) == "bfloat16" else torch.float32
    # The start is the same: bfloat16 numbers in every precision.
    model = scale.model(dtype=torch.bfloat16).to(kind).train()
    before = [p.detach().float().cpu().clone() for p in model.parameters()]
    settings = Optimizer(learning_rate=1e-6, schedule="constant", warmup=0)
    optimizers = Optimizers(model, settings, 2, precision.kept)
    rows = scale.rows(scale.choose(16, 4), scale.choose(64, 5), scale.choose(128, 6))
    for step in range(2):
        with precision.autocast():
            loss = -token_logps(model, rows).logps.sum() / rows.mask.sum()
        loss.backward()
        optimizers.step(step)
    change = torch.cat([(p.cpu() - old).flatten() for p, old in zip(optimizers.weights(), before)])
    return float((change != 0).float().mean()), change


def test_precisions_beside_float32(scale):
    share, plain = update(scale, "float32")
    found = {"float32_share": share}
    for name in list(PRECISIONS)[1:]:
        share, change = update(scale, name)
        cosine = torch.dot(change, plain) / (change.norm() * plain.norm()).clamp(min=1e-30)
        found |= {f"{name}_share": share, f"{name}_cosine": float(cosine)}
        found[f"{name}_norm"] = float(change.norm() / plain.norm())
    record("precision", **found)
    assert found["float32_share"] > 0.5 and found["bf16_share"] < 0.5 * found["float32_share"]
    if scale.real:
        assert found["bf16_mixed_cosine"] > 0.98 and found["bf16_master_cosine"] > 0.98
        assert found["bf16_kahan_cosine"] > 0.98
        assert 0.95 < found["bf16_mixed_norm"] < 1.05 and found["bf16_cosine"] < 0.3
