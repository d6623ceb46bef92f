"""Rules that span several keys: whatever can be refused before a model is loaded is refused here, in one sentence."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from multiref_cli.config.schema import Estimator, Level, States
from multiref_cli.errors import RequestError

REGULARIZED = ("dpo", "grpo")
_TOKEN_ESTIMATORS = (Estimator.exact, Estimator.k2, Estimator.k3, Estimator.k3_ratio)
VLLM_MISSING = (
    "rollout=vllm needs vLLM, which is not installed: pip install 'multiref[vllm]', or use rollout=transformers"
)
# Name -> whether a value is good, and what is allowed.
_SAMPLING: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value >= 0, "0 or more (0 is greedy)"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1 (1 is off)"),
    "top_k": (lambda value: value >= 0, "0 or more (0 is off)"),
    "min_p": (lambda value: 0 <= value < 1, "from 0 up to 1 (0 is off)"),
}


def check(config: DictConfig) -> None:
    """Refuse contradictory values.

    Raises:
        RequestError: naming the key, what was given and what is allowed.
    """
    _check_numbers(config)
    _check_paths(config)
    if config.algorithm.name in REGULARIZED:
        _check_references(config)
        _check_regularizer(config)
    if config.algorithm.name == "grpo":
        _check_online(config)
    if config.steps is None:
        _require(config.epochs is not None and config.epochs > 0, "give steps=NUMBER or epochs=NUMBER above 0")


def simplex(alpha: Any, count: int) -> list[float]:
    """Weights of `count` references from a number (the first of two) or a list.

    Raises:
        RequestError: not on the simplex, or not as many as references.
    """
    if alpha is None and count == 1:
        return [1.0]
    if isinstance(alpha, (int, float)) and not isinstance(alpha, bool):
        _require(0 <= alpha <= 1, f"alpha is {alpha:g}, a weight lies between 0 and 1")
        if count == 1:
            return [1.0]
        _require(count == 2, f"one number for alpha fits two references, not {count}; give 'alpha=[...]'")
        return [float(alpha), 1.0 - float(alpha)]
    _require(
        alpha is not None and not isinstance(alpha, str) and all(isinstance(a, (int, float)) for a in alpha),
        f"alpha is {alpha!r}; give a number or a list of numbers",
    )
    weights = [float(a) for a in alpha]
    _require(len(weights) == count, f"alpha has {len(weights)} weights for {count} references")
    _require(all(w >= 0 for w in weights), f"alpha has a negative weight: {weights}")
    _require(abs(sum(weights) - 1) < 1e-6, f"alpha must sum to 1, {weights} sums to {sum(weights):g}")
    return weights


def _check_numbers(config: DictConfig) -> None:
    _require(math.isfinite(config.beta) and config.beta >= 0, f"beta is {config.beta:g}; it must be 0 or more")
    _require(
        config.optimizer.learning_rate > 0,
        f"optimizer.learning_rate is {config.optimizer.learning_rate:g}; it must be above 0",
    )
    _require(config.steps is None or config.steps > 0, f"steps is {config.steps}; it must be above 0")
    _require(0 <= config.data.held_out < 1, f"data.held_out is {config.data.held_out:g}; it is a share, from 0 up to 1")
    for key, value in config.algorithm.items():
        if key.startswith(("batch_", "micro_", "inner_")):
            _require(value > 0, f"algorithm.{key} is {value}; it must be above 0")
    for group, names in (
        ("rollout", ("group_size", "max_new_tokens", "batch_size")),
        ("evaluation", ("samples_per_prompt", "max_new_tokens", "batch_size")),
    ):
        for name in names:
            _require(config[group][name] > 0, f"{group}.{name} is {config[group][name]}; it must be above 0")
        check_sampling(config[group], f"{group}.")
    _choice("optimizer.name", config.optimizer.name, ("adamw", "muon"))
    _choice("optimizer.schedule", config.optimizer.schedule, ("linear", "cosine", "wsd", "constant"))
    _choice("evaluation.split", config.evaluation.split, ("held_out", "train"))
    _choice("rollout.engine", config.rollout.engine, ("transformers", "vllm"))
    _choice("hardware.dtype", config.hardware.dtype, ("auto", "float32", "bfloat16"))
    if config.algorithm.name == "dpo":
        _choice("algorithm.loss", config.algorithm.loss, ("sigmoid", "ipo"))
        smoothing = config.algorithm.label_smoothing
        _require(0 <= smoothing < 0.5, f"algorithm.label_smoothing is {smoothing:g}; it lies between 0 and 0.5")
        _require(config.beta > 0, "algorithm=dpo needs beta above 0: its implicit reward is beta times the score")
    if config.algorithm.name == "grpo":
        _choice("algorithm.loss_reduction", config.algorithm.loss_reduction, ("grpo", "bnpo", "dr_grpo", "dapo"))
        _choice("algorithm.importance", config.algorithm.importance, ("token", "sequence"))
        _choice("algorithm.baseline", config.algorithm.baseline, ("group_mean", "leave_one_out", "none"))
        _choice("algorithm.advantage_scale", config.algorithm.advantage_scale, ("group", "batch", "none"))


def check_sampling(values: Any, prefix: str = "") -> None:
    """Refuse sampling settings outside their range.

    Args:
        values: name -> number, of temperature, top_p, top_k and min_p.
        prefix: stands before the name in the sentence.

    Raises:
        RequestError: naming the setting, its value and what is allowed.
    """
    for name, (good, allowed) in _SAMPLING.items():
        if name in values:
            _require(good(values[name]), f"{prefix}{name} is {values[name]:g}; it must be {allowed}")


def _check_online(config: DictConfig) -> None:
    _require(config.steps is not None, "algorithm=grpo has no epochs; give steps=NUMBER")
    _require(config.reward is not None, "algorithm=grpo needs a reward; give reward=NAME")
    _require(
        config.rollout.temperature > 0,
        "rollout.temperature is 0: greedy responses of a group are all the same; usual is 1",
    )
    if config.rollout.engine == "vllm":
        _require(find_spec("vllm") is not None, VLLM_MISSING)
    if config.hardware.reference_device is not None and config.beta > 0 and config.regularizer.states == States.policy:
        _check_placement(config)


def _check_placement(config: DictConfig) -> None:
    """References on a device of their own: mixed token by token they are needed together, `exact` beside the policy."""
    from multiref_cli.config import build

    given, policy_device = config.hardware.reference_device, build.device_name(config)
    exact = build.estimator(config) == Estimator.exact
    visiting = given.split(":")[0] == "cpu" and not policy_device.startswith("cpu")
    _require(
        not (visiting and (exact or config.regularizer.level == Level.token)),
        "hardware.reference_device=cpu lets references visit the GPU one at a time, but level=token mixes all of them "
        "at every token: leave it unset or use level=sequence",
    )
    _require(
        not exact or given == policy_device,
        f"estimator=exact compares policy and references over the whole vocabulary, so they share a device: leave "
        f"hardware.reference_device unset (given {given}), or use estimator=k2",
    )


def _check_paths(config: DictConfig) -> None:
    paths = {
        "policy.path": config.policy.path,
        "data.path": config.data.path if config.data.source is None else None,
        "data.held_out_path": config.data.held_out_path,
    }
    paths |= {f"references: {r.name}": r.path for r in config.references}
    if config.evaluation.scorer is not None:
        paths["evaluation.scorer.path"] = config.evaluation.scorer.path
    for key, path in paths.items():
        if path is None or path.startswith("toy:"):
            continue
        local = (
            path.startswith((".", "/", "~")) or path.endswith((".jsonl", ".json", ".parquet")) or path.count("/") > 1
        )
        if local and not Path(path).expanduser().exists():
            raise RequestError(f"{key} is {path!r}, which does not exist; give a folder, a file or a Hub id.")


def _check_references(config: DictConfig) -> None:
    _require(
        config.regularizer is not None, f"algorithm={config.algorithm.name} needs a regularizer; give regularizer=NAME"
    )
    _require(len(config.references) > 0, f"algorithm={config.algorithm.name} needs at least one reference")
    names = [r.name for r in config.references]
    twice = sorted({n for n in names if names.count(n) > 1})
    _require(not twice, f"two references have the name {twice[0] if twice else ''!r}; names must differ")
    reserved = sorted({"mixed"} & set(names))
    _require(not reserved, "a reference cannot be called 'mixed': that is the mixed reference's name in the metrics")
    simplex(config.alpha, len(names))


def _check_regularizer(config: DictConfig) -> None:
    r = config.regularizer
    if r.level == Level.token:
        own = config.policy.tokenizer
        other = [x.name for x in config.references if x.tokenizer is not None and x.tokenizer != own]
        _require(not other, f"level=token cannot mix in {other[:1]}, which has its own tokenizer; use level=sequence")
        _require(r.ctro is None and not r.arwc, "ctro and arwc act on whole responses; use level=sequence")
    if r.level == Level.sequence and r.estimator in _TOKEN_ESTIMATORS:
        raise RequestError(
            f"regularizer.estimator={r.estimator.name} works token by token; use level=token, or estimator=reward."
        )
    if r.states == States.reference:
        _require(r.score_order == 1, f"states=reference is the exact forward KL, score_order 1, not {r.score_order:g}")
        _require(config.algorithm.name == "grpo", "states=reference belongs to the online job (algorithm=grpo)")
    if r.ctro is not None:
        anchors = [x.name for x in config.references]
        _require(
            r.ctro.anchor in (None, *anchors),
            f"regularizer.ctro.anchor is {r.ctro.anchor!r}; allowed: {', '.join(anchors)}",
        )
        active = [name for name, weight in zip(anchors, simplex(config.alpha, len(anchors))) if weight > 0]
        _require(
            len(active) == 1 or r.ctro.anchor in (None, *active),
            f"regularizer.ctro.anchor is {r.ctro.anchor!r}, whose alpha is 0; allowed: {', '.join(active)}",
        )


def _choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{key} is {value!r}; allowed: {', '.join(allowed)}")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise RequestError(sentence + ".")
