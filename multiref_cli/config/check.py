"""Rules that span several keys: whatever can be refused before a model is loaded is refused here, in one sentence."""

import re
from collections.abc import Mapping
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from multiref_cli.config.algorithms import DistillSettings, DpoSettings, OnlineSettings, UntrainedSettings
from multiref_cli.config.check_schedules import check_schedules
from multiref_cli.config.check_server import check_server
from multiref_cli.config.merges import check_merge, members
from multiref_cli.config.ranges import check_number, check_numbers
from multiref_cli.config.regularizer import Arwc, Estimator, Level, Regularizer, States
from multiref_cli.config.schema import PRECISIONS, SERVED, torch_name
from multiref_cli.config.tasks import check_tasks
from multiref_cli.config.terms import OTHERS, START
from multiref_cli.config.weights import AUTO, routes_of, weights_of
from multiref_cli.errors import RequestError, require
from multiref_cli.tracking.places import check_name

if TYPE_CHECKING:
    from multiref_cli.config.schema import Experiment

VLLM_MISSING = "rollout=vllm needs vLLM, which is not installed: pip install vllm, or use rollout=transformers"
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")
# Our names of what columns hold.
COLUMNS = ("prompt", "chosen", "rejected", "completion", "answer", "messages", "text", "tools", "chat_template_kwargs")


def check(experiment: "Experiment") -> None:
    """Refuse contradictory values.

    Raises:
        RequestError: naming the key, what was given and what is allowed.
    """
    if experiment.rule is not None:
        _check_rule(experiment, experiment.rule)
        experiment = experiment.evenly
    check_numbers(experiment)
    _check_parts(experiment)
    _check_paths(experiment)
    if experiment.algorithm.regularized:
        _check_references(experiment)
        _check_regularizer(experiment)
        _check_moves(experiment)
        _check_served(experiment)
    if isinstance(experiment.algorithm, DpoSettings):
        _check_preferences(experiment.algorithm, experiment.beta)
    check_schedules(experiment)
    if isinstance(experiment.algorithm, OnlineSettings):
        _check_online(experiment, experiment.algorithm)
    if isinstance(experiment.algorithm, UntrainedSettings):
        _check_untrained(experiment, experiment.algorithm)
    if experiment.steps is None:
        require(experiment.epochs is not None, "give steps=NUMBER or epochs=NUMBER above 0")


def _check_rule(experiment: "Experiment", rule: str) -> None:
    """Refuse a rule for alpha where there is nothing to choose, or nothing to choose by."""
    r, algorithm, given = experiment.regularizer, experiment.algorithm, f"alpha={rule}"
    if not algorithm.regularized or r is None:
        raise RequestError(f"{given} weighs references, and algorithm={algorithm.name} is towards none: leave it out.")
    require(len(experiment.references) > 1, f"{given} weighs several references against each other; one is given")
    require(not r.signed, f"{given} looks among weights from 0 to 1; regularizer={r.title} goes beyond: give numbers")
    require(not r.terms, f"{given} is a rule for one mixed reference; regularizer={r.title} is a sum of divergences")
    require(
        r.ctro is None and not r.arwc and not r.multi_loss,
        f"{given} is a rule for one mixed reference, the same for all pairs; regularizer={r.title} has none: give "
        "numbers",
    )
    require(experiment.alpha_schedule is None, f"{given} chooses one alpha; alpha_schedule moves it: give numbers")
    require(experiment.beta > 0, f"with beta=0 references play no part, and {given} has nothing to choose")
    if rule == AUTO:
        require(
            algorithm.rewarded or not algorithm.online,
            f"{given} needs a reward, and algorithm={algorithm.name} learns from none; alpha=balanced needs none",
        )
        require(
            algorithm.online or experiment.evaluation.scorer is not None,
            f"{given} needs a reward model that scores responses: give evaluation.scorer.path=MODEL, or numbers",
        )


