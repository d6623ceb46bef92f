"""What a sweep will take: from its finished points where there are some, else counted from models and rows."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from multiref_cli.config.plain import digest
from multiref_cli.config.schema import Experiment
from multiref_cli.errors import HubUnreachable
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Plan

if TYPE_CHECKING:
    from multiref_cli.runs.forecast import Cost


# Seconds of one core that an embedded world takes: worlds 1 to 4 took 480 to 610 on a machine that had other work too.
MAKING = 500.0


@dataclass(frozen=True)
class Needs:
    """What a whole sweep takes, counted from models and rows: an order of magnitude.

    Attributes:
        seconds: of all points together, were none of them done.
        references: seconds of the passes that fill the reference store; what is stored already is counted too.
        worlds: embedded worlds of which something must be made first; each takes about `MAKING` seconds of one core.
        memory: most bytes of one worker.
        whole: whether that counts activations, of every run.
    """

    seconds: float
    references: float
    worlds: int
    memory: float
    whole: bool


def measured(plan: Plan, ledger: Ledger) -> list[float]:
    """Seconds of every point of a plan that this folder has finished; reads its events only."""
    names = {point.name for point in plan.points}
    return [e["seconds"] for e in ledger.events()[0] if e["kind"] == "done" and e["name"] in names]


def counted(plan: Plan) -> Needs | None:
    """Count what a sweep takes; opens tokenizers and data, makes and loads nothing.

    Embedded worlds differ in their seeds, not in their sizes: a run in one is counted as the same in the shipped one.

    Returns:
        None where models or data are not on this machine.
    """
    kinds = [_kind(point.experiment) for point in plan.points]
    costs: dict[str, Cost] = {}
    for kind, point in dict(zip(kinds, plan.points)).items():
        cost = _cost(point.experiment)
        if cost is None:
            return None
        costs[kind] = cost
    return Needs(
        seconds=sum(costs[kind].training + costs[kind].evaluation for kind in kinds),
        references=max(cost.references for cost in costs.values()) * len({p.experiment.world for p in plan.points}),
        worlds=len(_unmade_worlds(plan)),
        memory=max(cost.total for cost in costs.values()),
        whole=all(cost.activations is not None for cost in costs.values()),
    )


def _unmade_worlds(plan: Plan) -> set[int]:
    from multiref_cli.world.worlds import missing

    firsts = {(point.experiment.world, point.experiment.algorithm.name): point.experiment for point in plan.points}
    return {world for (world, _), experiment in firsts.items() if missing(experiment)}


def _kind(experiment: Experiment) -> str:
    """What a run's cost depends on: everything but what is compared, and which references have a weight."""
    same = experiment.content("alpha", "beta", "seed", "regularizer", "world")
    return digest([same, [one.name for one in experiment.active_references], experiment.penalized])


def _cost(experiment: Experiment) -> "Cost | None":
    """The cost of one run, None where something of it is not on this machine."""
    from multiref_cli.runs.forecast import cost
    from multiref_cli.runs.run import open_job
    from multiref_cli.tracking.progress import Silent
    from multiref_cli.world.worlds import missing

    experiment = replace(experiment, world=0)
    if missing(experiment):
        return None
    try:
        return cost(open_job(experiment, Silent(), looking=True))
    except HubUnreachable:  # the run itself will say so
        return None
