"""Overrides in, typed config or one sentence out."""

import logging
from pathlib import Path

import pytest
import yaml

from multiref_cli.config.check import check
from multiref_cli.config.compose import compose, compose_plain, compose_saved, expand_axes
from multiref_cli.config.folders import options
from multiref_cli.config.objective import objective
from multiref_cli.config.schema import Hardware, Level
from multiref_cli.config.weights import weights_of
from multiref_cli.errors import RequestError

UNNORMALIZED = ["regularizer.normalized=false", "regularizer.estimator=k3_ratio"]


def refused(*overrides: str) -> str:
    with pytest.raises(RequestError) as caught:
        check(compose(list(overrides)))
    return str(caught.value)


def test_default_is_the_small_offline_job():
    config = compose([])
    check(config)
    assert config.algorithm.name == "dpo"
    assert config.regularizer.level is Level.sequence
    assert [r.name for r in config.references] == ["instruct", "instruct_large"]


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_passes_the_checks(name):
    check(compose([f"experiment={name}"]))


@pytest.mark.slow
@pytest.mark.parametrize("group", ["algorithm", "regularizer", "references", "policy", "data", "reward", "rollout"])
def test_every_option_of_a_group_is_typed(group):
    needed = {
        "pair": ["first=a/b", "second=c/d"],
        "folder": ["policy.path=a/b"],
        "lora": ["policy.path=a/b"],
        "merge": ["policy.models=[a/b,c/d]"],
        "jsonl": ["data.path=a/b"],
        "custom": ["reward.terms.mine.function._target_=mine.function"],
        "grpo": ["steps=1", "reward=toy_verifier"],
        "grpo_paper": ["steps=1", "reward=toy_verifier"],
        "distill": ["steps=1"],
        "fkl_reference_states": ["algorithm=grpo", "steps=1", "reward=toy_verifier"],
    }
    for name in options(group):
        if (group, name) not in (("regularizer", "none"), ("references", "none")):  # for algorithms without either
            compose([f"{group}={name}", *needed.get(name, [])])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=offline_toy", "regularizer=multi_dpo", "+regularizer.arwc=paper"], "multi_loss mixes nothing"),
        (["experiment=online_toy", "regularizer=mrpo_token", *UNNORMALIZED], "takes the mix for a distribution"),
    ],
)
def test_settings_whose_numbers_would_be_wrong_are_refused(overrides, words):
    with pytest.raises(RequestError, match=words):
        compose(overrides)


def test_objectives_that_a_preference_loss_does_not_have_are_not_named():
    for settings, words in (("loss=ipo", "(2p − 1) / 2β"), ("label_smoothing=0.3", "(1 − 2ε) p + ε")):
        said = objective(compose(["experiment=offline_toy", f"algorithm.{settings}"]))
        assert words in said and "Theorem" not in said
    assert "Theorem 5.1" in objective(compose(["experiment=offline_toy"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("regularizer=rkll", ["'rkll'", "did you mean 'rkl'"]),
        ("alhpa=0.3", ["'alhpa'", "did you mean 'alpha'"]),
        ("+typo=1", ["no key 'typo'"]),
        ("optimizer.lr=1", ["optimizer.lr", "optimizer.learning_rate"]),
        ("+data.held_oot=0.1", ["did you mean 'data.held_out'"]),
        ("steps=abc", ["steps", "'abc'"]),
        ("alpha=0.3,0.5", ["multiref sweep"]),
        ("regularizer.level=tokn", ["sequence, token"]),
        ("references=pair", ["first", "first=VALUE"]),
        ("nonsense", ["key=value"]),
    ],
)
def test_a_wrong_override_is_one_sentence_with_the_nearest_name(override, words):
    message = refused(override)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["alpha=1.5"], "between 0 and 1"),
        (["alpha=[0.5,0.6]"], "sum to 1"),
        (["alpha=[0.5,0.2,0.3]"], "3 weights for 2 references"),
        (["references=toy_trio", "alpha=0.5"], "two references, not 3"),
        (["beta=0"], "beta above 0"),
        (["beta=-1"], "beta is -1"),
        (["algorithm.label_smoothing=0.7"], "label_smoothing"),
        (["algorithm.loss=hinge"], "allowed: sigmoid, ipo"),
        (["optimizer.learning_rate=0"], "learning_rate"),
        (["regularizer.estimator=k3"], "token by token"),
        (["regularizer=rkl_token", "regularizer.arwc=paper"], "level=sequence"),
        (["policy=folder", "policy.path=./missing"], "does not exist"),
        (["data.path=./missing.jsonl"], "does not exist"),
        (["algorithm=grpo", "steps=null"], "steps=NUMBER"),
        (["epochs=0"], "epochs"),
    ],
)
def test_contradictions_are_refused(overrides, words):
    assert words in refused(*overrides)


