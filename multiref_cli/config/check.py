"""Rules that span several keys: whatever can be refused before a model is loaded is refused here, in one sentence."""

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from multiref_cli.config.algorithms import DpoSettings, OnlineSettings
from multiref_cli.config.regularizer import Estimator, Level, Regularizer, States
from multiref_cli.config.terms import OTHERS, START
from multiref_cli.config.weights import weights_of
from multiref_cli.errors import RequestError

if TYPE_CHECKING:
    from multiref_cli.config.schema import Experiment

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


def check(experiment: "Experiment") -> None:
    """Refuse contradictory values.

    Raises:
        RequestError: naming the key, what was given and what is allowed.
    """
    _check_numbers(experiment)
    _check_paths(experiment)
    if experiment.algorithm.regularized:
        _check_references(experiment)
        _check_regularizer(experiment)
    if isinstance(experiment.algorithm, DpoSettings):
        _check_preferences(experiment.algorithm, experiment.beta)
    if isinstance(experiment.algorithm, OnlineSettings):
        _check_online(experiment, experiment.algorithm)
    if experiment.steps is None:
        _require(experiment.epochs is not None and experiment.epochs > 0, "give steps=NUMBER or epochs=NUMBER above 0")


def _check_numbers(experiment: "Experiment") -> None:
    beta, optimizer, data = experiment.beta, experiment.optimizer, experiment.data
    _require(math.isfinite(beta) and beta >= 0, f"beta is {beta:g}; it must be 0 or more")
    _require(optimizer.learning_rate > 0, f"optimizer.learning_rate is {optimizer.learning_rate:g}; it must be above 0")
    _require(experiment.steps is None or experiment.steps > 0, f"steps is {experiment.steps}; it must be above 0")
    _require(0 <= data.held_out < 1, f"data.held_out is {data.held_out:g}; it is a share, from 0 up to 1")
    _require(experiment.world >= 0, f"world is {experiment.world}; it must be 0 or more")
    _require(
        experiment.world == 0 or bool(experiment.toy_names),
        f"world={experiment.world} names an embedded world, but nothing here is of one (toy:NAME); leave it out",
    )
    for key, value in vars(experiment.algorithm).items():
        if key.startswith(("batch_", "micro_", "inner_")):
            _require(value > 0, f"algorithm.{key} is {value}; it must be above 0")
    for group, names in (
        ("rollout", ("group_size", "max_new_tokens", "batch_size")),
        ("evaluation", ("samples_per_prompt", "max_new_tokens", "batch_size")),
    ):
        settings = vars(getattr(experiment, group))
        for name in names:
            _require(settings[name] > 0, f"{group}.{name} is {settings[name]}; it must be above 0")
        check_sampling(settings, f"{group}.")
    _choice("optimizer.name", optimizer.name, ("adamw", "muon"))
    _choice("optimizer.schedule", optimizer.schedule, ("linear", "cosine", "wsd", "constant"))
    _choice("evaluation.split", experiment.evaluation.split, ("held_out", "train"))
    _choice("rollout.engine", experiment.rollout.engine, ("transformers", "vllm"))
    _choice("hardware.dtype", experiment.hardware.dtype, ("auto", "float32", "bfloat16"))


def _check_preferences(settings: DpoSettings, beta: float) -> None:
    _choice("algorithm.loss", settings.loss, ("sigmoid", "ipo"))
    smoothing = settings.label_smoothing
    _require(0 <= smoothing < 0.5, f"algorithm.label_smoothing is {smoothing:g}; it lies between 0 and 0.5")
    _require(beta > 0, f"algorithm={settings.name} needs beta above 0: its implicit reward is beta times the score")


def check_sampling(values: Mapping[str, float], prefix: str = "") -> None:
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


