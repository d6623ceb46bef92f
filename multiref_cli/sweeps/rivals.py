"""What a mix of references has to beat besides each reference alone: merges, best-of-N, the mix itself, imitation.

Each rival is an ordinary point: the condition that it is a rival of with another algorithm, the same data, prompts,
scorer and seeds, under a name of its own. What cannot be done with these references is left out, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multiref_cli.config.algorithms import DistillSettings, UntrainedSettings
from multiref_cli.config.check import check
from multiref_cli.config.merges import MERGE, completed
from multiref_cli.config.plain import from_plain, to_plain
from multiref_cli.config.regularizer import Level, Regularizer, States
from multiref_cli.config.schema import TOY, Experiment, Model, Policy, ReferenceSpec
from multiref_cli.errors import HubUnreachable, RequestError
from multiref_cli.sweeps.request import Rivals, key_of

# Factor of every task vector where nothing was tuned (arXiv 2306.01708, Section 4).
TASK_FACTOR = 0.4


@dataclass(frozen=True)
class Proposal:
    """Rivals of one condition: (experiment, overrides) each; and sentences on those that are left out."""

    rivals: list[tuple[Experiment, tuple[str, ...]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def propose(experiment: Experiment, overrides: tuple[str, ...], asked: Rivals) -> Proposal:
    """The rivals of one condition of the grid; none of one that is not towards several references.

    Args:
        experiment: of the condition.
        overrides: that it was asked for by.
        asked: candidates of best-of-N, and what chooses among them where training has no reward.

    Raises:
        RequestError: a rival's settings contradict each other; or models that cannot be looked at.
    """
    found = Proposal()
    if experiment.role != "grid" or not experiment.penalized or len(experiment.active_references) < 2:
        return found
    if not experiment.algorithm.trains:
        return found
    tokens = _token_problem(experiment)
    chooser = _chooser_problem(experiment, asked)
    for part, problem in (
        ("the merges of the references (soup, task arithmetic)", _add_merges(found, experiment, overrides)),
        ("the mixed reference itself", tokens or _mix_problem(experiment)),
        ("supervised fine-tuning on samples of the references", tokens or _sample_problem(experiment)),
        (f"best of {asked.best_of}", chooser),
    ):
        if problem is not None:
            found.left_out.append(f"{part}: left out, {problem}")
    if chooser is None:
        _add(found, _even(experiment), overrides, _best(experiment, asked, "policy"), _start_name(experiment, asked))
    if tokens is None and _mix_problem(experiment) is None:
        mixed = _even_regularizer(experiment)
        name = f"mixed reference {_mix_name(experiment)}"
        _add(found, mixed, overrides, UntrainedSettings(name="untrained", sampler="mixed"), name)
        if chooser is None:
            best = _best(experiment, asked, "mixed")
            _add(
                found,
                mixed,
                overrides,
                best,
                f"best of {asked.best_of} from the mixed reference {_mix_name(experiment)}",
            )
    if tokens is None and _sample_problem(experiment) is None:
        name = f"SFT on reference samples α={_alpha(experiment)}"
        _add(found, _supervised(experiment), overrides, _distill(experiment), name)
    return found


def _add(
    found: Proposal,
    experiment: Experiment,
    overrides: tuple[str, ...],
    algorithm: UntrainedSettings | DistillSettings | None,
    name: str,
) -> None:
    """Add the experiment with another algorithm (None: its own) as a rival, checked as any point is."""
    rival = replace(experiment, rival=name, algorithm=algorithm or experiment.algorithm)
    try:
        check(rival)
    except RequestError as error:
        raise RequestError(f"{error} (rivals=true, {name})") from error
    found.rivals.append((rival, _told(rival, overrides)))


def _told(rival: Experiment, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """What tells a rival from the condition it was made from, for people: the run's config.yaml is what counts."""
    algorithm, texts = rival.algorithm, [f"rival={rival.rival}", f"alpha={[round(w, 6) for w in rival.weights]}"]
    if isinstance(algorithm, (UntrainedSettings, DistillSettings)):
        usual = to_plain(type(algorithm)(name=algorithm.name))
        given = {key: value for key, value in to_plain(algorithm).items() if value != usual[key]}
        texts += [f"algorithm={algorithm.name}", *(f"algorithm.{key}={value}" for key, value in given.items())]
        texts += [f"regularizer={rival.penalty.title}"]
    if rival.policy.kind is not None:
        texts += [f"policy={rival.policy.path}"]
    replaced = {key_of(text).split(".")[0] for text in texts}
    return (*(text for text in overrides if key_of(text).split(".")[0] not in replaced), *texts)


def _add_merges(found: Proposal, experiment: Experiment, overrides: tuple[str, ...]) -> str | None:
    """Add the soup, as it is and as a single reference, and task arithmetic from the start; why there are none."""
    policy, others = experiment.policy, [one for one in experiment.references if one.path != experiment.policy.path]
    if any(one.kind is not None for one in (policy, *experiment.references)):
        return "one of them is a merge already"
    problem = _merge_problem(experiment)
    if problem is not None:
        return problem
    models = [{"path": one.path, "revision": one.revision, "adapter": one.adapter} for one in experiment.references]
    soup = {"kind": MERGE, "models": models}
    name = "soup of the references"
    even, untrained = _even(experiment), UntrainedSettings(name="untrained")
    _add(found, replace(even, policy=_merged(policy, soup)), overrides, untrained, name)
    together = [*experiment.references, from_plain(ReferenceSpec, {"name": "soup", **completed(soup)})]
    alone = replace(experiment, references=together, alpha=[0.0] * len(models) + [1.0])
    _add(found, alone, overrides, None, f"towards the {name} alone ({experiment.penalty.title})")
    if policy.new is None and others:
        base = {"path": policy.path, "revision": policy.revision, "adapter": policy.adapter}
        tasks = [{"path": one.path, "revision": one.revision, "adapter": one.adapter} for one in others]
        sums = {"kind": MERGE, "models": tasks, "weights": [TASK_FACTOR] * len(tasks), "base": base}
        _add(found, replace(even, policy=_merged(policy, sums)), overrides, untrained, f"task arithmetic {TASK_FACTOR}")
    return None