def test_a_key_that_the_chosen_file_does_not_list_can_be_set():
    config = compose(["policy.gradient_checkpointing=true", "regularizer.ctro.epsilon=0.2", "policy.lora.rank=4"])
    assert config.policy.gradient_checkpointing is True
    assert (config.regularizer.ctro.epsilon, config.policy.lora.rank) == (0.2, 4)


def test_composing_leaves_hydra_and_logging_as_they_were():
    from hydra.core.global_hydra import GlobalHydra

    handlers = list(logging.root.handlers)
    compose([])
    assert not GlobalHydra.instance().is_initialized()
    assert logging.root.handlers == handlers


def test_axes_expand():
    axes, fixed = expand_axes(
        ["alpha=0.1,0.5", "seed=range(0,3)", "regularizer=choice(rkl,fkl)", "beta=1", "'x=[0.2,0.8],[0.5,0.5]'"[1:-1]]
    )
    assert axes["alpha"] == ["0.1", "0.5"]
    assert axes["seed"] == ["0", "1", "2"]
    assert axes["regularizer"] == ["rkl", "fkl"]
    assert axes["x"] == ["[0.2,0.8]", "[0.5,0.5]"]
    assert fixed == ["beta=1"]


def test_the_shipped_world_is_no_part_of_a_hash_and_every_other_is():
    base = compose(["experiment=offline_toy"])
    assert base.world == 0 and base.hash == compose(["experiment=offline_toy", "world=0"]).hash
    assert "world" not in base.content() and base.plain["world"] == 0
    other = compose(["experiment=offline_toy", "world=2"])
    assert other.condition_hash != base.condition_hash and other.condition == base.condition
    assert other.content("world") == base.content()
    assert "w2-s0" in other.run_name and "-w" not in base.run_name
    assert refused("experiment=offline_toy", "world=-1") == "world is -1; it must be 0 or more."
    models = ["policy=folder", "policy.path=a/b", "references=pair", "first=a/b", "second=c/d"]
    assert "nothing here is of one" in refused(*models, "data=jsonl", "data.path=e/f", "world=1")


def test_the_hash_knows_what_a_result_depends_on():
    base = compose([])
    assert base.hash == compose(["run.name=other", "tracking=off", "hardware.threads=2"]).hash
    assert base.hash == compose(["alpha=[0.5,0.5]"]).hash
    assert base.hash != compose(["beta=0.2"]).hash
    unread = ["regularizer.estimator=reward", "regularizer.to_go=false", "regularizer.ratio_clip=3"]  # offline
    assert base.algorithm.name == "dpo" and base.hash == compose(unread).hash
    assert base.hash != compose(["regularizer.score_clip=3"]).hash
    one, two = compose(["seed=1"]), compose(["seed=2"])
    assert one.hash != two.hash
    assert one.condition_hash == two.condition_hash


def test_a_weight_of_zero_drops_the_reference():
    experiment = compose(["alpha=1"])
    assert [r.name for r in experiment.active_references] == ["instruct"]
    assert experiment.active_weights == [1.0]


