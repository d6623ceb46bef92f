"""What a sweep will take: from its finished points where there are some, else counted from models and rows."""

import json
from dataclasses import dataclass
from typing import Any

from multiref_cli.errors import RequestError
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Plain, Plan, restore

# Without effect on what a run costs: points that differ in these alone are counted once.
_SAME_COST = ("alpha", "beta", "seed", "regularizer", "run", "tracking")


@dataclass(frozen=True)
class Needs:
    """What a whole sweep takes, counted from models and rows: an order of magnitude.

    Attributes:
        seconds: of all points together, were none of them done.
        references: seconds of the passes that fill the reference store; what is stored already is counted too.
        memory: most bytes of one worker, activations aside.
    """

    seconds: float
    references: float
    memory: float


def measured(plan: Plan, ledger: Ledger) -> list[float]:
    """Seconds of every point of a plan that this folder has finished; reads its events only."""
    names = {point.name for point in plan.points}
    return [e["seconds"] for e in ledger.events()[0] if e["kind"] == "done" and e["name"] in names]


def counted(plan: Plan) -> Needs | None:
    """Count what a sweep takes; opens tokenizers and data, makes and loads nothing.

    Returns:
        None where models or data are not on this machine.
    """
    kinds = [_kind(point.config) for point in plan.points]
    costs = {kind: _cost(point.config) for kind, point in dict(zip(kinds, plan.points)).items()}
    if any(cost is None for cost in costs.values()):
        return None
    seconds = sum(costs[kind].training + costs[kind].evaluation for kind in kinds)
    most = {name: max(getattr(cost, name) for cost in costs.values()) for name in ("references", "memory")}
    return Needs(seconds, **most)


def _kind(config: Plain) -> str:
    """What a run's cost depends on: everything but what is compared, and which references have a weight."""
    alpha = config["alpha"]
    active = [weight > 0 for weight in alpha] if isinstance(alpha, list) else [alpha == 0, alpha == 1]
    same = {key: value for key, value in config.items() if key not in _SAME_COST}
    return json.dumps([same, active, config["beta"] > 0], sort_keys=True)


def _cost(config: Plain) -> Any:
    """The cost of one run, None where something of it is not on this machine."""
    from multiref_cli.tracking.progress import Silent
    from multiref_cli.training.embedded import localized, missing
    from multiref_cli.training.job import prepare
    from multiref_cli.training.plan import cost

    typed = restore(config)
    if missing(typed):
        return None
    try:
        return cost(prepare(localized(typed, Silent()), typed))
    except RequestError:  # a Hub that cannot be reached; the run itself will say so
        return None