def _merged(policy: Policy, merge: Mapping[str, Any]) -> Policy:
    """The policy's settings with a merge in place of its start."""
    made = from_plain(Model, completed(merge))
    return replace(
        policy, path=made.path, revision=None, adapter=None, lora=None, kind=made.kind, models=made.models,
        weights=made.weights, base=made.base,
    )  # fmt: skip


def _best(experiment: Experiment, asked: Rivals, sampler: str) -> UntrainedSettings:
    selector = None if experiment.algorithm.rewarded else asked.selector
    return UntrainedSettings(name="untrained", sampler=sampler, best_of=asked.best_of, selector=selector)


def _even(experiment: Experiment) -> Experiment:
    """The experiment as one that reads no weights: the same rival of every condition of a job."""
    return replace(_even_regularizer(experiment), alpha=experiment.evenly.alpha)


def _even_regularizer(experiment: Experiment) -> Experiment:
    """The experiment with the order of its mean alone, and beta 1: all that the mixed reference depends on."""
    given = experiment.penalty.mean_order
    order = float(given) if given is not None else 0.0
    plain = Regularizer(mean_order=order, score_order=order, level=Level.token, signed=experiment.penalty.signed)
    return replace(experiment, regularizer=replace(plain, name=plain.derived_name), beta=1.0)


def _supervised(experiment: Experiment) -> Experiment:
    """Forward KL on stored samples of the references and no reward: imitation, sample by sample in the shares alpha."""
    penalty = Regularizer(mean_order=1.0, score_order=1.0, states=States.reference)
    rollout = experiment.rollout
    if not experiment.algorithm.online:
        evaluation = experiment.evaluation
        rollout = replace(rollout, max_new_tokens=evaluation.max_new_tokens, batch_size=evaluation.batch_size)
    return replace(experiment, regularizer=replace(penalty, name=penalty.derived_name), beta=1.0, rollout=rollout)


def _distill(experiment: Experiment) -> DistillSettings:
    own = experiment.algorithm
    return DistillSettings(name="distill", batch_prompts=own.batch_size, micro_tokens=own.pass_tokens)


def _start_name(experiment: Experiment, asked: Rivals) -> str:
    return f"best of {asked.best_of} from {experiment.start or 'the start'}"


def _mix_name(experiment: Experiment) -> str:
    order = experiment.penalty.mean_order or 0.0
    return f"α={_alpha(experiment)}" + (f" order {order:g}" if order else "")


def _alpha(experiment: Experiment) -> str:
    weights = experiment.weights[:1] if len(experiment.weights) == 2 else experiment.weights
    return ",".join(f"{weight:g}" for weight in weights)


def _chooser_problem(experiment: Experiment, asked: Rivals) -> str | None:
    if experiment.algorithm.rewarded:
        return None
    if asked.selector is None:
        return (
            f"algorithm={experiment.algorithm.name} is trained by no reward that could choose, and what the evaluation "
            "scores with must not: give rivals.selector=PATH of another reward model"
        )
    return None


def _mix_problem(experiment: Experiment) -> str | None:
    if experiment.routes is not None:
        return "its weights depend on the row"
    return "a sum of divergences has no one mixed reference" if experiment.penalty.terms else None


def _sample_problem(experiment: Experiment) -> str | None:
    if experiment.routes is not None:
        return "its weights depend on the row"
    if any(weight < 0 for weight in experiment.weights):
        return "no share of samples is negative"
    return None


def _token_problem(experiment: Experiment) -> str | None:
    """Why the references cannot be sampled in the policy's tokens."""
    from multiref_cli.models.load import load_tokenizer
    from multiref_cli.references.tokens import first_difference

    own = load_tokenizer(_here(experiment.policy, experiment))
    for one in experiment.references:
        if one.server is not None:
            return f"{one.name} is on a server"
        if one.kind is None and first_difference(own, load_tokenizer(_here(one, experiment))) is not None:
            return f"{one.name} has another tokenizer than the policy"
    return None


def _merge_problem(experiment: Experiment) -> str | None:
    """Why references and start are no weights of one network; the sentence of the first two that differ."""
    from multiref_cli.models.merge import check_alike

    if experiment.served:
        return f"the weights of {experiment.served[0]} are on a server"
    models = [_here(one, experiment) for one in experiment.references]
    if experiment.policy.new is None:
        models.append(_here(experiment.policy, experiment))
    try:
        check_alike(models)
    except HubUnreachable:
        raise
    except RequestError as error:
        text = str(error).rstrip(".")
        for model, one in zip(models, [*experiment.references, experiment.policy]):
            text = text.replace(model.path, one.path)
        return text
    return None


def _here(model: Model, experiment: Experiment) -> Model:
    """The model at a folder; of the embedded worlds, which differ in their seeds alone, the shipped one."""
    from multiref_cli.world.worlds import World

    def place(path: str | None) -> str | None:
        if path is None or not path.startswith(TOY):
            return path
        return str(World(0, Path(experiment.hardware.cache_folder)).place(path.removeprefix(TOY)))

    return Model(str(place(model.path)), model.revision, None, model.adapter, place(model.tokenizer))