def _check_parts(experiment: "Experiment") -> None:
    check_name(experiment.run.name, "run.name")
    require(
        experiment.world == 0 or bool(experiment.toy_names),
        f"world={experiment.world} names an embedded world, but nothing here is of one (toy:NAME); leave it out",
    )
    optimizer, hardware, data = experiment.optimizer, experiment.hardware, experiment.data
    template = data.prompt_template
    for name in ("learning_rate", "matrix_learning_rate"):
        rate = getattr(optimizer, name)
        require(
            rate * optimizer.weight_decay < 1,
            f"optimizer.{name} {rate:g} times weight_decay {optimizer.weight_decay:g} is 1 or more, which would turn "
            "every weight round at each step; make one of them smaller",
        )
    require(
        template is None or "{prompt}" in template,
        f"data.prompt_template is {template!r}: without {{prompt}} in it every prompt would be that text",
    )
    for key, device in (("device", hardware.device), ("reference_device", hardware.reference_device)):
        known = device is None or _DEVICE.fullmatch(device) or (key, device) == ("device", "auto")
        require(bool(known), f"hardware.{key} is {device!r}; give cpu, cuda, cuda:1 or mps")
    _check_processes(experiment)
    check_merge(experiment.policy, "policy")
    for reference in experiment.references:
        check_merge(reference, f"reference {reference.name}")
    if experiment.evaluation.scorer is not None:
        check_merge(experiment.evaluation.scorer, "evaluation.scorer")
    _choice("optimizer.name", optimizer.name, ("adamw", "muon"))
    _choice("optimizer.schedule", optimizer.schedule, ("linear", "cosine", "wsd", "constant"))
    _choice("evaluation.split", experiment.evaluation.split, ("held_out", "train"))
    check_tasks(experiment.evaluation.tasks, experiment.algorithm.writes)
    require(
        experiment.evaluation.scorer_file is None
        or experiment.evaluation.scorer is not None
        or not experiment.algorithm.writes,
        "evaluation.scorer_file judges evaluation.scorer, and there is none: give evaluation.scorer.path=MODEL, or "
        "drop the file",
    )
    _choice("rollout.engine", experiment.rollout.engine, ("transformers", "vllm"))
    _choice("hardware.dtype", hardware.dtype, ("auto", "float32", "bfloat16"))
    _choice("hardware.precision", hardware.precision, ("auto", *PRECISIONS))
    _choice("tracking.name", experiment.tracking.name, ("off", "wandb", "tensorboard", "trackio"))
    _check_tracker(experiment.tracking.name)
    _choice("tracking.mode", experiment.tracking.mode, ("offline", "online", "disabled"))
    _check_types(experiment)
    for name in data.columns:
        _choice("a name in data.columns", name, COLUMNS)
    try:
        date.fromisoformat(data.date)
    except ValueError:
        raise RequestError(f"data.date is {data.date!r}; it must be a day such as 2024-07-26.") from None


def _check_processes(experiment: "Experiment") -> None:
    """Several processes have a device each, which no key can name, and sample with an engine that each of them runs."""
    hardware = experiment.hardware
    _choice("hardware.sharding", hardware.sharding, ("none", "full"))
    if hardware.processes == 1:
        return
    for key, device in (("device", hardware.device), ("reference_device", hardware.reference_device)):
        require(
            device is None or (":" not in device and device != "mps"),
            f"hardware.processes={hardware.processes} gives every process its own device, not {key}={device}; give "
            "cuda or cpu",
        )
    require(
        not experiment.algorithm.online or experiment.rollout.engine != "vllm" or experiment.rollout.server is not None,
        f"rollout=vllm samples in one process, hardware.processes is {hardware.processes}; give rollout.server=start, "
        "which samples for all of them, or use rollout=transformers",
    )
    require(
        not (experiment.sharded and experiment.algorithm.online and experiment.rollout.server is not None),
        "rollout.server takes whole weights, hardware.sharding=full divides them; use rollout=transformers",
    )
    require(
        not experiment.sharded or experiment.precision != "bf16_kahan",
        "hardware.precision=bf16_kahan keeps remainders of whole weights, hardware.sharding=full divides them; use "
        "bf16_master",
    )


