"""The online job on a GPU: the CPU's objective up to rounding in float32, and end to end in bfloat16."""

from pathlib import Path

import pytest
import torch

from multiref_cli.files import read_json, read_lines

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]
GPU = ["hardware=auto", "hardware.device=cuda"]


@pytest.mark.parametrize("regularizer", ["rkl", "rkl_token", "mrpo_token", "fkl_token", "rkl_paper"])
def test_the_first_step_is_that_of_the_cpu(place, multiref, online, regularizer, capsys):
    """Same uniforms and float32 weights: the same responses, so loss, penalty and distances agree to rounding."""
    common = [*online, f"regularizer={regularizer}", "steps=1", "evaluation.prompts=0"]
    assert multiref("train", *common, *GPU, "hardware.dtype=float32", "run.dir=gpu") == 0, capsys.readouterr().err
    assert multiref("train", *common, "run.dir=cpu") == 0
    (gpu,), (cpu,) = (read_lines(Path(name) / "metrics.jsonl") for name in ("gpu", "cpu"))
    for name in ("reward", "loss", "penalty", "kl/first", "kl/second", "kl/mixed", "entropy", "gradient_norm"):
        assert gpu[name] == pytest.approx(cpu[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    "overrides",
    [
        ["regularizer=rkl_token"],
        ["regularizer=fkl_reference_states"],
        ["regularizer=rkl", "regularizer.estimator=reward", "hardware.reference_device=cpu"],
        ["regularizer=rkl", "algorithm.inner_iterations=2"],
    ],
)
def test_bfloat16_trains_and_measures(place, multiref, online, overrides, capsys):
    """Parameters in bfloat16, every reduction in float32: finite figures, and an evaluation with its distances."""
    assert multiref("train", *online, *GPU, *overrides, "run.dir=out") == 0, capsys.readouterr().err
    rows = read_lines(Path("out/metrics.jsonl"))
    assert len(rows) == 4 and all(row["loss"] is not None and row["gradient_norm"] is not None for row in rows)
    assert {"toy_verifier", "kl/first", "kl/second", "kl/mixed"} <= set(read_json(Path("out/results.json"))["metrics"])