def _check_online(experiment: "Experiment", settings: OnlineSettings) -> None:
    name, rollout, hardware = settings.name, experiment.rollout, experiment.hardware
    _choice("algorithm.loss_reduction", settings.loss_reduction, ("grpo", "bnpo", "dr_grpo", "dapo"))
    _choice("algorithm.importance", settings.importance, ("token", "sequence"))
    _choice("algorithm.baseline", settings.baseline, ("group_mean", "leave_one_out", "none"))
    _choice("algorithm.advantage_scale", settings.advantage_scale, ("group", "batch", "none"))
    _require(experiment.steps is not None, f"algorithm={name} has no epochs; give steps=NUMBER")
    if settings.rewarded:
        _require(experiment.reward is not None, f"algorithm={name} needs a reward; give reward=NAME")
    else:
        _require(experiment.beta > 0, f"algorithm={name} learns from its references alone: beta must be above 0")
    _require(
        rollout.temperature > 0,
        "rollout.temperature is 0: greedy responses of a group are all the same; usual is 1",
    )
    if rollout.engine == "vllm":
        _require(find_spec("vllm") is not None, VLLM_MISSING)
    if hardware.reference_device is not None and experiment.penalized and not experiment.reads_samples:
        _check_placement(experiment, hardware.reference_device)


def _check_placement(experiment: "Experiment", given: str) -> None:
    """References on a device of their own: mixed token by token they are needed together, `exact` beside the policy."""
    policy_device = experiment.hardware.device_name
    exact = experiment.estimator is Estimator.exact
    visiting = given.split(":")[0] == "cpu" and not policy_device.startswith("cpu")
    by_token = exact or experiment.penalty.level is Level.token
    _require(
        not (visiting and by_token),
        "hardware.reference_device=cpu lets references visit the GPU one at a time, but "
        f"{'estimator=exact asks' if exact else 'level=token mixes'} all of them at every token: leave it unset, or "
        "use level=sequence with regularizer.estimator=reward",
    )
    _require(
        not exact or given == policy_device,
        f"estimator=exact compares policy and references over the whole vocabulary, so they share a device: leave "
        f"hardware.reference_device unset (given {given}), or use regularizer.estimator="
        f"{'reward' if experiment.penalty.level is Level.sequence else 'k2'}",
    )


def _check_paths(experiment: "Experiment") -> None:
    paths = {
        "policy.path": experiment.policy.path,
        "data.path": experiment.data.path if experiment.data.source is None else None,
        "data.held_out_path": experiment.data.held_out_path,
    }
    paths |= {f"references: {r.name}": r.path for r in experiment.references}
    if experiment.evaluation.scorer is not None:
        paths["evaluation.scorer.path"] = experiment.evaluation.scorer.path
    for key, path in paths.items():
        if path is None or path.startswith("toy:"):
            continue
        local = (
            path.startswith((".", "/", "~")) or path.endswith((".jsonl", ".json", ".parquet")) or path.count("/") > 1
        )
        if local and not Path(path).expanduser().exists():
            raise RequestError(f"{key} is {path!r}, which does not exist; give a folder, a file or a Hub id.")


def _check_references(experiment: "Experiment") -> None:
    name = experiment.algorithm.name
    _require(experiment.regularizer is not None, f"algorithm={name} needs a regularizer; give regularizer=NAME")
    _require(len(experiment.references) > 0, f"algorithm={name} needs at least one reference")
    names = [r.name for r in experiment.references]
    twice = sorted({n for n in names if names.count(n) > 1})
    _require(not twice, f"two references have the name {twice[0] if twice else ''!r}; names must differ")
    reserved = sorted({"mixed"} & set(names))
    _require(not reserved, "a reference cannot be called 'mixed': that is the mixed reference's name in the metrics")
    weights_of(experiment.alpha, len(names), experiment.penalty.signed)


def check_orders(r: Regularizer) -> None:
    """Refuse a regularizer that does not say, or says twice, which divergences it is made of.

    Raises:
        RequestError: naming the key.
    """
    orders = [key for key in ("mean_order", "score_order") if getattr(r, key) is not None]
    _require(
        not (r.terms and orders),
        "regularizer.terms say which divergences are charged: beside them regularizer.mean_order and "
        "regularizer.score_order are null",
    )
    _require(bool(r.terms) or len(orders) == 2, "regularizer needs mean_order and score_order, or terms")
    for term in r.terms:
        problem = term.problem()
        _require(problem is None, f"regularizer.terms: {problem}")