def _check_types(experiment: "Experiment") -> None:
    """Parameter types of every model by name, before one is opened."""
    _choice("policy.dtype", experiment.policy.dtype or "float32", ("float32", "bfloat16"))
    references = [(f"references: {one.name}", one) for one in experiment.references]
    for key, model in [("evaluation.scorer", experiment.evaluation.scorer), *references]:
        if model is not None and model.dtype is not None:
            _choice(f"{key}.dtype", model.dtype, ("float32", "bfloat16", "float16", "float64"))
    for reference in experiment.references:
        if reference.quantization is None:
            continue
        key = f"references: {reference.name}.quantization"
        _choice(key, reference.quantization, ("int8", "nf4"))
        require(
            reference.update is None and reference.server is None,
            f"{key}={reference.quantization} is of frozen weights in this process: remove it, or its update or server",
        )


def _check_preferences(settings: DpoSettings, beta: float) -> None:
    _choice("algorithm.loss", settings.loss, ("sigmoid", "ipo"))
    require(beta > 0, f"algorithm={settings.name} needs beta above 0: its implicit reward is beta times the score")


def _check_untrained(experiment: "Experiment", settings: UntrainedSettings) -> None:
    evaluation = experiment.evaluation
    _choice("algorithm.sampler", settings.sampler, ("policy", "mixed"))
    require(evaluation.prompts > 0, "algorithm=untrained is measured and no more: evaluation.prompts must be above 0")
    require(
        settings.best_of == 1 or settings.selector is not None or experiment.reward is not None,
        f"algorithm.best_of={settings.best_of} needs a judge; give algorithm.selector=MODEL or reward=NAME",
    )
    require(
        settings.selector is None or settings.best_of > 1,
        "algorithm.selector chooses among candidates: give algorithm.best_of, 2 or more",
    )
    require(
        settings.selector is None or evaluation.scorer is None or settings.selector != evaluation.scorer.path,
        f"algorithm.selector={settings.selector} is the reward model that the evaluation scores with: what it chose "
        "would be judged by itself; give another one",
    )
    if settings.sampler == "mixed":
        one = experiment.routes is None and experiment.one_mix and not experiment.penalty.terms
        require(one, "algorithm.sampler=mixed samples one mixed reference; alpha.by and regularizer.terms have several")


def check_sampling(values: Mapping[str, float], prefix: str = "") -> None:
    """Refuse sampling settings outside their range.

    Args:
        values: name -> number, of temperature, top_p, top_k and min_p.
        prefix: stands before the name in the sentence.

    Raises:
        RequestError: naming the setting, its value and what is allowed.
    """
    from multiref_cli.config.schema import Rollout

    for name in ("temperature", "top_p", "top_k", "min_p"):
        if name in values:
            check_number(Rollout, name, values[name], f"{prefix}{name}")


