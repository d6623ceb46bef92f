"""Looks of a sweep with `seeds=auto`: what is undecided, of which conditions, and when the rest was decided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multiref_cli.errors import RunError
from multiref_cli.reports.collect import conditions, read_run
from multiref_cli.reports.job_section import compared, jobs
from multiref_cli.reports.page import Page
from multiref_cli.reports.verdicts import Verdict
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.search import tuned_keys


@dataclass(frozen=True)
class Undecided:
    """How many comparisons of a sweep there are, how many are undecided, and the hashes of their conditions."""

    comparisons: int
    undecided: int
    conditions: frozenset[str]


def add_looks(page: Page, families: Sequence[Sequence[Verdict]]) -> None:
    """Add a section on when each comparison of a sweep with `seeds=auto` was decided; nothing for other sweeps."""
    looked = [(one, one.looked) for family in families for one in family if one.looked is not None]
    if not looked:
        return
    counts: dict[str, int] = {}
    for _, look in looked:
        counts[str(look)] = counts.get(str(look), 0) + 1
    page.section("When each comparison was decided")
    page.text(
        "After each look only conditions with an undecided comparison were given more seeds. p values are sequential: "
        "all looks together spend .05 (Lan and DeMets, O'Brien and Fleming's boundary), Holm's correction over the "
        "family, so that something decided is false in at most 5 % of sweeps. Intervals are of the seeds that there "
        "are and are not corrected for the looks."
    )
    page.text("\n".join(f"- {text}: {count} of {len(looked)} comparisons." for text, count in sorted(counts.items())))
    rows = [
        [one.metric, one.first, one.second, look.look or "undecided", look.seeds, _p(one.adjusted_p)]
        for one, look in looked
    ]
    headers = ["metric", "first", "second", "look", "seeds", "sequential p, corrected"]
    page.table(headers, rows, "Every comparison, and the look that decided it.", "looks")


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"


def undecided(sweep: Path) -> Undecided:
    """Look at the finished points of a sweep's plan, as its report does: each job is one family.

    Args:
        sweep: folder of a sweep whose sweep.yaml holds `looks`.
    """
    ledger, runs = Ledger(sweep), []
    for folder in ledger.run_folders():
        try:
            runs.append(read_run(folder))
        except RunError:  # the report names it
            continue
    found = conditions(runs, tuned=tuned_keys(sweep), looks=tuple(ledger.description()["looks"]))
    made = [one for job in jobs(found) for one in compared(job)]
    left = [one for one in made if one.looked is not None and one.looked.look == 0]
    return Undecided(len(made), len(left), frozenset().union(*(one.members for one in left)))
