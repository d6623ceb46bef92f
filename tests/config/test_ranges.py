"""Every number of the schema has a range beside its key, and nothing outside of it gets through."""

import dataclasses
import math
from typing import Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multiref_cli.config.algorithms import ALGORITHMS
from multiref_cli.config.check import check
from multiref_cli.config.compose import _mergeable, _parsed, compose, compose_saved
from multiref_cli.config.ranges import interval
from multiref_cli.errors import RequestError
from multiref_cli.theory import laboratory
from multiref_cli.theory.settings import Laboratory, Selection

BASES = {
    "dpo": ["policy.lora.rank=4", "regularizer=mrpo_ctro", "reward=toy_gold", "evaluation.scorer.path=x/y"],
    "grpo": ["algorithm=grpo", "regularizer=rkl_token", "reward=toy_verifier", "steps=3"],
    "distill": ["algorithm=distill", "regularizer=rkl_token", "steps=3"],
    "sft": ["algorithm=sft"],
    "reward_model": ["algorithm=reward_model"],
    "untrained": ["algorithm=untrained", "reward=toy_gold"],
}
HOSTILE = ["nan", "inf", "-inf", "0", "-1", "1e308", "[1,2,3]", "many", "1.5"]


def numbers(settings, prefix=""):
    """(dotted key, field, value) of every number and list of numbers in a dataclass of the schema."""
    hints = get_type_hints(type(settings))
    for one in dataclasses.fields(settings):
        value, key = getattr(settings, one.name), f"{prefix}{one.name}"
        inner = [a for a in get_args(hints[one.name]) if a is not type(None)]
        hint = inner[0] if get_origin(hints[one.name]) is Union else hints[one.name]
        if hint in (int, float, list[float], list[int]):
            yield key, one, hint
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{key}.")
        if isinstance(value, dict):
            for name, child in value.items():
                if dataclasses.is_dataclass(child):
                    yield from numbers(child, f"{key}.{name}.")


def allowed(one, hint, text):
    """Whether a text is a number that the field may hold."""
    try:
        value = float(text)
    except ValueError:
        return False
    return hint in (int, float) and one.metadata["range"].holds(value) and (hint is float or value == int(value))


def put(settings, key, value):
    """Settings with one number changed."""
    name, _, rest = key.partition(".")
    if isinstance(settings, dict):
        return {**settings, name: put(settings[name], rest, value)}
    return dataclasses.replace(settings, **{name: put(getattr(settings, name), rest, value) if rest else value})


def attempts(settings, check):
    """(key, text) -> what becomes of `key=text`, typed and checked as overrides are: a refusal's sentence, or None."""
    with _mergeable():
        config = OmegaConf.structured(settings)
    values = {text: _parsed([f"x={text}"])[0].value() for text in HOSTILE}
    OmegaConf.set_readonly(config, False)

    def attempt(key, text):
        before = OmegaConf.select(config, key)
        try:
            OmegaConf.update(config, key, values[text])
            value = OmegaConf.select(config, key)
            check(put(settings, key, list(value) if isinstance(value, ListConfig) else value))
        except OmegaConfBaseException as error:
            return f"{error.full_key}: {str(error).splitlines()[0]}"
        except RequestError as error:
            return str(error)
        finally:
            OmegaConf.update(config, key, before)

    return attempt


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_number_outside_its_range_gets_through(algorithm):
    experiment = compose(BASES[algorithm])
    found = list(numbers(experiment))
    assert len(found) > 30
    attempt = attempts(experiment, check)
    for key, one, hint in found:
        assert "range" in one.metadata, key
        if algorithm != "dpo" and not key.startswith("algorithm."):
            continue  # what all algorithms have is tried with one of them
        for text in HOSTILE:
            sentence = attempt(key, text)
            assert allowed(one, hint, text) or (sentence and key.rpartition(".")[2] in sentence), (key, text, sentence)


def test_no_number_of_the_laboratory_outside_its_range_gets_through():
    lab = Laboratory(study=Selection("small", ["violations"]))
    attempt = attempts(lab, laboratory.check)
    for key, one, hint in numbers(lab):
        assert "range" in one.metadata, key
        for text in HOSTILE:
            sentence = attempt(key, text)
            assert allowed(one, hint, text) or (sentence and key in sentence), (key, text, sentence)


@pytest.mark.parametrize("text", ["nan", "inf", "1e308", "-1", "[1,2]", "many", "1.5"])
def test_the_command_line_refuses_in_one_sentence(text):
    with pytest.raises(RequestError) as caught:
        compose([f"algorithm.batch_pairs={text}"])
    assert "batch_pairs" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["reward.terms.gold.function.correct", "rollout.options.x", "policy.new.hidden_size"])
@pytest.mark.parametrize("text", ["nan", "inf"])
def test_a_number_of_no_range_must_be_finite(key, text, tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(compose(["reward=toy_gold", "policy=toy_new"]).plain))
    with pytest.raises(RequestError, match=rf"^{key} is {text}; it must be a finite number\.$"):
        compose_saved(saved, [f"{key}={text}"])


@pytest.mark.parametrize("text", ["nan", "inf", "[nan,1]", "[0.5,inf]", "-1", "true", "many", "[true,false]"])
def test_alpha_lies_on_the_simplex(text):
    with pytest.raises(RequestError, match="alpha"):
        compose([f"alpha={text}"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optimizer.weight_decay=5", "optimizer.learning_rate=0.5"], "would turn every weight round"),
        (["data.prompt_template=Answer."], "without {prompt} in it every prompt would be that text"),
        (["hardware.device=abc"], "hardware.device is 'abc'; give cpu"),
        (["hardware.reference_device=auto"], "hardware.reference_device is 'auto'"),
        (["optimizer.betas=[0.9]"], "a list of 2 numbers"),
        (["optimizer.betas=[2,3]"], "optimizer.betas is 2; it must be from 0 up to 1"),
        (["steps=1.7"], "steps: Value '1.7' of type 'float' could not be converted to Integer"),
        (
            ["optimizer.max_gradient_norm=-1"],
            "optimizer.max_gradient_norm is -1; it must be from 0 to 1e+09 (0 is off)",
        ),
    ],
)
def test_a_refusal_says_what_is_allowed(overrides, sentence):
    with pytest.raises(RequestError) as caught:
        compose(overrides)
    assert sentence in str(caught.value)


def test_intervals_by_hand():
    half_open = interval("(0, 1]")
    assert [half_open.holds(x) for x in (0, 1e-9, 1, 1.1, math.nan)] == [False, True, True, False, False]
    assert str(interval("(0, 1)")) == "above 0 and below 1"
    assert str(interval("[0, 1)")) == "from 0 up to 1"
