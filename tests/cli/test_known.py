"""What can be known before the first step is known before the run folder: one sentence, exit code 2, nothing left."""

import json
import shutil
from pathlib import Path

import pytest

from multiref_cli.files import read_json, read_lines


@pytest.fixture
def refused(multiref, capsys):
    """Run `train`, which must refuse; returns its sentence."""

    def run(*arguments):
        code, text = multiref("train", *arguments, "run.dir=out"), capsys.readouterr().err
        assert code == 2 and not Path("out").exists(), text
        assert "Traceback" not in text and "--resume" not in text
        return text

    return run


def changed(folder, place, **keys):
    """A copy of a model whose config says something else."""
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **keys}))
    return place


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["hardware.device=gpu"], "hardware.device is 'gpu'"),
        (["hardware.device=cuda:7"], "hardware.device is 'cuda:7'"),
        (["policy.dtype=int8"], "policy.dtype is 'int8'"),
        (["data.held_out=0"], "evaluation.split=held_out has no rows"),
        (["data.date=today"], "data.date is 'today'"),
        (["data.columns.promt=q"], "a name in data.columns is 'promt'"),
        (["data.options.ties=lose"], "data.options.ties=lose; allowed: keep, drop"),
        (["data.chat_template_kwargs.enable_thinking=true"], "is read by no chat template"),
        (["second={place}/judge"], "reference second={place}/judge is a classifier or reward model"),
        (["policy.path={place}/judge"], "policy.path={place}/judge is a classifier or reward model"),
        (["evaluation.scorer.path={place}/two"], "evaluation.scorer.path={place}/two has no score head"),
    ],
)
def test_offline(place, refused, offline, overrides, sentence):
    filled = [override.replace("{place}", str(place)) for override in overrides]
    assert sentence.replace("{place}", str(place)) in refused(*offline, *filled)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["rollout.group_size=1"], "rollout.group_size is 1"),
        (["rollout.max_new_tokens=127"], "over the 128 positions of the policy"),
        (["reward=gsm8k", "data.options.answer=text", "data.columns.answer=prompt"], "the gold answer is no number"),
        (["reward=custom", "reward.terms.mine.function._target_=math.floor"], "math.floor"),
    ],
)
def test_online(place, refused, online, overrides, sentence):
    assert sentence in refused(*online, *overrides)


def test_what_comes_out_when_models_are_opened_leaves_nothing_either(place, refused, offline, tmp_path):
    broken = changed(place / "two", tmp_path / "broken", intermediate_size=40)
    assert f"{broken} cannot be opened" in refused(*offline, f"second={broken}")


def test_heads_and_positions(place, refused, offline, tmp_path, multiref):
    narrow = changed(place / "one", tmp_path / "narrow", vocab_size=50)
    assert "has 50 output ids" in refused(*offline, f"second={narrow}")
    short = changed(place / "two", tmp_path / "short", max_position_embeddings=30)
    arguments = [*offline, f"second={short}", "evaluation=none", "steps=1", "run.dir=kept"]
    assert multiref("train", *arguments) == 0
    rows = read_json(Path("kept/manifest.json"))["data"]["rows"]
    assert "over the 30 positions of reference second" in rows and not rows.startswith("40 of 40")


def test_a_truncated_sampler_shows_no_distances(place, multiref, online):
    arguments = [*online, "evaluation.prompts=0", "steps=1"]
    assert multiref("train", *arguments, "rollout.top_p=0.5", "run.dir=cut") == 0
    assert multiref("train", *arguments, "run.dir=whole") == 0
    keys = [{key for row in read_lines(Path(f"{name}/metrics.jsonl")) for key in row} for name in ("cut", "whole")]
    assert not any(key.startswith("kl/") for key in keys[0]) and "kl/mixed" in keys[1]
    assert any("another sampler" in note for note in read_json(Path("cut/results.json"))["notes"])


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "nothing",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
@pytest.mark.parametrize("role", ["policy.path", "evaluation.scorer.path"])
def test_a_broken_template_is_named(place, refused, offline, tmp_path, role, template):
    bent = tmp_path / "bent"
    shutil.copytree(place / ("one" if role == "policy.path" else "judge"), bent)
    (bent / "chat_template.jinja").write_text(template)
    assert f"{role}={bent}: The chat template" in refused(*offline, f"{role}={bent}")