def test_weights_by_hand():
    """0.3 of two references is [0.3, 0.7]; one reference needs no number."""
    assert weights_of(0.3, 2) == [0.3, 0.7]
    assert weights_of(None, 1) == [1.0]
    assert weights_of([0.2, 0.3, 0.5], 3) == [0.2, 0.3, 0.5]


def test_a_saved_config_comes_back_with_changes(tmp_path):
    config = compose(["seed=3"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.plain))
    assert compose_saved(path) == config
    changed = compose_saved(path, ["evaluation.prompts=7", "evaluation=none"])
    assert changed.evaluation.prompts == 0
    assert changed.seed == 3


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rollout.temperature=0"], "rollout.temperature is 0: greedy"),
        (["rollout.top_p=0"], "rollout.top_p is 0; it must be above 0"),
        (["rollout.min_p=1"], "rollout.min_p is 1"),
        (["evaluation.temperature=-1"], "evaluation.temperature is -1; it must be from 0 to 100"),
        (["rollout=vllm"], "pip install vllm, or"),
    ],
)
def test_what_would_fail_on_the_way_is_refused_before(overrides, sentence, monkeypatch):
    monkeypatch.setattr("multiref_cli.config.check.find_spec", lambda name: None)
    assert sentence in refused("experiment=online_toy", *overrides)


def test_references_go_only_where_they_can_be_mixed(monkeypatch):
    """Token-level mixing cannot swap references in and out of a GPU, `exact` cannot span devices."""
    monkeypatch.setattr(Hardware, "device_name", "cuda")
    token = ["experiment=online_toy", "regularizer=rkl_token"]
    assert "level=sequence" in refused(*token, "hardware.reference_device=cpu")
    assert "estimator=k2" in refused(*token, "hardware.reference_device=cuda:1")
    assert "estimator=reward" in refused("experiment=online_toy", "regularizer=rkl", "hardware.reference_device=cpu")
    in_reward = ["regularizer=rkl", "regularizer.estimator=reward"]
    check(compose(["experiment=online_toy", *in_reward, "hardware.reference_device=cpu"]))


@pytest.mark.parametrize("content", ['{"prompt": 1}\n{"prompt": 2}\n', "", "a: [1", "- 1"])
def test_a_file_that_is_no_config_is_not_called_damaged(content, multiref, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "config.yaml"):
        Path(name).write_text(content)
        assert multiref("train", "--config", name) == 2
        sentence = f"multiref: {name} is no config: give a run's config.yaml, or the folder of a run.\n"
        assert capsys.readouterr().err == sentence


def test_a_sweep_file_that_is_no_yaml_is_refused(multiref, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = Path("conf/sweep/mine.yaml")
    file.parent.mkdir(parents=True)
    for content, sentence in (("a: [1", "conf/sweep/mine.yaml is not valid YAML"), ("- 1", "mine.yaml has no keys")):
        file.write_text(content)
        assert multiref("sweep", "sweep=mine") == 2 and sentence in capsys.readouterr().err


def test_the_defaults_fit_the_embedded_policy():
    for overrides in (
        [],
        ["alpha=0.3", "evaluation.prompts=4"],
        ["policy=toy_new", "regularizer=none", "algorithm=sft"],
    ):
        assert compose(overrides).evaluation.max_new_tokens == 40
    # What somebody says, what cannot matter, and any other policy stay as they are.
    for overrides, tokens in (
        (["evaluation.max_new_tokens=30"], 30),
        (["evaluation.prompts=0"], 256),
        (["evaluation=none"], 256),
        (["evaluation=toy_online"], 26),
        (["policy=folder", "policy.path=x"], 256),
    ):
        assert compose(overrides).evaluation.max_new_tokens == tokens
    assert compose_plain([]).evaluation.max_new_tokens == 256
