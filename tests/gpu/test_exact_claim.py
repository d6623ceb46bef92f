"""Claim: the exact divergence needs at most 1.2 times the memory of the sampled path, with two references or one."""

import pytest
import torch

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.models.logprobs import token_divergence, token_logps
from tests.gpu.parts import peak_bytes, record, seconds

MIXES = {1: (1.0,), 2: (0.4, 0.6)}


@pytest.mark.parametrize("order", [0.0, 1.0])
def test_exact_over_sampled(scale, order):
    model, references = scale.model().train(), [scale.model(seed, torch.bfloat16).eval() for seed in (1, 2)]
    if not scale.real:
        references = [one.float() for one in references]
    rows = scale.rows(scale.choose(16, 4), scale.choose(128, 5), scale.choose(512, 7))

    def sampled():
        model.zero_grad()
        with scale.precision.autocast():
            token_logps(model, rows, entropy=True).logps.sum().backward()

    def exact(count):
        model.zero_grad()
        with scale.precision.autocast():
            found = token_divergence(
                model, references[:count], [Term(order, Mix(order, MIXES[count]))], rows, entropy=True
            )
            (found.logps.sum() + found.divergence.sum()).backward()

    runs = {"sampled": sampled, "one": lambda: exact(1), "two": lambda: exact(2)}
    times = {name: seconds(run, scale.device, scale.choose(3, 1)) for name, run in runs.items()}
    memory = {name: peak_bytes(run, scale.device) for name, run in runs.items()}
    record(
        f"exact over sampled, order {order:g}",
        memory_one=memory["one"] / memory["sampled"],
        memory_two=memory["two"] / memory["sampled"],
        memory_two_over_one=memory["two"] / memory["one"],
        time_one=times["one"] / times["sampled"],
        time_two=times["two"] / times["sampled"],
    )
    assert all(value > 0 for value in memory.values())
    if scale.real:
        assert memory["two"] <= 1.2 * memory["sampled"] and memory["two"] <= 1.1 * memory["one"]