def _check_online(experiment: "Experiment", settings: OnlineSettings) -> None:
    name, rollout, hardware = settings.name, experiment.rollout, experiment.hardware
    _choice("algorithm.loss_reduction", settings.loss_reduction, ("grpo", "bnpo", "dr_grpo", "dapo"))
    _choice("algorithm.importance", settings.importance, ("token", "sequence"))
    _choice("algorithm.sampler_correction", settings.sampler_correction, ("auto", "none", "token", "sequence"))
    _choice("algorithm.baseline", settings.baseline, ("group_mean", "leave_one_out", "none"))
    _choice("algorithm.advantage_scale", settings.advantage_scale, ("group", "batch", "none"))
    stored = experiment.reads_samples and not settings.rewarded  # supervised on what the references said: rows are read
    require(experiment.steps is not None or stored, f"algorithm={name} has no epochs; give steps=NUMBER")
    if settings.rewarded:
        require(experiment.reward is not None, f"algorithm={name} needs a reward; give reward=NAME")
    else:
        require(experiment.beta > 0, f"algorithm={name} learns from its references alone: beta must be above 0")
    require(
        rollout.temperature > 0,
        "rollout.temperature is 0: greedy responses of a group are all the same; usual is 1",
    )
    in_reward = experiment.estimator is not None and experiment.estimator.in_reward and experiment.penalized
    compared = settings.baseline != "none" or settings.advantage_scale == "group"
    require(
        rollout.group_size > 1 or not compared or not (settings.rewarded or in_reward),
        f"rollout.group_size is 1, and algorithm.baseline={settings.baseline} compares the responses of a group: every "
        "advantage would be 0; give 2 or more, or algorithm.baseline=none with algorithm.advantage_scale=none or batch",
    )
    if isinstance(settings, DistillSettings) and settings.teacher_share > 0:
        require(
            experiment.taught > 0,
            f"algorithm.teacher_share={settings.teacher_share:g} of rollout.group_size={rollout.group_size} is less "
            "than a response; give a larger share or group",
        )
        require(
            experiment.in_loss and experiment.estimator is not None and experiment.estimator.beside,
            "algorithm.teacher_share takes the divergence over the whole vocabulary at the teachers' states: give "
            "regularizer.estimator=exact or topk, with regularizer.states=policy",
        )
    check_server(rollout)
    if rollout.engine == "vllm" and (rollout.server is None or (rollout.starts_server and rollout.python is None)):
        require(find_spec("vllm") is not None, VLLM_MISSING)
    if hardware.reference_device is not None and (experiment.penalized and experiment.penalty.states is States.policy):
        _check_placement(experiment, hardware.reference_device)


def _check_tracker(name: str) -> None:
    """A tracker that is an extra must be installed."""
    if name in ("tensorboard", "trackio"):
        hint = f"pip install '.[{name}]', or use tracking=off"
        require(find_spec(name) is not None, f"tracking={name} needs {name}, which is not installed: {hint}")


