"""What a sweep will take, from its finished points where there are some; `sweeps.cost` counts it without any."""

from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Plan

# Seconds of one core that an embedded world takes: worlds 1 to 4 took 480 to 610 on a machine that had other work too.
MAKING = 500.0


def measured(plan: Plan, ledger: Ledger) -> list[float]:
    """Seconds of every point of a plan that this folder has finished; reads its events only."""
    names = {point.name for point in plan.points}
    return [e["seconds"] for e in ledger.events()[0] if e["kind"] == "done" and e["name"] in names]
