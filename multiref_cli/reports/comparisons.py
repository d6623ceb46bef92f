"""The comparisons of a job: which pairs are told apart in one sentence a metric, and all of them in one table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multiref_cli.reports.metrics import heading
from multiref_cli.reports.page import Page
from multiref_cli.reports.verdicts import Verdict
from multiref_cli.reports.wording import signed

# More pairs than this are counted; named are then those alone that differ in the regularizer, up to the same number.
_NAMED, _NAMED_EQUAL = 8, 4


@dataclass(frozen=True)
class Judged:
    """A comparison as it is published; `p` is corrected for all of its job."""

    job: str
    metric: str
    kind: str
    over_alpha: bool
    first: str
    second: str
    difference: float
    verdict: str


def judged(found: Sequence[Judged], metric: str) -> str:
    """Which pairs are told apart on a metric, averaged over alpha where there are several."""
    own = [one for one in found if one.metric == metric]
    if not own:
        return "Which differences are significant stands in the report behind these numbers."
    over = [one for one in own if one.over_alpha]
    shown, which = (over, "averaged over α, ") if over else (own, "")
    told = [one for one in shown if one.verdict in ("above", "below")]
    equal = [one for one in shown if one.verdict == "not significant"]
    unknown = len(shown) - len(told) - len(equal)
    parts = [
        f"significant: {_pairs(told, lambda one: f'{one.first} {one.verdict} {one.second} ({one.difference:+.2g})')}",
        f"not told apart: {_pairs(equal, lambda one: f'{one.first} and {one.second}', _NAMED_EQUAL)}",
        *([f"{unknown} cannot be judged"] if unknown else []),
    ]
    return f"Corrected for all comparisons of the job, {which}{'; '.join(parts)}.".replace("-", "−")


def _pairs(found: Sequence[Judged], words: Callable[[Judged], str], most: int = _NAMED) -> str:
    if len(found) <= most:
        return ", ".join(words(one) for one in found) or "none"
    named = [one for one in found if one.kind == "regularizer"]
    named = named if len(named) <= most else []
    rest = f"{len(found) - len(named)} {'more ' if named else ''}pairs"
    return ", ".join([*(words(one) for one in named), rest])


def as_judged(job: str, one: Verdict) -> Judged:
    """A comparison as it is published."""
    names = (one.first, one.second)
    return Judged(job, one.metric, one.kind, one.over_alpha, *names, one.comparison.difference.mean, _word(one))


def _word(verdict: Verdict) -> str:
    return verdict.word().strip("*")


def add_comparisons(page: Page, verdicts: Sequence[Verdict], name: str, seeds: int, confidence: float) -> None:
    """Add a sentence a metric and the table of all comparisons of a job, one family.

    Args:
        page: to add to.
        verdicts: of the whole job.
        name: of the table.
        seeds: the most that a condition has.
        confidence: of the intervals.
    """
    metrics = list(dict.fromkeys(one.metric for one in verdicts))
    if seeds < 2:
        page.text(
            "There is one seed: differences between conditions cannot be told from differences between seeds, so "
            "nothing can be said about significance."
        )
    else:
        told = [as_judged("", one) for one in verdicts]
        page.text("\n".join(f"- {heading(metric)}: {judged(told, metric)}" for metric in metrics))
    headers, rows = _table(verdicts, several=len(metrics) > 1)
    page.table(headers, rows, _caption(verdicts, confidence), name=name)


def _table(verdicts: Sequence[Verdict], several: bool) -> tuple[list[str], list[list[Any]]]:
    """The verdict beside what it is of; columns in which nothing is known are left out."""
    headers = ["first", "is", "second", "difference", "corrected p", "p", "effect", "P(first > second)", "α", "kind"]
    rows = [_row(one) for one in verdicts]
    if several:
        headers.insert(0, "on")
        rows = [[heading(one.metric), *row] for one, row in zip(verdicts, rows)]
    known = [i for i in range(len(headers)) if any(row[i] != "–" for row in rows)]
    return [headers[i] for i in known], [[row[i] for i in known] for row in rows]


def _row(verdict: Verdict) -> list[Any]:
    one = verdict.comparison
    values = (verdict.adjusted_p, one.p_value, one.effect, one.improvement)
    numbers = [f"{value:.2g}".replace("-", "−").replace("nan", "–") for value in values]
    over = "mean" if verdict.over_alpha else "each"
    return [verdict.first, verdict.word(), verdict.second, signed(one.difference), *numbers, over, verdict.kind]


def _caption(verdicts: Sequence[Verdict], confidence: float) -> str:
    family = sum(not math.isnan(one.adjusted_p) for one in verdicts)
    significant = sum(_word(one) in ("above", "below") for one in verdicts)
    prompts = any(one.comparison.prompts for one in verdicts)
    if not family:
        return "Differences of one seed."
    return (
        f"{significant} of {len(verdicts)} differences are significant after Holm's correction for all {family} "
        "comparisons that this job's conditions and scores allow: one family. Differences are paired by "
        f"seed{' and prompt' if prompts else ''}, with {confidence:.0%} intervals for "
        f"{'other seeds and prompts' if prompts else 'other seeds on these prompts'}. The spread over "
        "seeds is the residual that all conditions with a penalty share once what a seed does to all of them is taken "
        "away; comparisons with β = 0, and pairs that vary more than the others (F test, .10), have their own. Effect: "
        "the difference in units of the seed spread (pooled standard deviation over seeds, Hedges' factor). P: share "
        "of pairs of runs in which the first is higher."
    )
