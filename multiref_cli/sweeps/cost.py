"""What a whole sweep takes, counted from the sizes of its models and rows: an order of magnitude."""

from collections import Counter
from dataclasses import dataclass, replace

from multiref_cli.config.plain import digest
from multiref_cli.config.schema import Experiment
from multiref_cli.errors import HubUnreachable
from multiref_cli.models.known import absent
from multiref_cli.runs.arrange import arrangement
from multiref_cli.runs.cards import CARDS, Card, here
from multiref_cli.runs.price import (
    LARGE,
    Cost,
    Rows,
    Sizes,
    known_rows,
    look,
    opened,
    price,
    rows_of,
    sizes_of,
)
from multiref_cli.sweeps.plan import Plan


@dataclass(frozen=True)
class Kind:
    """Points of a sweep that take the same: a title, their number, and what one takes on this machine's device."""

    title: str
    points: int
    cost: Cost


@dataclass(frozen=True)
class Needs:
    """What a whole sweep takes, counted from models and rows: an order of magnitude.

    Attributes:
        kinds: points that take the same.
        references: seconds of the passes that fill the reference store; what is stored already is counted too.
        worlds: embedded worlds of which something must be made first; each takes about `estimate.MAKING` seconds
            of one core.
        cards: the sweep on this machine's device and on usual cards; empty for small policies.
    """

    kinds: list[Kind]
    references: float
    worlds: int
    cards: list["OnCard"]

    @property
    def seconds(self) -> float:
        """Of all points together, were none of them done."""
        return sum(kind.points * (kind.cost.training + kind.cost.evaluation) for kind in self.kinds)

    @property
    def memory(self) -> float:
        """Most bytes of one worker."""
        return max(kind.cost.total for kind in self.kinds)

    @property
    def whole(self) -> bool:
        """Whether that counts activations, of every run."""
        return all(kind.cost.activations is not None for kind in self.kinds)


@dataclass(frozen=True)
class OnCard:
    """A whole sweep on one device.

    Attributes:
        name: of the device.
        lacking: points that do not fit it.
        overrides: what makes the others fit, of all of them together.
        seconds: of all that fit, one by one, with the reference passes.
        memory: most bytes of one of these.
    """

    name: str
    lacking: int
    overrides: tuple[str, ...]
    seconds: float
    memory: float


def counted(plan: Plan) -> Needs | None:
    """Count what a sweep takes; opens tokenizers and data, makes and loads nothing.

    Embedded worlds differ in their seeds, not in their sizes: a run in one is counted as the same in the shipped one.

    Returns:
        None where models or data are not on this machine.
    """
    found: dict[str, tuple[Experiment, Sizes, Rows]] = {}
    kinds = [_kind(point.experiment) for point in plan.points]
    for kind, point in dict(zip(kinds, plan.points)).items():
        facts = _facts(point.experiment)
        if facts is None:
            return None
        found[kind] = facts
    worlds = len({point.experiment.world for point in plan.points})
    card = here(plan.points[0].experiment.hardware.device_name)
    counts = Counter(kinds)
    own = [Kind(_title(one), counts[kind], price(one, sizes, rows, card)) for kind, (one, sizes, rows) in found.items()]
    large = any(sizes.policy >= LARGE for _, sizes, _ in found.values())
    return Needs(
        kinds=own,
        references=max(kind.cost.references for kind in own) * worlds,
        worlds=len(_unmade_worlds(plan)),
        cards=[_on_card(found, counts, one) for one in (dict.fromkeys([card, *CARDS]) if large else [])],
    )


def _on_card(found: dict[str, tuple[Experiment, Sizes, Rows]], counts: Counter[str], card: Card) -> OnCard:
    """The points that fit a device as they are or with the least change, and what they take together."""
    fits = {kind: arrangement(*facts, card) for kind, facts in found.items()}
    able = {kind: one for kind, one in fits.items() if one.fits}
    overrides = dict.fromkeys(override for one in able.values() for override in one.overrides)
    passes = max((one.cost.references for one in able.values()), default=0.0)
    return OnCard(
        name=card.name,
        lacking=sum(counts[kind] for kind in fits if kind not in able),
        overrides=tuple(overrides),
        seconds=passes + sum(counts[kind] * (one.cost.training + one.cost.evaluation) for kind, one in able.items()),
        memory=max((one.cost.total for one in able.values()), default=0.0),
    )


def _title(experiment: Experiment) -> str:
    """What tells this kind of point from the others: algorithm, data and references."""
    names = " + ".join(one.name for one in experiment.active_references) if experiment.penalized else "no reference"
    return f"{experiment.algorithm.name} on {experiment.data.name}, {names}"


def _unmade_worlds(plan: Plan) -> set[int]:
    from multiref_cli.world.worlds import missing

    firsts = {(point.experiment.world, point.experiment.algorithm.name): point.experiment for point in plan.points}
    return {world for (world, _), experiment in firsts.items() if missing(experiment)}


def _kind(experiment: Experiment) -> str:
    """What a run's cost depends on: everything but what is compared, and which references have a weight."""
    same = experiment.content("alpha", "beta", "seed", "regularizer", "world")
    return digest([same, [one.name for one in experiment.active_references], experiment.penalized])


def _facts(experiment: Experiment) -> tuple[Experiment, Sizes, Rows] | None:
    """A run's own sizes and rows; of models of the Hub that are not here what is known; None where nothing is."""
    from multiref_cli.runs.run import open_job
    from multiref_cli.tracking.progress import Silent
    from multiref_cli.world.worlds import missing

    experiment = replace(experiment, world=0)
    if missing(experiment):
        return None
    if any(absent(model) for model in opened(experiment)):
        sizes, rows = sizes_of(experiment), known_rows(experiment)
        return None if sizes is None or rows is None else (experiment, sizes, rows)
    try:
        seen = look(experiment)
        job = open_job(seen.experiment, Silent())
    except HubUnreachable:  # the run itself will say so
        return None
    sizes = sizes_of(job.experiment, job)
    return None if sizes is None else (job.experiment, sizes, rows_of(job, seen.times))
