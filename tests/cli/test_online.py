"""The online job end to end on the tiny world."""

from pathlib import Path

import pytest

from multiref_cli.files import read_json, read_lines
from multiref_cli.references import local


@pytest.mark.parametrize("regularizer", ["rkl_token", "fkl_token", "mrpo", "rkl", "rkl_paper", "fkl_reference_states"])
def test_every_kind_of_penalty_trains(place, multiref, online, regularizer, figures, capsys):
    assert multiref("train", *online, f"regularizer={regularizer}", "run.dir=out") == 0, capsys.readouterr().err
    rows = figures(Path("out"))
    wanted = {"reward", "loss", "entropy", "clip_fraction", "zero_spread_fraction", "length", "truncated_fraction"}
    assert wanted <= set(rows[0])
    results = read_json(Path("out/results.json"))
    assert {"toy_verifier", "kl/first", "kl/second", "pass@2/toy_verifier"} <= set(results["metrics"])
    one, both = (results["metrics"][name]["mean"] for name in ("avg@2/toy_verifier", "pass@2/toy_verifier"))
    assert one == results["metrics"]["toy_verifier"]["mean"] <= both
    k3_is_named = any("k3" in note for note in results["notes"])
    assert k3_is_named == (regularizer == "rkl_paper")
    assert read_lines(Path("out/samples.jsonl"))[0]["step"] == 1


def test_beta_0_loads_no_reference_and_says_so(place, multiref, online, tmp_path, capsys):
    arguments = [*online, "beta=0", f"second={place}/missing_weights", "evaluation.prompts=0", "run.dir=out"]
    broken = place / "missing_weights"
    broken.mkdir(exist_ok=True)
    for path in (place / "two").iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    assert multiref("train", *arguments) == 0, capsys.readouterr().err
    assert "beta" in " ".join(read_json(Path("out/results.json"))["notes"])


def test_kill_9_inside_a_window_and_resume_is_bitwise(place, multiref, online, killed_train, figures):
    arguments = [
        *online,
        "steps=12",
        "algorithm.inner_iterations=3",
        "hardware.checkpoint_every=1",
        "hardware.keep_checkpoints=1",
    ]
    assert multiref("train", *arguments, "run.dir=whole") == 0
    killed_train([*arguments, "run.dir=cut"], Path("cut"), 5)
    assert multiref("train", "--resume", "cut") == 0
    assert figures(Path("cut")) == figures(Path("whole"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("reward.terms.correct.function._target_=nowhere.reward", "importing nowhere failed"),
        ("reward.terms.correct.function._target_=multiref_cli.world.reward.toy_corect", "did you mean toy_correct"),
        ("+rollout.options.cuda_graph=true", "it takes lean_decoder, cuda_graphs"),
        ("rollout.top_p=1.5", "rollout.top_p is 1.5"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_wrong_request_writes_nothing(place, multiref, online, command, override, sentence, capsys):
    assert multiref(command, *online, override, "run.dir=out") == 2
    assert sentence in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("estimator", ["exact", "reward"])
def test_an_evaluation_measures_the_references_that_training_has_open(place, multiref, online, monkeypatch, estimator):
    """Each reference is opened once, and what is measured is what `eval` measures with models of its own."""
    opened, load = [], local.load_causal_lm
    monkeypatch.setattr(local, "load_causal_lm", lambda spec, *rest: opened.append(spec.name) or load(spec, *rest))
    assert multiref("train", *online, f"regularizer.estimator={estimator}", "run.dir=out") == 0
    assert sorted(opened) == ["first", "second"]
    before = read_json(Path("out/results.json"))["metrics"]
    assert multiref("eval", "out") == 0
    assert sorted(opened) == ["first", "first", "second", "second"]
    assert read_json(Path("out/results.json"))["metrics"] == before
