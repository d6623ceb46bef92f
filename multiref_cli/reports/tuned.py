"""Does a ranking change when every arm has its own best settings? Published rows, tuned beside hand-set."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multiref_cli.config.plain import from_plain
from multiref_cli.errors import RequestError
from multiref_cli.files import read_lines, read_object
from multiref_cli.reports.comparisons import Judged
from multiref_cli.reports.metrics import heading
from multiref_cli.reports.published import Row
from multiref_cli.reports.search import at_end, best_of
from multiref_cli.reports.table_file import pipe_table, read_table, write_table
from multiref_cli.sweeps.search import FOLDER, SETTINGS, TRIALS
from multiref_cli.sweeps.space import Axis

COLUMNS = ("arm", "trials", "metric", "value", "key", "best", "range", "end")
TOLD = ("above", "below")
# What is said of a pair whose sides are named in the other order.
_TURNED = {"above": "below", "below": "above"}


@dataclass(frozen=True)
class Found:
    """What a search found for one key of one arm.

    Attributes:
        arm: its name in the plan.
        trials: how many it had.
        metric: what was maximized.
        value: of the best trial, on the tuning rows and seeds.
        key: a tuned key.
        best: its value in the best trial.
        range: what it was searched over.
        end: lower or upper where the best value lies at an end of that range, else nothing.
    """

    arm: str
    trials: int
    metric: str
    value: float
    key: str
    best: str
    range: str
    end: str


def found_in(sweep: Path) -> list[Found]:
    """What the search of a sweep found, arm by arm; arms without a finished trial are left out.

    Args:
        sweep: folder of a sweep with a search.

    Raises:
        RequestError: the sweep has none.
    """
    settings = read_object(sweep / FOLDER / SETTINGS)
    if settings is None:
        raise RequestError(f"{sweep} has no search: give the folder of a sweep with search.space.KEY=RANGE.")
    trials = read_lines(sweep / FOLDER / TRIALS)
    axes = [from_plain(Axis, one) for one in settings["space"]]
    found = []
    for arm in settings["arms"]:
        best = best_of(arm, trials)
        if best is None:
            continue
        count = sum(one["arm"] == arm["id"] for one in trials)
        for axis in (one for one in axes if one.key in best["params"]):
            value = best["params"][axis.key]
            own = (axis.key, value, str(axis), at_end(axis, value))
            found.append(Found(arm["name"], count, best["metric"], float(best["value"]), *own))
    return found


def write_found(found: Sequence[Found], path: Path) -> None:
    """Write what was found: one row an arm and key, values with six significant digits."""
    rows = (
        (one.arm, one.trials, one.metric, f"{one.value:.6g}", one.key, one.best, one.range, one.end) for one in found
    )
    write_table(path, COLUMNS, rows)


def read_found(path: Path) -> list[Found]:
    """Read what `write_found` wrote.

    Raises:
        RequestError: no such file, or another one.
    """
    return [
        Found(row["arm"], int(row["trials"]), row["metric"], float(row["value"]), *(row[c] for c in COLUMNS[4:]))
        for row in read_table(path, "file of a search", COLUMNS)
    ]


def search_table(found: Sequence[Found]) -> str:
    """Every arm's best settings as a Markdown table; a value at the end of its range is marked."""
    keys = list(dict.fromkeys(one.key for one in found))
    headers, rows = ["arm", "trials", *keys, "best value, on the tuning rows"], []
    for arm in dict.fromkeys(one.arm for one in found):
        own = {one.key: one for one in found if one.arm == arm}
        first = next(iter(own.values()))
        cells = [f"{own[k].best}{f' ({own[k].end} end)' if own[k].end else ''}" if k in own else "–" for k in keys]
        value = f"{heading(first.metric)} {first.value:.3g}"
        rows.append([arm, str(first.trials), *cells, value])
    ranges = ", ".join(dict.fromkeys(f"{one.key} {one.range}" for one in found))
    return f"{pipe_table(headers, rows, right=range(1, len(headers)))}\n\nSearched: {ranges}."


def arm_of(condition: str) -> str:
    """A condition's name without the settings that a search chooses: rkl α=0.5 β=0.038 is the arm rkl α=0.5."""
    return re.sub(r" (β|[a-z_.]*learning_rate)=\S+", "", condition)


def ranking(rows: Sequence[Row], job: str, metric: str, arms: Sequence[str]) -> list[str]:
    """Some arms of a job by their mean of a metric, the highest first; each where it was trained."""
    means = {
        arm_of(row.condition): row.interval.mean
        for row in rows
        if (row.job, row.metric) == (job, metric) and row.role in ("grid", "single")
    }
    return sorted((arm for arm in arms if arm in means), key=lambda arm: -means[arm])