def _check_placement(experiment: "Experiment", given: str) -> None:
    """References on a device of their own: mixed token by token they are needed together, `exact` beside the policy."""
    policy_device = experiment.hardware.device_name
    exact = experiment.estimator is not None and experiment.estimator.beside
    visiting = given.split(":")[0] == "cpu" and not policy_device.startswith("cpu")
    by_token = exact or experiment.penalty.level is Level.token
    require(
        not (visiting and by_token),
        "hardware.reference_device=cpu lets references visit the GPU one at a time, but "
        f"{'estimator=exact and topk ask' if exact else 'level=token mixes'} all of them at every token: leave it "
        "unset, or use level=sequence with regularizer.estimator=reward",
    )
    require(
        not exact or torch_name(given) == torch_name(policy_device),
        f"estimator=exact and topk compare policy and references in one pass, so they share a device: leave "
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
    for key, model in [("policy", experiment.policy), *((f"references: {r.name}", r) for r in experiment.references)]:
        if model.kind is not None:
            paths.pop(f"{key}.path" if key == "policy" else key)
            paths |= {f"{key}, model {number + 1}": part.path for number, (part, _) in enumerate(members(model))}
    scorer = experiment.evaluation.scorer
    require(scorer is None or scorer.kind is None, "evaluation.scorer is one reward model; kind=merge is not for it")
    if experiment.evaluation.scorer is not None:
        paths["evaluation.scorer.path"] = experiment.evaluation.scorer.path
    if isinstance(experiment.algorithm, UntrainedSettings):
        paths["algorithm.selector"] = experiment.algorithm.selector
    for key, path in paths.items():
        if path is None or path.startswith(("toy:", SERVED)):
            continue
        local = (
            path.startswith((".", "/", "~")) or path.endswith((".jsonl", ".json", ".parquet")) or path.count("/") > 1
        )
        if local and not Path(path).expanduser().exists():
            raise RequestError(f"{key} is {path!r}, which does not exist; give a folder, a file or a Hub id.")


def _check_references(experiment: "Experiment") -> None:
    name = experiment.algorithm.name
    require(experiment.regularizer is not None, f"algorithm={name} needs a regularizer; give regularizer=NAME")
    require(len(experiment.references) > 0, f"algorithm={name} needs at least one reference")
    names = [r.name for r in experiment.references]
    twice = sorted({n for n in names if names.count(n) > 1})
    require(not twice, f"two references have the name {twice[0] if twice else ''!r}; names must differ")
    reserved = sorted({"mixed"} & set(names))
    require(not reserved, "a reference cannot be called 'mixed': that is the mixed reference's name in the metrics")
    if experiment.weighing is not None:
        _check_weighing(experiment)
    elif routes_of(experiment.alpha, names, experiment.penalty.signed) is None:
        weights_of(experiment.alpha, len(names), experiment.penalty.signed)


def _check_served(experiment: "Experiment") -> None:
    """A server says one number a token, at temperature 1: exact for whole responses, and all that it can be asked."""
    for one in experiment.references:
        if one.server is None:
            continue
        url, name = urlsplit(one.server), f"references: {one.name}"
        require(
            url.scheme in ("http", "https") and bool(url.hostname),
            f"{name}.server is {one.server!r}; give the URL of a server, such as http://localhost:8000",
        )
        require(url.username is None, f"{name}.server holds a key; name its environment variable: api_key_env=NAME")
        held = [key for key in ("revision", "dtype", "adapter", "kind", "update") if getattr(one, key) is not None]
        held += ["trust_remote_code"] * one.trust_remote_code
        require(not held, f"{name}.{held[:1]} is the server's own affair; leave it out beside server")
    if not experiment.served or not experiment.regularized:
        return
    require(
        experiment.penalty.level is Level.sequence,
        f"reference {experiment.served[0]} is served: a server says one log-probability a token, and level=token sums "
        "over the vocabulary; use regularizer.level=sequence, which is exact for every mean",
    )
    active, algorithm = [one.name for one in experiment.active_references if one.server], experiment.algorithm
    if not active:
        return
    asked, mixed = experiment.estimator, isinstance(algorithm, UntrainedSettings) and algorithm.sampler == "mixed"
    require(
        asked is None or not asked.beside,
        f"reference {active[0]} is served: a server says one log-probability a token, and estimator="
        f"{asked.name if asked else ''} asks for more; use regularizer.estimator=reward, which is exact for whole "
        "responses",
    )
    require(
        not mixed,
        f"reference {active[0]} is served: a server says one log-probability a token, and algorithm.sampler=mixed "
        "draws from the mixed reference token by token; use algorithm.sampler=policy",
    )
    require(
        not algorithm.online or experiment.rollout.temperature == 1 or experiment.reads_samples,
        f"reference {active[0]} is served: a server says log-probabilities at temperature 1, and rollout.temperature "
        f"is {experiment.rollout.temperature:g}; use rollout.temperature=1",
    )


def _check_weighing(experiment: "Experiment") -> None:
    """Refuse a function of the references' log-probabilities where the store holds none, or there is no one mean."""
    r, given = experiment.penalty, "alpha.by with a function"
    require(
        experiment.algorithm.reads_store and r.level is Level.sequence,
        f"{given} reads what the store holds of whole responses: give algorithm=dpo and level=sequence, or "
        "alpha={by: COLUMN, weights: {VALUE: WEIGHTS}}",
    )
    require(
        not (r.terms or r.signed or r.ctro or r.arwc or r.multi_loss),
        f"{given} weighs one mean of the references; regularizer.terms, signed, ctro, arwc and multi_loss have none, "
        "or weights of their own",
    )
    require(experiment.alpha_schedule is None, f"{given} has no weights that alpha_schedule could move")


def check_orders(r: Regularizer) -> None:
    """Refuse a regularizer that does not say, or says twice, which divergences it is made of.

    Raises:
        RequestError: naming the key.
    """
    orders = [key for key in ("mean_order", "score_order") if getattr(r, key) is not None]
    require(
        not (r.terms and orders),
        "regularizer.terms say which divergences are charged: beside them regularizer.mean_order and "
        "regularizer.score_order are null",
    )
    require(bool(r.terms) or len(orders) == 2, "regularizer needs mean_order and score_order, or terms")
    for term in r.terms:
        problem = term.problem()
        require(problem is None, f"regularizer.terms: {problem}")


def _check_moves(experiment: "Experiment") -> None:
    """References that move are asked as the policy trains; what is stored of one is of a model that stands still."""
    for one in experiment.references:
        update = one.update
        if update is None:
            continue
        name = f"reference {one.name}: update"
        require(
            (update.reset is None) != (update.ema is None) and (update.every is None or update.ema is not None),
            f"{name} is {{reset: STEPS}}, or {{ema: SHARE, every: STEPS}}",
        )
        require(
            experiment.algorithm.online and not experiment.reads_samples,
            f"{name} moves it while the policy trains, and algorithm={experiment.algorithm.name} "
            f"{'trains nothing' if not experiment.algorithm.trains else 'reads what is stored, computed once'}: use "
            "an online algorithm whose penalty is on the policy's own responses, or leave update out",
        )
        inner = cast(OnlineSettings, experiment.algorithm).inner_iterations
        require(
            update.period % inner == 0,
            f"{name} every {update.period} steps falls between the {inner} steps on one generation "
            f"(algorithm.inner_iterations): give a multiple of {inner}",
        )


def _check_terms(experiment: "Experiment") -> None:
    """What a sum of divergences asks of the references, and what else of a regularizer has no meaning beside it."""
    r, names = experiment.penalty, [one.name for one in experiment.references]
    for term in r.terms:
        if term.reference in (START, OTHERS):
            require(
                experiment.start is not None,
                f"regularizer.terms: reference={term.reference} needs a reference at policy.path; give a name",
            )
            mistaken = term.reference in names and experiment.start != term.reference
            require(not mistaken, f"a reference cannot be called {term.reference!r} beside such a term")
        elif term.reference is not None:
            _choice("regularizer.terms: reference", term.reference, (*names, START, OTHERS))
    forgotten = [
        one.name
        for one in experiment.active_references
        if not any(all(term.concerns([one.name], experiment.start)) for term in r.terms)
    ]
    require(not forgotten, f"reference {forgotten[:1]} has a weight, but no term of regularizer.terms is about it")
    require(
        r.ctro is None and not r.arwc and not r.multi_loss and r.normalized and r.states is States.policy,
        "ctro, arwc, multi_loss, normalized=false and states=reference belong to one mixed reference; "
        "regularizer.terms have a divergence from each",
    )
    require(r.estimator is not Estimator.k3, "estimator=k3 descends a forward KL, whatever regularizer.terms say")
    require(
        r.level is Level.sequence or (experiment.algorithm.online and not (r.estimator and r.estimator.in_reward)),
        "regularizer.terms at level=token are loss terms of the online job; whole responses are level=sequence",
    )


def _check_regularizer(experiment: "Experiment") -> None:
    check_orders(experiment.penalty)
    _check_signs(experiment)
    _check_level(experiment)
    _check_charged(experiment)
    _check_mrpo(experiment)


def _check_signs(experiment: "Experiment") -> None:
    """What weights that depend on a row, or are negative, and terms can be combined with."""
    r = experiment.penalty
    if experiment.routes is not None:
        require(
            r.states is States.policy and not (r.ctro or r.arwc or r.multi_loss),
            "ctro, arwc, multi_loss and states=reference take one alpha for all rows, not alpha.by",
        )
    if r.signed:
        require(
            r.mean_order == r.score_order == 0 and r.states is States.policy and not (r.ctro or r.arwc or r.multi_loss),
            "negative weights are exact for reverse KL alone (both orders 0): of another order a weighted sum of "
            "powers may be negative, and no policy may be best; leave regularizer.signed false",
        )
    if r.terms:
        _check_terms(experiment)


def _check_level(experiment: "Experiment") -> None:
    """What works token by token, and what takes whole responses."""
    r, own = experiment.penalty, experiment.policy.tokenizer
    estimator = experiment.estimator or r.estimator
    other = [x.name for x in experiment.references if x.tokenizer is not None and x.tokenizer != own]
    if r.level is Level.token:
        require(not other, f"level=token cannot mix in {other[:1]}, which has its own tokenizer; use level=sequence")
        require(r.ctro is None and not r.arwc, "ctro and arwc act on whole responses; use level=sequence")
    elif estimator is not None and not estimator.in_reward:
        every = [term for terms in experiment.terms_by_route.values() for term in terms]
        reverse = all(term.score == 0 == term.mix.order for term in every)
        additive = estimator.beside and r.to_go is not False and reverse
        require(
            additive,
            f"regularizer.estimator={estimator.name} works token by token; use level=token, or estimator=reward (of "
            "order 0 the penalty is additive over tokens: there exact and topk, with to_go, are level=sequence too)",
        )
        require(
            not other,
            f"estimator={estimator.name} cannot ask {other[:1]}, which has its own tokenizer; use estimator=reward",
        )


def _check_charged(experiment: "Experiment") -> None:
    """Which job charges what: tokens to go, failed or special ones, states of a reference."""
    r, online = experiment.penalty, experiment.algorithm.online
    require(online or not r.to_go, "regularizer.to_go belongs to the online job: offline nothing is left to go")
    if r.to_go and experiment.estimator is not None:
        require(
            experiment.in_loss,
            f"regularizer.to_go completes a loss term; estimator={experiment.estimator.name} charges whole responses "
            "already, and stored responses have no tokens to choose: leave it null",
        )
    if online:
        require(
            r.ctro is None and not r.arwc and not r.multi_loss,
            "ctro, arwc and multi_loss belong to the offline job (algorithm=dpo)",
        )
    if r.only_failed:
        known = experiment.reward is not None and experiment.reward.correct_at is not None
        require(
            experiment.algorithm.rewarded and r.states is States.policy and known,
            "regularizer.only_failed charges responses whose reward is below reward.correct_at: it needs "
            "algorithm=grpo with a reward that has one, and regularizer.states=policy",
        )
    if r.mask_special:
        require(
            experiment.in_loss,
            "regularizer.mask_special leaves single tokens out of a loss term: give regularizer.estimator=exact, topk, "
            "k2 or k3_ratio with algorithm=distill or grpo",
        )
    if experiment.to_go and experiment.estimator is not None and not experiment.estimator.beside:
        require(
            r.normalized or r.mean_order == 1,
            f"regularizer.estimator={experiment.estimator.name} takes the mix for a distribution, which "
            f"normalized=false leaves it short of (mean_order {r.mean_order:g}): what is still to pay would be wrong; "
            "use exact or topk, or to_go=false",
        )
    if r.states is States.reference:
        require(r.score == 1, f"states=reference is the exact forward KL, score_order 1, not {r.score:g}")
        require(online, "states=reference belongs to the online job (algorithm=grpo)")


def _check_mrpo(experiment: "Experiment") -> None:
    """How MRPO makes its weights, and what it clips against."""
    r = experiment.penalty
    require(
        not (r.arwc and r.multi_loss),
        "regularizer.arwc makes the weights of a mix, and multi_loss mixes nothing: leave one of them out",
    )
    if r.arwc is Arwc.authors:
        count = len(experiment.active_references)
        require(count <= 2, f"regularizer.arwc=authors is code for two references, not {count}; use arwc=paper")
    if r.ctro is not None:
        anchors = [x.name for x in experiment.references]
        require(
            r.ctro.anchor in (None, *anchors),
            f"regularizer.ctro.anchor is {r.ctro.anchor!r}; allowed: {', '.join(anchors)}",
        )
        active = [x.name for x in experiment.active_references]
        require(
            len(active) == 1 or r.ctro.anchor in (None, *active),
            f"regularizer.ctro.anchor is {r.ctro.anchor!r}, whose alpha is 0; allowed: {', '.join(active)}",
        )


def _choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    require(value in allowed, f"{key} is {value!r}; allowed: {', '.join(allowed)}")
