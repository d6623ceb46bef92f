"""Claim: the dry run's memory of a training step is within 15 % of what the step takes."""

import pytest
import torch

from multiref_cli.config.schema import Optimizer
from multiref_cli.models.logprobs import token_logps
from multiref_cli.runs.memory import activation_bytes, head_bytes, shape_of
from multiref_cli.training.optimizer import Optimizers
from tests.gpu.parts import peak_bytes, record


@pytest.mark.parametrize("checkpointed", [False, True])
def test_said_and_measured(scale, checkpointed):
    """Parameters, gradients, both moments, and what a pass keeps."""
    rows = scale.rows(scale.choose(16, 4), scale.choose(256, 5), scale.choose(384, 7))

    def step():
        model = scale.model().train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizers = Optimizers(model, Optimizer(learning_rate=1e-6, schedule="constant", warmup=0), 2)
        for number in range(2):
            with scale.precision.autocast():
                loss = token_logps(model, rows).logps.sum()
            loss.backward()
            optimizers.step(number)

    measured = peak_bytes(step, scale.device)
    parameters = sum(p.numel() for p in scale.model().parameters())
    tokens, half = rows.padded_tokens, scale.real
    said = 16 * parameters + activation_bytes(shape_of(scale.config), tokens, half, checkpointed)
    said += head_bytes(scale.real, tokens, scale.config["vocab_size"])
    if half:  # autocast keeps a bfloat16 copy of the weights for the length of a step
        said += 2 * parameters
    name = "memory with gradient checkpointing" if checkpointed else "memory"
    record(name, said_over_measured=said / measured, gibibytes=measured / 2**30)
    assert said > 0 and measured > 0 and torch.isfinite(torch.tensor(said / measured))
    if scale.real:
        assert 0.85 <= said / measured <= 1.15