def kept(before: Sequence[Judged], after: Sequence[Judged], found: Sequence[Found]) -> str:
    """How many of the differences at hand-set settings are left when every arm is tuned.

    Args:
        before: comparisons at one hand-set setting of each divergence, corrected within them.
        after: at each arm's own best.
        found: what the search found; a job is judged by the metric that was maximized in it.
    """
    pairs = [both for job, metric in _judged(after, found) for both in _both(job, metric, before, after).values()]
    told = [(old, now) for old, now in pairs if old in TOLD]
    held = sum(old == now for old, now in told)
    trials = {one.trials for one in found}
    each = f"{min(trials)}" if len(trials) == 1 else f"{min(trials)} to {max(trials)}"
    keys = " and ".join(dict.fromkeys(one.key for one in found))
    return (
        f"With {keys} of each arm from {each} trials of its own, on other seeds and rows, {held} of {len(told)} "
        f"differences that are significant at hand-set settings hold{'s' * (held == 1)}."
    )


def change(
    hand: Sequence[Row], tuned: Sequence[Row], before: Sequence[Judged], after: Sequence[Judged], found: Sequence[Found]
) -> str:
    """Whether the ranking of each job changes when every arm is tuned, and which pairs are still told apart.

    Args:
        hand: rows at one hand-set setting of each divergence.
        tuned: rows at each arm's own best.
        before, after, found: see `kept`.
    """
    told = [_of_job(job, metric, hand, tuned, before, after) for job, metric in _judged(after, found)]
    return " ".join([kept(before, after, found), *told])


def _judged(after: Sequence[Judged], found: Sequence[Found]) -> list[tuple[str, str]]:
    """Every job with the metric that was maximized in it."""
    sought = {one.metric for one in found}
    return list(dict.fromkeys((one.job, one.metric) for one in after if one.metric in sought))


def _of_job(
    job: str, metric: str, hand: Sequence[Row], tuned: Sequence[Row], before: Sequence[Judged], after: Sequence[Judged]
) -> str:
    every = dict.fromkeys(arm_of(row.condition) for row in tuned if row.job == job and row.role in ("grid", "single"))
    first = ranking(hand, job, metric, list(every))
    second = ranking(tuned, job, metric, first)
    new = [arm for arm in every if arm not in first]
    pairs = _both(job, metric, before, after)
    lost = [pair for pair, (old, now) in pairs.items() if old in TOLD and now not in TOLD]
    same = [pair for pair, (old, now) in pairs.items() if old in TOLD and old == now]
    turned = [pair for pair, (old, now) in pairs.items() if {old, now} == set(TOLD)]
    gained = [pair for pair, (old, now) in pairs.items() if old not in TOLD and now in TOLD]
    order = "stays the same" if first == second else f"becomes {' > '.join(second)}"
    told = [
        f"{words}: {len(own)}{_named(own, pairs)}"
        for words, own in (("still so", same), ("turned round", turned), ("told apart no more", lost))
    ]
    also = f" Told apart only now: {len(gained)}{_named(gained, pairs)}." if gained else ""
    return (
        f"{job}, by {heading(metric)}: at hand-set settings {' > '.join(first)}; with each at its own best the order "
        f"{order}. Of {len(same) + len(turned) + len(lost)} pairs told apart at hand-set settings, {'; '.join(told)}."
        f"{also}" + (f" Tuned alone: {', '.join(new)}." if new else "")
    )


def _both(
    job: str, metric: str, before: Sequence[Judged], after: Sequence[Judged]
) -> dict[tuple[str, str], tuple[str, str]]:
    """Verdicts of the pairs that both sides compare, before and after tuning; either may have a pair turned round."""
    old, now = (
        {
            (arm_of(one.first), arm_of(one.second)): one.verdict
            for one in found
            if (one.job, one.metric, one.over_alpha) == (job, metric, False)
        }
        for found in (before, after)
    )
    turned = {(second, first): _TURNED.get(verdict, verdict) for (first, second), verdict in old.items()}
    known = turned | old
    return {pair: (known[pair], verdict) for pair, verdict in now.items() if pair in known}


def _named(pairs: Sequence[tuple[str, str]], verdicts: dict[tuple[str, str], tuple[str, str]]) -> str:
    if not pairs:
        return ""
    words = []
    for first, second in pairs:
        old, now = verdicts[first, second]
        words.append(f"{first} {now if now in TOLD else old} {second}")
    return f" ({'; '.join(words)})"
