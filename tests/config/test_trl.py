"""Configs of TRL as overrides: they compose, mean what they meant, and nothing that changes a result is passed over."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from multiref_cli.cli.convert import arguments
from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Estimator
from multiref_cli.config.trl import convert
from multiref_cli.config.trl_names import DEFAULTS, NOTHING, SHARED
from multiref_cli.errors import RequestError

MODEL = {"model_name_or_path": "a/model", "dataset_name": "some/pairs"}
DPO = {**MODEL, "max_length": 512}
GRPO = {**MODEL, "num_generations": 4, "reward_funcs": "my.module.reward", "max_steps": 7}


@pytest.fixture
def read(tmp_path):
    """A config as TRL's command line would read it from a file, converted."""

    def convert_content(content, trainer=None, processes=1, name="config.yaml"):
        path = tmp_path / name
        path.write_text(json.dumps(content) if name.endswith("json") else yaml.safe_dump(content))
        return convert(path, trainer, processes)

    return convert_content


@pytest.fixture
def composed(read):
    """The experiment that a config means."""
    return lambda content, more=(), **options: compose(arguments(read(content, **options), list(more)))


def test_a_dpo_config_means_the_same_run(composed, read):
    content = {
        **MODEL,
        "dataset_config": "default",
        "dataset_train_split": "train_prefs",
        "dataset_test_split": "test_prefs",
        "eval_strategy": "steps",
        "learning_rate": 5e-7,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 0.5,
        "adam_beta2": 0.95,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 2,
        "beta": 0.05,
        "loss_type": ["ipo"],
        "f_divergence_type": "forward_kl",
        "max_length": 2048,
        "max_prompt_length": 1024,
        "gradient_checkpointing": False,
        "bf16": True,
        "report_to": "wandb",
        "seed": 3,
        "output_dir": "out/dpo run",
        "use_peft": True,
        "lora_r": 8,
        "lora_target_modules": ["q_proj", "v_proj"],
        "model_revision": "abc",
    }
    one = composed(content, processes=2)
    assert (one.algorithm.name, one.algorithm.loss, one.algorithm.batch_pairs) == ("dpo", "ipo", 64)
    assert (one.beta, one.penalty.title, one.seed, one.epochs, one.steps) == (0.05, "fkl", 3, 2.0, None)
    rate = one.optimizer
    assert (rate.learning_rate, rate.schedule, rate.warmup, rate.weight_decay) == (5e-7, "cosine", 0.1, 0.01)
    assert (rate.max_gradient_norm, rate.betas) == (0.5, [0.9, 0.95])
    assert (one.data.path, one.data.split, one.data.held_out_split) == ("some/pairs", "train_prefs", "test_prefs")
    assert one.data.options == {"name": "default"}
    assert (one.data.max_prompt_tokens, one.data.max_completion_tokens) == (1024, 1024)
    assert (one.policy.path, one.policy.revision, one.policy.lora.rank) == ("a/model", "abc", 8)
    assert one.policy.lora.target_modules == ["q_proj", "v_proj"] and not one.policy.gradient_checkpointing
    assert (one.hardware.precision, one.hardware.processes, one.run.dir) == ("bf16_mixed", 2, "out/dpo run")
    assert one.tracking.mode == "online" and [r.path for r in one.references] == ["a/model"]
    found = read(content, processes=2)
    assert not found.missing and not found.wanted and any("max_length=2048" in text for text in found.differs)


def test_a_grpo_config_means_the_same_run(composed, read):
    content = {
        **MODEL,
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "reward_funcs": ["accuracy_reward", "my.module.reward"],
        "reward_weights": [1.0, 0.25],
        "max_completion_length": 128,
        "temperature": 0.9,
        "top_p": 0.95,
        "beta": 0.04,
        "loss_type": "dr_grpo",
        "scale_rewards": False,
        "epsilon": 0.1,
        "epsilon_high": 0.28,
        "num_iterations": 2,
        "importance_sampling_level": "sequence",
        "max_steps": 500,
        "logging_steps": 5,
    }
    one = composed(content, name="config.json")
    settings = one.algorithm
    assert (settings.name, settings.batch_prompts, settings.inner_iterations) == ("grpo", 4, 2)
    assert (settings.loss_reduction, settings.advantage_scale, settings.importance) == ("dr_grpo", "none", "sequence")
    assert (settings.clip_low, settings.clip_high) == (0.1, 0.28)
    rollout = one.rollout
    assert (rollout.group_size, rollout.max_new_tokens, rollout.temperature, rollout.top_p) == (8, 128, 0.9, 0.95)
    assert (one.beta, one.penalty.title, one.estimator) == (0.04, "rkl_token", Estimator.k3_ratio)
    assert one.steps == 500 and one.hardware.log_every == 5
    weights = [(term.function["_target_"], term.weight) for term in one.reward.terms.values()]
    assert weights == [("trl.rewards.accuracy_reward", 1.0), ("my.module.reward", 0.25)]
    several = composed(content, ["references=pair", "first=a/model", "second=b/other", "alpha=0.3", "beta=1"])
    assert [r.path for r in several.references] == ["a/model", "b/other"] and several.weights == [0.3, 0.7]
    assert several.beta == 1 and not read(content).missing


