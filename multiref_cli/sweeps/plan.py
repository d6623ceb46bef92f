"""From a request to points: axes x single-reference baselines x seeds, each point known by the hash of its config."""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from multiref_cli.config.canonical import canonical
from multiref_cli.config.check import check
from multiref_cli.config.compose import compose, expand_axes, refuse_idle_alpha
from multiref_cli.config.plain import digest
from multiref_cli.config.schema import Experiment, Mix
from multiref_cli.errors import RequestError
from multiref_cli.sweeps.request import Request, key_of
from multiref_cli.sweeps.rivals import Proposal, propose

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Point:
    """One run of a sweep: `id` is its config's hash, `condition_id` the hash without the seed.

    `names` are those of the regularizers under which it was asked for: several, where they are the same run.
    """

    id: str
    name: str
    condition: str
    condition_id: str
    seed: int
    role: str
    overrides: tuple[str, ...]
    passes: tuple[str, ...]
    names: tuple[str, ...]
    experiment: Experiment = field(repr=False)

    def line(self) -> dict[str, Any]:
        """What plan.jsonl holds of the point; its config is in the run folder."""
        return asdict(replace(self, experiment=None))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Asked:
    """A condition that is asked for: its plainest experiment, its overrides without a seed, its regularizer's names."""

    experiment: Experiment
    overrides: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass:
    """Work that points share, done once before them: an embedded model or data set, a reference's pass over the data.

    `toy` is the name behind `toy:` where that is what is made; `needs` are ids of passes that come before this one;
    `mixes` are the token-level mixes whose normalizers one pass computes together.
    """

    id: str
    title: str
    toy: str | None
    needs: tuple[str, ...]
    experiment: Experiment = field(repr=False)
    mixes: tuple[Mix, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All points of a sweep in the order in which they start, and the passes that they need.

    `left_out` are sentences on rivals that these references do not allow.
    """

    points: tuple[Point, ...]
    passes: tuple[Pass, ...]
    left_out: tuple[str, ...] = ()

    @property
    def conditions(self) -> list[str]:
        """The distinct conditions by their hash, in order."""
        return list(dict.fromkeys(point.condition_id for point in self.points))

    @property
    def processes(self) -> int:
        """Most processes of a point."""
        return max((point.experiment.hardware.processes for point in self.points), default=1)

    @property
    def may_use_gpus(self) -> bool:
        """Whether a point does not insist on another device."""
        return any(point.experiment.hardware.device.startswith(("auto", "cuda")) for point in self.points)

    def count(self, role: str) -> int:
        """Number of conditions with a role: grid, single, beta0 or rival."""
        return len({point.condition_id for point in self.points if point.role == role})


def make_plan(request: Request, choose: Callable[[Experiment], Any] | None = None) -> Plan:
    """Expand a request; a point that several grids name, or one grid under several names, is in the plan once.

    Args:
        request: grids in override syntax, seeds, and whether the single-reference baselines belong to it.
        choose: gives alpha where it is a rule's name; the point is then that of the same weights given as numbers.

    Returns:
        The plan: one seed of every condition before the next seed, so that a comparison shows early.

    Raises:
        RequestError: an override or a combination of values is wrong; one sentence naming the point.
    """
    asked, left_out = ask(request, choose)
    return replace(arrange(asked, request.seeds), left_out=left_out)


def ask(request: Request, choose: Callable[[Experiment], Any] | None = None) -> tuple[list[Asked], tuple[str, ...]]:
    """The conditions of a request, each once, and what is left out of it; arguments and errors as of `make_plan`."""
    composer = Composer()
    conditions: dict[str, tuple[Experiment, tuple[str, ...]]] = {}
    names: dict[str, dict[str, None]] = {}
    left_out: dict[str, None] = {}
    for overrides in condition_overrides(request):
        experiment = composer.compose(overrides)
        if experiment.rule is not None and choose is not None:
            experiment = replace(experiment, alpha=choose(experiment))
            overrides = _weighed(overrides, experiment.weights)
        baselines = _baselines(experiment, overrides) if request.baselines else ()
        proposal = propose(experiment, overrides, request.rivals) if request.rivals else Proposal()
        left_out |= dict.fromkeys(f"{experiment.algorithm.title}: {text}" for text in proposal.left_out)
        for one, given in [(experiment, overrides), *baselines, *proposal.rivals]:
            plain = canonical(one)
            conditions.setdefault(plain.result_hash, (plain, given))
            if one.penalized:
                names.setdefault(plain.result_hash, {})[one.penalty.title] = None
    _check_parts(experiment for experiment, _ in conditions.values())
    asked = [
        Asked(experiment, overrides, tuple(names.get(identity, ())))
        for identity, (experiment, overrides) in conditions.items()
    ]
    return asked, tuple(left_out)


def arrange(asked: Sequence[Asked], seeds: Sequence[int]) -> Plan:
    """The plan of some conditions: one seed of each before the next seed, and the passes that they need."""
    needed = [_passes(one.experiment) for one in asked]
    points = [
        _point(replace(one.experiment, seed=seed), one.overrides, tuple(p.id for p in passes), one.names)
        for seed in seeds
        for one, passes in zip(asked, needed)
        if one.experiment.algorithm.trains or seed == seeds[0]  # an evaluation has a seed of its own
    ]
    return Plan(tuple(points), _merged(one for passes in needed for one in passes))


def more_seeds(plan: Plan, conditions: Collection[str], seeds: Iterable[int]) -> Plan:
    """A plan with further seeds of some of its conditions; a point that is there already stays the only one."""
    first = {point.condition_id: point for point in reversed(plan.points)}
    there = {point.id for point in plan.points}
    made = [
        _point(replace(one.experiment, seed=seed), one.overrides, one.passes, one.names)
        for seed in seeds
        for identity, one in first.items()
        if identity in conditions and one.experiment.algorithm.trains
    ]
    return replace(plan, points=(*plan.points, *(point for point in made if point.id not in there)))


def _check_parts(experiments: Iterable[Experiment]) -> None:
    """What every run checks of its parts, once for all points with the same ones."""
    from multiref_cli.runs.job import check_parts

    named = ("algorithm", "policy", "reward", "rollout", "evaluation")
    different = {digest([one.plain[name] for name in named]): one for one in experiments}
    for experiment in different.values():
        check_parts(experiment)


def condition_overrides(request: Request) -> list[tuple[str, ...]]:
    """The overrides of every condition that the grids name, without seeds, in the order given."""
    found: dict[tuple[str, ...], None] = {}
    for grid in request.grids:
        axes, fixed = expand_axes([*request.common, *grid])
        for values in itertools.product(*axes.values()):
            found[(*fixed, *(f"{key}={value}" for key, value in zip(axes, values)))] = None
    return list(found)


class Composer:
    """Composes each choice of groups once and sets numbers afterwards: 300 points would cost Hydra half a minute."""

    def __init__(self) -> None:
        self._composed: dict[tuple[str, ...], Experiment] = {}

    def compose(self, overrides: tuple[str, ...]) -> Experiment:
        """Compose, type and check one condition; an error names its overrides."""
        numbers = [text for text in overrides if _is_number(text)]
        # Which numbers are given is part of a choice: what is not given is as the groups say.
        choice = tuple(text.partition("=")[0] + "=" if _is_number(text) else text for text in overrides)
        try:
            if choice not in self._composed:
                self._composed[choice] = compose(list(overrides))
            experiment = _with_numbers(self._composed[choice], numbers)
            refuse_idle_alpha(experiment, overrides)
            check(experiment)
            return experiment
        except RequestError as error:
            raise RequestError(f"{error} (in the point {' '.join(overrides) or 'of the defaults'})") from error


def _is_number(override: str) -> bool:
    """Whether an override sets a number or a list of numbers that nothing else in the config is made from."""
    key, _, value = override.partition("=")
    if key == "world":
        return value.isdecimal()
    items = value[1:-1].split(",") if value[:1] == "[" and value[-1:] == "]" else [value]
    return key in ("alpha", "beta", "optimizer.learning_rate") and all(_NUMBER.fullmatch(i.strip()) for i in items)


def _with_numbers(experiment: Experiment, overrides: Iterable[str]) -> Experiment:
    """The experiment with the numbers that some overrides set."""
    for override in overrides:
        key, _, text = override.partition("=")
        if key == "alpha":
            value = [_number(item) for item in text[1:-1].split(",")] if text[:1] == "[" else _number(text)
            experiment = replace(experiment, alpha=value)
        elif key == "world":
            experiment = replace(experiment, world=int(text))
        elif text[:1] == "[":
            raise RequestError(f"{key} is {text}; give one number.")
        elif key == "beta":
            experiment = replace(experiment, beta=float(text))
        else:
            experiment = replace(experiment, optimizer=replace(experiment.optimizer, learning_rate=float(text)))
    return experiment


def _number(text: str) -> int | float:
    """A number as YAML would read it."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else float(text)


def _baselines(experiment: Experiment, overrides: tuple[str, ...]) -> Iterable[tuple[Experiment, tuple[str, ...]]]:
    """The same condition with each reference of the set alone."""
    count = len(experiment.references)
    if not experiment.penalized or count < 2:
        return
    for index in range(count):
        alone = _alone(experiment, index)
        yield alone, _weighed(overrides, alone.weights)


def _weighed(overrides: tuple[str, ...], weights: Iterable[float]) -> tuple[str, ...]:
    """The overrides with a list of weights as alpha."""
    text = "alpha=[" + ",".join(f"{w:g}" if float(f"{w:g}") == w else repr(w) for w in weights) + "]"
    return (*(o for o in overrides if key_of(o) != "alpha"), text)


def _alone(experiment: Experiment, index: int) -> Experiment:
    return replace(experiment, alpha=[float(i == index) for i in range(len(experiment.references))])


def _point(
    experiment: Experiment, overrides: tuple[str, ...], passes: tuple[str, ...], names: tuple[str, ...]
) -> Point:
    return Point(
        id=experiment.hash,
        name=f"{experiment.condition}-{experiment.replicate}-{experiment.hash[:6]}",
        condition=experiment.condition,
        condition_id=experiment.condition_hash,
        seed=experiment.seed,
        role=experiment.role,
        overrides=(*(o for o in overrides if key_of(o) != "seed"), f"seed={experiment.seed}"),
        passes=passes,
        names=names,
        experiment=experiment,
    )


def _passes(experiment: Experiment) -> list[Pass]:
    """Embedded models and data first, then one pass for each reference that the condition uses, then normalizers."""
    from multiref_cli.world.worlds import needed

    world = experiment.world
    where = f" of world {world}" if world else ""
    made = [
        Pass(_toy_pass(name, world), f"toy:{name}{where}", name, tuple(_toy_pass(o, world) for o in uses), experiment)
        for name, uses in needed(experiment).items()
    ]
    if not experiment.regularized:
        return made
    needs, data = tuple(one.id for one in made), experiment.data.name + where
    used = experiment.active_references
    active = [index for index, reference in enumerate(experiment.references) if reference in used]
    found = [
        _reference_pass(canonical(_alone(experiment, i)), f"{experiment.references[i].name} over {data}", [i], needs)
        for i in active
    ]
    if experiment.algorithm.reads_store and experiment.penalty.mixes_whole_vocabulary and len(active) > 1:
        everyone = list(range(len(experiment.references)))
        before = (*needs, *(one.id for one in found))
        one = _reference_pass(experiment, f"normalizers of the mixes over {data}", everyone, before)
        mixes = tuple(term.mix for term in experiment.terms_of_all)
        found.append(replace(one, mixes=mixes))
    return made + found


def _merged(passes: Iterable[Pass]) -> tuple[Pass, ...]:
    """Each pass once; what two conditions want of the same pass is done in one."""
    found: dict[str, Pass] = {}
    for one in passes:
        before = found.get(one.id, one)
        mixes, needs = (dict.fromkeys((*getattr(before, key), *getattr(one, key))) for key in ("mixes", "needs"))
        found[one.id] = replace(before, mixes=tuple(mixes), needs=tuple(needs))
    return tuple(found.values())


def _reference_pass(experiment: Experiment, title: str, references: list[int], needs: tuple[str, ...]) -> Pass:
    plain, named = experiment.plain, experiment.content()["references"]
    key: list[Any] = [plain[name] for name in ("algorithm", "policy", "data", "evaluation", "reward", "rollout")]
    key += [
        title,
        experiment.world,
        [named[index] for index in references],
        plain["regularizer"]["states"],
    ]
    return Pass(digest(key), title, None, needs, experiment)


def _toy_pass(name: str, world: int) -> str:
    return digest(["toy", name, world])
