"""A scorer with a bar is judged before the first step: by what its training recorded, else on the held-out pairs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiref_cli.files import read_json

BAR = "evaluation.scorer.minimum_accuracy"


@pytest.fixture
def judge(place, tmp_path):
    """A copy of the reward model."""
    shutil.copytree(place / "judge", tmp_path / "scorer")
    return tmp_path / "scorer"


def expected(offline):
    """The share of held-out pairs that the scorer of some overrides ranks right, pair by pair."""
    from multiref_cli.config.compose import compose
    from multiref_cli.data.preferences import load_preferences
    from multiref_cli.models.load import load_reward_model, load_tokenizer
    from multiref_cli.rewards.model import RewardModelScorer
    from multiref_cli.rewards.sample import Sample

    asked = compose(offline)
    spec = asked.evaluation.scorer
    scorer = RewardModelScorer(load_reward_model(spec), load_tokenizer(spec))
    pairs = load_preferences(asked.data, load_tokenizer(asked.policy)).held_out
    right = [
        scorer.score([Sample(p.messages, p.chosen_text)]) > scorer.score([Sample(p.messages, p.rejected_text)])
        for p in pairs
    ]
    return sum(right) / len(right)


def test_a_weak_scorer_is_refused_before_the_run(place, multiref, offline, judge, capsys, monkeypatch):
    arguments = [*offline, f"evaluation.scorer.path={judge}", "run.dir=out"]
    accuracy = expected(arguments)
    assert 0 < accuracy < 1
    monkeypatch.setattr("multiref_cli.training.loop.Loop.fit", lambda *_: pytest.fail("it trains"))
    assert multiref("train", *arguments, f"{BAR}=1") == 2 and not Path("out").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert f"an accuracy of {accuracy:.3f} on the held-out pairs, below {BAR}=1" in said and str(judge) in said


def test_a_scorer_above_its_bar_is_opened_freed_and_named_with_its_accuracy(place, multiref, offline, judge, figures):
    arguments = [*offline, f"evaluation.scorer.path={judge}", "steps=2"]
    accuracy = expected(arguments)
    assert multiref("train", *arguments, "run.dir=plain") == 0
    assert multiref("train", *arguments, f"{BAR}={accuracy}", "run.dir=barred") == 0
    plain, barred = (read_json(Path(f"{name}/results.json"))["notes"] for name in ("plain", "barred"))
    assert f"reward model scorer: held-out accuracy {accuracy:.3f}" in barred
    assert "reward model scorer: held-out accuracy not recorded with it" in plain
    assert figures(Path("plain")) == figures(Path("barred"))  # judging draws nothing that training draws


@pytest.mark.parametrize("where", ["made_by.json", "the run that trained it"])
def test_what_its_training_recorded_is_known_in_a_dry_run(place, multiref, offline, judge, capsys, where):
    record = json.dumps({"metrics": {"held_out_accuracy": {"mean": 0.71}}})
    if where == "made_by.json":
        (judge / where).write_text(record)
    else:
        Path("trained").mkdir()
        judge = judge.rename("trained/policy")
        Path("trained/results.json").write_text(record)
    arguments = [*offline, f"evaluation.scorer.path={judge}", "--dry-run"]
    assert multiref("train", *arguments, f"{BAR}=0.71") == 0
    assert multiref("train", *arguments, f"{BAR}=0.72") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "an accuracy of 0.710 on the held-out pairs of its own training, below" in said


def test_a_bar_that_nothing_can_be_held_to_is_refused(place, multiref, online, offline, judge, capsys):
    scorer = [f"evaluation.scorer.path={judge}", f"{BAR}=0.6", "run.dir=out"]
    for arguments in ([*online, *scorer], [*offline, *scorer, "data.held_out=0", "evaluation.split=train"]):
        assert multiref("train", *arguments) == 2 and not Path("out").exists()
        assert "cannot be judged" in " ".join(capsys.readouterr().err.split())
    (judge / "made_by.json").write_text("[")
    assert multiref("train", *offline, *scorer) == 2 and "made_by.json is damaged" in capsys.readouterr().err


def test_a_scorer_that_does_not_open_is_refused_before_training(place, multiref, offline, judge, capsys, monkeypatch):
    config = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    monkeypatch.setattr("multiref_cli.training.loop.Loop.fit", lambda *_: pytest.fail("it trains"))
    assert multiref("train", *offline, f"evaluation.scorer.path={judge}", "run.dir=out") == 2
    assert f"{judge} cannot be opened" in " ".join(capsys.readouterr().err.split()) and not Path("out").exists()


def test_a_scorer_that_was_opened_is_opened_again_where_its_weights_have_changed(
    place, multiref, offline, judge, capsys
):
    arguments = [*offline, f"evaluation.scorer.path={judge}", "steps=1"]
    assert multiref("train", *arguments, "run.dir=first") == 0
    weights = load_file(judge / "model.safetensors")
    name = next(name for name in sorted(weights) if "embed" in name)
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, judge / "model.safetensors")
    capsys.readouterr()
    assert multiref("train", *arguments, "run.dir=out") == 2
    assert "not finite" in capsys.readouterr().err and not Path("out").exists()