def test_what_a_file_does_not_say_is_as_in_trl(composed, read):
    one, other = composed(DPO), composed(GRPO)
    assert (one.optimizer.learning_rate, one.optimizer.warmup, one.seed, one.epochs) == (1e-6, 0, 42, 3)
    assert (one.algorithm.batch_pairs, one.beta, one.penalty.title) == (8, 0.1, "rkl") and one.tracking.mode != "online"
    assert other.beta == 0 and any("beta=0" in text for text in read(GRPO).differs)
    assert (other.algorithm.advantage_scale, other.rollout.max_new_tokens, other.algorithm.batch_prompts) == (
        "group",
        512,
        2,
    )


@pytest.mark.parametrize(
    "content",
    [
        {"f_divergence_type": "FDivergenceType.REVERSE_KL"},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
        {"loss_type": ["sigmoid", "sft"], "max_length": 100},
        {"loss_type": "hinge", "optim": "adamw_bnb_8bit", "lr_scheduler_type": "polynomial"},
        {"precompute_ref_log_probs": True, "num_train_epochs": 0.5, "dtype": "bfloat16"},
        {"max_length": None, "truncation_mode": "keep_end", "fp16": True},
        {"ld_alpha": 0.5, "max_steps": 10, "warmup_steps": 3, "report_to": ["none"]},
        {**GRPO, "beta": 0.1, "use_bias_correction_kl": False, "scale_rewards": "batch"},
        {**GRPO, "reward_funcs": None, "reward_model_name_or_path": "some/judge", "loss_type": "cispo"},
        {**GRPO, "reward_model_name_or_path": "some/judge", "reward_weights": [0.5, 2]},
        {**GRPO, "chat_template_kwargs": {"enable_thinking": False}, "steps_per_generation": 2},
        {"num_generations": 2, "model_name_or_path": "x/y"},
        {
            "datasets": [{"path": "p/one", "name": "c", "split": "s"}, {"path": "p/two"}],
            "label_smoothing": 0.1,
            "max_length": 9,
        },
        {"loss_type": "sigmoid", "dataset_name": "pairs.jsonl", "dataset_train_split": "train", "seed": 1},
    ],
)
def test_every_command_composes(read, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("{}\n")
    found = read({**MODEL, **content} if "datasets" not in content else content)
    words = [word.replace("steps=STEPS", "steps=5") for word in arguments(found, [])]
    experiment = compose(words)
    assert experiment.algorithm.name == found.trainer
    assert len(found.wanted) == sum(
        text in " ".join(words) + str(found.overrides.values()) for text in ("MODEL", "FILE", "REWARD", "STEPS")
    )


CHANGED = {"int": 3, "float": 0.37, "bool": True, "str": "else", "list": ["else"], "dict": {"key": 1}}
# They say nothing of a result, or are told by what stands beside them.
BESIDE = {
    "lora_task_type",
    "use_bias_correction_kl",
    "f_alpha_divergence_coef",
    "generation_batch_size",
    "lora_target_parameters",
}


def fields_of(trainer):
    trl = pytest.importorskip("trl", reason="parity needs the dev extra: pip install 'multiref[dev]'")
    kind = {"dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}[trainer]
    return [*dataclasses.fields(kind), *dataclasses.fields(trl.ScriptArguments), *dataclasses.fields(trl.ModelConfig)]


@pytest.mark.parametrize("trainer", ["dpo", "grpo"])
def test_no_setting_of_trl_is_passed_over(read, trainer):
    """Each of TRL's settings, changed alone: it changes the command, or is named, or is known to change no result."""
    base = {**(DPO if trainer == "dpo" else GRPO), "use_peft": True, "beta": 0.2}
    before, passed = read({**base, "max_steps": -1}, trainer), []
    for one in fields_of(trainer):
        if one.name in base or one.name in BESIDE or NOTHING.match(one.name):
            continue
        kind = next(
            (k for k in ("dict", "list", "bool", "int", "float", "str") if re.search(rf"\b{k}\b", str(one.type))), "str"
        )
        value = CHANGED[kind] if one.default is not True else False
        if one.name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            value = 4
        if one.name == "num_train_epochs" and trainer == "grpo":
            continue  # told in `wanted`, as a count of steps
        after = read({**base, "max_steps": -1, one.name: value}, trainer)
        named = any(one.name in text for text in [*after.missing, *after.differs])
        if after.overrides == before.overrides and not named:
            passed.append((one.name, value))
    assert passed == [], passed


@pytest.mark.parametrize("trainer", ["dpo", "grpo"])
def test_a_config_that_trl_wrote_out_names_what_is_set(read, trainer, tmp_path):
    """All of its settings as to_dict() has them: nothing that TRL takes anyway is told to have no counterpart."""
    trl = pytest.importorskip("trl", reason="parity needs the dev extra: pip install 'multiref[dev]'")
    kind = {"dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}[trainer]
    made = (
        kind(output_dir=str(tmp_path), use_cpu=True, bf16=False, repetition_penalty=1.1)
        if trainer == "grpo"
        else kind(output_dir=str(tmp_path), use_cpu=True, bf16=False, ld_alpha=0.5)
    )
    found = read(json.loads(json.dumps(made.to_dict(), default=str)), name="all.json")
    assert found.trainer == trainer
    assert found.missing == (["repetition_penalty=1.1"] if trainer == "grpo" else ["ld_alpha=0.5"])


def test_the_defaults_are_those_of_trl():
    for trainer, own in DEFAULTS.items():
        defaults = {}
        for one in fields_of(trainer):
            made = one.default_factory() if one.default_factory is not dataclasses.MISSING else None
            defaults[one.name] = made if one.default is dataclasses.MISSING else one.default
        wanted = {**SHARED, **own}
        assert {name: defaults[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("content", "trainer", "sentence"),
    [
        ({"learning_rate": 1e-6}, None, "does not tell whether it is of DPO or GRPO: give --trainer"),
        ({"packing": True}, None, "a key of SFT"),
        ({"max_length": 5, "learning_rate": 1e-6}, "ppo", "--trainer is 'ppo'; allowed: dpo, grpo"),
        ({**GRPO, "per_device_train_batch_size": 3}, None, "3 completions a step, no multiple of num_generations=4"),
        ({**DPO, "gradient_accumulation_steps": "many"}, None, "gradient_accumulation_steps is 'many'"),
        ({**GRPO, "beta": "abc"}, None, "beta is 'abc', which is no number."),
        ({**DPO, "beta": "abc"}, "dpo", "beta is 'abc', which is no number."),
        ({**DPO, "max_prompt_length": "long"}, "dpo", "max_prompt_length is 'long', which is no number."),
    ],
)
def test_refused_in_a_sentence(read, content, trainer, sentence):
    with pytest.raises(RequestError) as error:
        read(content, trainer)
    assert sentence in str(error.value)


def test_the_command(tmp_path, monkeypatch, multiref, capsys):
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text(yaml.safe_dump({**DPO, "rpo_alpha": 1.0, "output_dir": "a b"}))
    assert multiref("convert", "dpo.yaml", "alpha=0.3", "references=pair", "first=a/model", "second=b/c") == 0
    out = capsys.readouterr().out
    assert out.startswith("multiref train \\\n  algorithm=dpo \\\n") and "'run.dir=a b'" in out and "alpha=0.3" in out
    assert "Without a counterpart:\n  * rpo_alpha=1.0" in out and "Does not compose" not in out
    # What the file says is shown with its problem; what the command line adds has to be right.
    for wrong, sentence in (("regularizer=rkll", "regularizer has no option 'rkll'"), ("alpah=3", "no key 'alpah'")):
        assert multiref("convert", "dpo.yaml", wrong) == 2
        printed = capsys.readouterr()
        assert sentence in printed.err and len(printed.err.splitlines()) == 1 and printed.out == ""
    Path("far.yaml").write_text(yaml.safe_dump({**DPO, "rpo_alpha": 1.0, "learning_rate": -1.0}))
    for more in ([], ["seed=3"]):
        assert multiref("convert", "far.yaml", *more) == 0
        assert "Does not compose yet:\n  * optimizer.learning_rate is -1" in capsys.readouterr().out
    assert multiref("convert", "absent.yaml") == 2 and "absent.yaml cannot be read" in capsys.readouterr().err
    for content in ("a: [1", "", "- 1"):
        Path("broken.yaml").write_text(content)
        assert multiref("convert", "broken.yaml") == 2
        sentence = "multiref: broken.yaml is no config of TRL: it has no names with values in YAML or JSON.\n"
        assert capsys.readouterr().err == sentence