def _check_terms(experiment: "Experiment") -> None:
    """What a sum of divergences asks of the references, and what else of a regularizer has no meaning beside it."""
    r, names = experiment.penalty, [one.name for one in experiment.references]
    for term in r.terms:
        if term.reference in (START, OTHERS):
            _require(
                experiment.start is not None,
                f"regularizer.terms: reference={term.reference} needs a reference at policy.path; give a name",
            )
            _require(term.reference not in names, f"a reference cannot be called {term.reference!r} beside such a term")
        elif term.reference is not None:
            _choice("regularizer.terms: reference", term.reference, (*names, START, OTHERS))
    forgotten = [
        one.name
        for one in experiment.active_references
        if not any(all(term.concerns([one.name], experiment.start)) for term in r.terms)
    ]
    _require(not forgotten, f"reference {forgotten[:1]} has a weight, but no term of regularizer.terms is about it")
    _require(
        r.ctro is None and not r.arwc and not r.multi_loss and r.normalized and r.states is States.policy,
        "ctro, arwc, multi_loss, normalized=false and states=reference belong to one mixed reference; "
        "regularizer.terms have a divergence from each",
    )
    _require(r.estimator is not Estimator.k3, "estimator=k3 descends a forward KL, whatever regularizer.terms say")
    _require(
        r.level is Level.sequence or (experiment.algorithm.online and not (r.estimator and r.estimator.in_reward)),
        "regularizer.terms at level=token are loss terms of the online job; whole responses are level=sequence",
    )


def _check_regularizer(experiment: "Experiment") -> None:
    r, online = experiment.penalty, experiment.algorithm.online
    own, estimator = experiment.policy.tokenizer, experiment.estimator or r.estimator
    other = [x.name for x in experiment.references if x.tokenizer is not None and x.tokenizer != own]
    check_orders(r)
    if r.signed:
        _require(
            r.mean_order == r.score_order == 0 and r.states is States.policy and not (r.ctro or r.arwc or r.multi_loss),
            "negative weights are exact for reverse KL alone (both orders 0): of another order a weighted sum of "
            "powers may be negative, and no policy may be best; leave regularizer.signed false",
        )
    if r.terms:
        _check_terms(experiment)
    if r.level is Level.token:
        _require(not other, f"level=token cannot mix in {other[:1]}, which has its own tokenizer; use level=sequence")
        _require(r.ctro is None and not r.arwc, "ctro and arwc act on whole responses; use level=sequence")
    elif estimator is not None and not estimator.in_reward:
        reverse = all(term.score == 0 == term.mix.order for term in experiment.terms)
        additive = estimator is Estimator.exact and r.to_go is not False and reverse
        _require(
            additive,
            f"regularizer.estimator={estimator.name} works token by token; use level=token, or estimator=reward (of "
            "order 0 the penalty is additive over tokens: there estimator=exact, with to_go, is level=sequence too)",
        )
        _require(
            not other, f"estimator=exact cannot ask {other[:1]}, which has its own tokenizer; use estimator=reward"
        )
    _require(online or not r.to_go, "regularizer.to_go belongs to the online job: offline nothing is left to go")
    if r.to_go and experiment.estimator is not None:
        _require(
            experiment.in_loss,
            f"regularizer.to_go completes a loss term; estimator={experiment.estimator.name} charges whole responses "
            "already, and stored responses have no tokens to choose: leave it null",
        )
    if online:
        _require(
            r.ctro is None and not r.arwc and not r.multi_loss,
            "ctro, arwc and multi_loss belong to the offline job (algorithm=dpo)",
        )
    if r.states is States.reference:
        _require(r.score == 1, f"states=reference is the exact forward KL, score_order 1, not {r.score:g}")
        _require(online, "states=reference belongs to the online job (algorithm=grpo)")
    if r.ctro is not None:
        anchors = [x.name for x in experiment.references]
        _require(
            r.ctro.anchor in (None, *anchors),
            f"regularizer.ctro.anchor is {r.ctro.anchor!r}; allowed: {', '.join(anchors)}",
        )
        active = [x.name for x in experiment.active_references]
        _require(
            len(active) == 1 or r.ctro.anchor in (None, *active),
            f"regularizer.ctro.anchor is {r.ctro.anchor!r}, whose alpha is 0; allowed: {', '.join(active)}",
        )


def _choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{key} is {value!r}; allowed: {', '.join(allowed)}")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise RequestError(sentence + ".")
