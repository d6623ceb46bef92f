"""The first screen of a report: what was asked, one figure, what came out in one sentence, a table of ten rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiref_cli.evaluation.crossed import estimate
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports import style
from multiref_cli.reports.collect import KL_WEIGHTED, Condition
from multiref_cli.reports.job_section import against_alpha, job_name, reference_value, start_value
from multiref_cli.reports.limits import point_limits
from multiref_cli.reports.metrics import NOISE, distances, heading, is_noise, ranking_metric, rankings, scores
from multiref_cli.reports.page import Page
from multiref_cli.reports.parts import SHORT
from multiref_cli.reports.varied import named, varied
from multiref_cli.reports.verdicts import Series, Verdict, series, side_label
from multiref_cli.reports.wording import plus_minus, signed
from multiref_cli.types import Axes, Figure

_KINDS = ("several references", "one reference alone", "no penalty", "untrained", "rival")
# A figure of more panels is no overview.
_PANELS, _ALPHA_PANELS = 4, 3


@dataclass(frozen=True)
class Arm:
    """What the first screen ranks: a line over alpha (its mean), a reference alone, no penalty, an untrained model.

    Attributes:
        label: what it is called in comparisons.
        kind: one of several references, one reference alone, no penalty, untrained, rival.
        score: mean and interval.
        distance: Σ α KL; None where it has no meaning.
        verdict: against the best reference alone under the same score and beta, of the job's one family.
    """

    label: str
    kind: str
    score: Interval
    distance: Interval | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Job:
    """Conditions that are compared, under a title that no other job of the page has, with their comparisons."""

    title: str
    found: Sequence[Condition]
    verdicts: Sequence[Verdict]
    rivals: Sequence[Condition] = ()

    @property
    def metric(self) -> str | None:
        """What its conditions are ranked by: the most trusted of what scored them."""
        return ranking_metric(self.found)


def add_overview(page: Page, jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Add the first screen of the jobs that have scores; returns headers and rows of its table for a terminal."""
    jobs = [job for job in jobs if job.found[0].experiment.algorithm.trains] or jobs  # the others are yardsticks
    ranked = [(job, arms(job)) for job in jobs]
    ranked = [(job, own) for job, own in ranked if own]
    page.text(question([job for job, _ in ranked] or jobs))
    if not ranked:
        return [], []
    page.text("\n\n".join(answers(ranked)))
    each = max(1, SHORT // len(ranked))
    shown = [(job, chosen(own, each)) for job, own in ranked[:SHORT]]
    _add_figure(page, shown)
    headers, rows = _add_table(page, shown, len(ranked), sum(len(own) for _, own in ranked))
    return headers, [[str(c).strip("*") for c in row] for row in rows]


def _add_figure(page: Page, shown: Sequence[tuple[Job, Sequence[Arm]]]) -> None:
    """The score over alpha of the only job, where that is a picture of few panels; else the rows of the table."""
    job = shown[0][0]
    settings = {line.conditions[0].setting for line in series(job.found) if len(line.conditions) > 1}
    if len(shown) == 1 and job.metric is not None and len(settings) <= _ALPHA_PANELS:
        name, drawn, caption = against_alpha(list(job.found), job.metric)
        if drawn is not None:
            page.figure(name, drawn, caption)
            return
    page.figure("overview", draw(shown[:_PANELS]), _caption(shown))


def question(jobs: Sequence[Job]) -> str:
    """What was asked, from what differs."""
    found = [condition for job in jobs for condition in job.found]
    seeds = {run.seed for condition in found for run in condition.runs}
    names = dict.fromkeys(job.title for job in jobs)
    what = next(iter(names)) if len(names) == 1 else f"{len(names)} jobs"
    roles = {condition.role for condition in found if condition.regularized}
    if sum(len(condition.runs) for condition in found) == 1:
        text = "How did this run end?"
    elif {"single", "grid"} <= roles:
        text = (
            "Does a policy end better regularized towards several references together than towards one of them alone?"
        )
    elif found[0].regularized:
        text = "What do regularized policies end at?"
    else:
        text = "What does training end at?"
    differing = named(varied(found))
    how = f"varied: {differing}; " if differing else ""
    return f"*{text}* {what}; {how}{len(seeds)} seed{'s' * (len(seeds) != 1)}."


def _short(jobs: Sequence[Job]) -> dict[str, str]:
    """Title -> the algorithm alone, where that tells the jobs apart."""
    algorithms = [job.found[0].experiment.algorithm.title for job in jobs]
    apart = len(set(algorithms)) == len(jobs)
    return {job.title: name if apart else job.title for job, name in zip(jobs, algorithms)}


def arms(job: Job) -> list[Arm]:
    """All arms of a job, the highest score first; none without a score."""
    metric, found = job.metric, job.found
    if metric is None:
        return []
    lines = [*series(found), *(Series(c.label, (c,)) for c in found if c.role == "grid" and c.experiment.routes)]
    made = [_arm(line, side_label(line), _KINDS[0], metric, job.verdicts) for line in lines]
    for role, kind in (("single", _KINDS[1]), ("beta0", _KINDS[2])):
        made += [_arm(Series(c.label, (c,)), c.label, kind, metric, ()) for c in found if c.role == role]
    made += [_arm(Series(c.label, (c,)), c.label, _KINDS[4], metric, ()) for c in job.rivals]
    if not found[0].regularized:
        made = [_arm(Series(c.label, (c,)), c.label, _KINDS[2], metric, ()) for c in found]
    start = found[0].experiment.start
    for reference in found[0].first.references:
        value = reference_value(found[0], metric, reference)
        if value is not None:
            label = f"{reference}, untrained" + ", the start" * (reference == start)
            made.append(Arm(label, _KINDS[3], value))
    return sorted((one for one in made if one is not None), key=lambda one: -one.score.mean)


def _arm(line: Series, label: str, kind: str, metric: str, verdicts: Sequence[Verdict]) -> Arm | None:
    values, far = line.by_seed(metric), line.by_seed(KL_WEIGHTED)
    if not values:
        return None
    own = [v for v in verdicts if v.metric == metric and v.first == label and v.kind == "single reference"]
    against = min(own, key=lambda one: one.comparison.difference.mean, default=None)
    distance = estimate(far).interval if far else None
    return Arm(label, kind, estimate(values).interval, distance, against)


def chosen(found: Sequence[Arm], most: int) -> list[Arm]:
    """The arms that fit: the best of each kind, then the highest; in order of the score."""
    kinds = [next((one for one in found if one.kind == kind), None) for kind in _KINDS]
    start = [one for one in found if one.label.endswith(", the start")]
    wanted = [one for one in (*kinds[:2], *start, *kinds[2:], *found) if one is not None]
    kept = list({one.label: one for one in wanted}.values())[:most]
    return sorted(kept, key=lambda one: -one.score.mean)


def answers(ranked: Sequence[tuple[Job, list[Arm]]]) -> list[str]:
    """What came out: of one or two jobs each, of more how often."""
    if len(ranked) <= 2:
        short = _short([job for job, _ in ranked])
        return [(f"{short[job.title]}: " if len(ranked) > 1 else "") + _answer(job, own) for job, own in ranked]
    best = [next((one for one in own if one.kind == _KINDS[0] and one.verdict), None) for _, own in ranked]
    words = [one.verdict.word().strip("*") for one in best if one is not None and one.verdict is not None]
    counts = ", ".join(f"{word} in {words.count(word)}" for word in dict.fromkeys(words))
    if not words:
        return [f"{len(ranked)} jobs; none of them compares several references with one alone."]
    return [
        f"In {len(words)} of {len(ranked)} jobs several references are compared with the best of them alone: {counts} "
        "(corrected within each job)."
    ]


def _answer(job: Job, found: Sequence[Arm]) -> str:
    trained = [one for one in found if one.kind != _KINDS[3]]
    best = next((one for one in trained if one.kind == _KINDS[0]), trained[0])
    place = trained.index(best) + 1
    rank = "highest" if place == 1 else f"number {place}"
    text = f"**{best.label}** ends {rank} of {len(trained)} on {heading(job.metric or '')}, {plus_minus(best.score)}"
    start = next((one for one in found if one.label.endswith(", the start")), None)
    text += f" (before training {plus_minus(start.score)})" if start is not None else ""
    if place > 1:
        text += f"; highest is **{trained[0].label}**, {plus_minus(trained[0].score)}"
    if best.verdict is not None:
        text += f"; against {best.verdict.second} {signed(best.verdict.comparison.difference)}, {_judged(best.verdict)}"
    return f"{text}."


def _judged(verdict: Verdict) -> str:
    """How a difference is to be read."""
    if verdict.comparison.difference.n < 2:
        return "one seed: it cannot be told from a difference between seeds"
    word = verdict.word().strip("*")
    if word in ("above", "below"):
        return f"significantly {word} (corrected p = {verdict.adjusted_p:.2g})"
    return f"{word} (corrected p = {verdict.adjusted_p:.2g})" if word == "not significant" else word


def _caption(shown: Sequence[tuple[Job, Sequence[Arm]]]) -> str:
    more = f" The first {_PANELS} of {len(shown)} jobs." if len(shown) > _PANELS else ""
    return f"Means with 95 % intervals; lines over α as their mean. Dotted: the best reference alone.{more}"


def draw(shown: Sequence[tuple[Job, Sequence[Arm]]]) -> Figure:
    """The rows of the table as points with their intervals, one panel a job."""
    heights = [max(2, len(own)) for _, own in shown]
    figure, grid = style.new_figure(
        len(shown), 1, 6.6, 0.21 * sum(heights) + 0.56 * len(shown), squeeze=False, height_ratios=heights
    )
    short = _short([job for job, _ in shown])
    with style.applied():
        for (job, own), axes in zip(shown, grid.flat):
            _panel(axes, own)
            axes.set_xlabel(heading(job.metric or ""))
            if len(shown) > 1:
                style.title(axes, short[job.title])
    return figure


def _panel(axes: Axes, found: Sequence[Arm]) -> None:
    own = (*(style.series(i) for i in range(3)), style.SeriesStyle(style.MUTED, "D", "-"), style.series(3))
    looks = dict(zip(_KINDS, own))
    for height, one in enumerate(reversed(found)):
        half = 0.0 if np.isnan(one.score.half_width) else one.score.half_width
        look = looks[one.kind].line(linestyle="none", elinewidth=1.4)
        axes.errorbar([one.score.mean], [height], xerr=[half], **look)
    alone = [one.score.mean for one in found if one.kind == _KINDS[1]]
    if alone:
        axes.axvline(max(alone), color=style.series(1).color, linestyle=(0, (1, 1.5)), linewidth=1, zorder=1)
    axes.set_yticks(range(len(found)), [one.label for one in reversed(found)])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.grid(axis="y", visible=False)
    limits = point_limits([one.score.mean for one in found], [one.score.half_width for one in found])
    if limits is None:
        return
    axes.set_xlim(*limits)
    for height, one in enumerate(reversed(found)):  # what lies outside is said at the edge
        if one.score.mean < limits[0]:
            _note(axes, f"← {one.score.mean:.3g}", limits[0], height, 1)
        elif one.score.mean > limits[1]:
            _note(axes, f"{one.score.mean:.3g} →", limits[1], height, -1)


def _note(axes: Axes, text: str, edge: float, height: int, inwards: int) -> None:
    """A small text at the left or right edge, above its line."""
    axes.annotate(
        *(text, (edge, height)),
        xytext=(3 * inwards, 2),
        textcoords="offset points",
        ha="left" if inwards > 0 else "right",
        fontsize="small",
        color=style.MUTED,
    )


def _add_table(
    page: Page, shown: Sequence[tuple[Job, Sequence[Arm]]], jobs: int, count: int
) -> tuple[list[str], list[list[Any]]]:
    several = len(shown) > 1
    metrics = list(dict.fromkeys(heading(job.metric or "") for job, _ in shown))
    score = metrics[0] if len(metrics) == 1 else "score"
    headers = [*(["job"] * several), "", "seeds", score, heading(KL_WEIGHTED), "above the best alone", "verdict"]
    rows: list[list[Any]] = []
    short = _short([job for job, _ in shown])
    for job, own in shown:
        for one in own:
            verdict = one.verdict
            told = [signed(verdict.comparison.difference), verdict.word()] if verdict is not None else ["–", "–"]
            name = [short[job.title]] if several else []
            n = "–" if one.kind == _KINDS[3] else one.score.n
            rows.append([*name, one.label, n, plus_minus(one.score), plus_minus(one.distance), *told])
    left = count - len(rows)
    caption = "The best alone: of the references alone under the same score and β, chosen after the fact."
    caption += f" {left} more rows under results." if left else ""
    caption += f" {jobs - len(shown)} more jobs below." if jobs > len(shown) else ""
    page.table(headers, rows, caption, name="overview")
    return headers, rows


def add_outcome(page: Page, condition: Condition, drawn: Figure | None) -> None:
    """Add the first screen of one run: what it was, how it ended, its curves, its main numbers.

    Args:
        page: to add to.
        condition: of the one run.
        drawn: its learning curves.
    """
    metric = ranking_metric([condition])
    page.text(question([Job(job_name(condition), [condition], [])]))
    if metric is not None:
        page.text(_ended(condition, metric))
    if drawn is not None:
        page.figure("learning-curves", drawn, "Metrics of every optimizer step.")
    names = [*scores([condition]), *rankings([condition]), *distances([condition])][:SHORT]
    found = [(name, condition.interval(name)) for name in names]
    rows = [[heading(name), plus_minus(one) + "†" * is_noise(condition, name)] for name, one in found]
    noise = f" {NOISE}" if any(is_noise(condition, name) for name in names) else ""
    if rows:
        page.table(["", "mean"], rows, f"One seed; ± over prompts.{noise}", name="overview")


def _ended(condition: Condition, metric: str) -> str:
    start = start_value(condition, metric)
    text = f"{heading(metric)} ends at {plus_minus(condition.interval(metric))}"
    text += f", before training {plus_minus(start)}" if start is not None else ""
    far = condition.interval(KL_WEIGHTED)
    return text + (f"; {heading(KL_WEIGHTED)} {plus_minus(far)} nats a response" if far is not None else "") + "."
