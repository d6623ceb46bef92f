"""Passes laid out from lengths alone are those that the run makes."""

import pytest

from multiref_cli.algorithms.base import module_of
from multiref_cli.config.compose import compose
from multiref_cli.runs.cards import CARDS, here
from multiref_cli.runs.job import prepare
from multiref_cli.runs.memory import LIBRARIES
from multiref_cli.runs.passes import layout
from multiref_cli.runs.price import price, rows_of, sizes_of
from multiref_cli.tracking.progress import Silent


@pytest.fixture
def made(monkeypatch, tmp_path):
    """A job of some overrides, its objective, and the layout of its three steps."""
    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path))

    def make(overrides):
        config = compose(overrides)
        job = prepare(config, config, Silent())
        hidden = sizes_of(config, job).shape.hidden
        return job, module_of(config).assemble(job, Silent()).objective, layout(job, 3, hidden)

    return make


@pytest.mark.parametrize(("micro", "share"), [(64, "true"), (200, "false"), (100_000, "null")])
def test_offline_passes_are_those_of_the_run(made, offline, micro, share):
    job, objective, found = made([*offline, f"algorithm.micro_tokens={micro}", f"algorithm.share_prompt={share}"])
    passes = [micro.packed for step in range(3) for micro in objective.batch(step).micros]
    assert found.passed == max(one.padded_tokens for one in passes)
    masked = [one.input_ids.shape[1] for one in passes if one.attention_mask is not None]
    assert found.width == max(masked, default=0) and (share != "true" or found.width > 0)
    assert rows_of(job).passed >= found.passed and rows_of(job).row == pytest.approx(found.mean, rel=0.2)


def test_online_passes_are_as_long_as_responses_may_be(made, online):
    """By hand: three prompts with four responses of six tokens, the last token of each never an input."""
    job, objective, found = made([*online, "algorithm.micro_tokens=100000"])
    longest = max(len(row.ids) for row in job.data.train)
    assert max(one.packed.padded_tokens for one in objective.batch(0).micros) <= found.passed
    assert found.passed <= 3 * max(longest + 4 * 5, 4 * (longest + 5))


def test_what_a_cpu_holds_besides(made, offline):
    """Python and libraries share a CPU's memory, not a GPU's; glibc's blocks are counted on a CPU alone."""
    job, _, _ = made(offline)
    sizes, rows = sizes_of(job.experiment, job), rows_of(job)
    on_cpu, on_gpu = (price(job.experiment, sizes, rows, card) for card in (here("cpu"), CARDS[0]))
    assert (on_cpu.process, on_gpu.process) == (LIBRARIES, 0.0)
    assert on_cpu.total == LIBRARIES + max(on_cpu.memory + on_cpu.activations, on_cpu.measuring)
    assert on_cpu.activations > 1.2 * (on_gpu.activations - 4 * 2**28)
