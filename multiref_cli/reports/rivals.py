"""One mix against its rivals: every condition of a job and what it has to beat, ranked on the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiref_cli.config.algorithms import DpoSettings, OnlineSettings, UntrainedSettings
from multiref_cli.evaluation.crossed import BySeed, compare, estimate
from multiref_cli.evaluation.statistics import Interval, holm
from multiref_cli.reports import style
from multiref_cli.reports.collect import Condition
from multiref_cli.reports.job_section import CONFIDENCE, in_order, job_name, stems
from multiref_cli.reports.metrics import heading, most_trusted, scorers
from multiref_cli.reports.page import Page
from multiref_cli.reports.verdicts import Verdict, series, side_label
from multiref_cli.reports.wording import plus_minus, signed
from multiref_cli.types import Axes, Figure

# Role -> what the ranking calls it, and its color.
KINDS = {
    "grid": ("mix of references", style.PALETTE[0]),
    "single": ("one reference alone", style.PALETTE[1]),
    "beta0": ("no penalty", style.PALETTE[4]),
    "rival": ("rival", style.PALETTE[2]),
    "untrained": ("untrained reference", style.MUTED),
}
# Marks what was chosen by the score that it is ranked by.
_CHOSEN = " \u2020"


@dataclass(frozen=True)
class Entry:
    """A line of the ranking; `condition` is None for a reference itself, `values` are by seed, one number a prompt."""

    label: str
    role: str
    condition: Condition | None
    values: BySeed

    @property
    def interval(self) -> Interval:
        """Mean and interval over seeds and prompts, as far as both are known."""
        return estimate(self.values, CONFIDENCE).interval

    @property
    def fixed(self) -> bool:
        """Whether no seed of a training changes it."""
        return self.condition is None or not self.condition.experiment.algorithm.trains


def rivals_of(group: Sequence[Condition], found: Sequence[Condition]) -> list[Condition]:
    """The rivals of a job's conditions: scored on the same prompts by the same scorers, beside the same references."""
    first = group[0]
    names = first.first.references
    return [
        one
        for one in found
        if one.role == "rival" and one.arena == first.arena and one.first.references[: len(names)] == names
    ]


def ranked(group: Sequence[Condition], rivals: Sequence[Condition], metric: str) -> list[Entry]:
    """Everything that a job can be compared with, highest mean first."""
    conditions = [*in_order(group), *rivals]
    found = [
        Entry(one.label + (_CHOSEN if _chosen_by(one, metric) else ""), one.role, one, values)
        for one in conditions
        if (values := one.by_seed(metric))
    ]
    for reference in group[0].first.references:
        own = [run.per_prompt(f"reference/{metric}/{reference}") for one in group for run in one.runs]
        scores = next((one for one in own if one is not None), None)
        if scores is not None:
            found.append(Entry(f"{reference}, untrained", "untrained", None, {0: scores}))
    return sorted(found, key=lambda one: -one.interval.mean)


def compare_rivals(
    group: Sequence[Condition], rivals: Sequence[Condition], metrics: Sequence[str]
) -> list[tuple[str, Verdict]]:
    """Every line over alpha (its mean) against the rivals and the untrained, by metric: one family under Holm.

    A reference alone is judged among the job's own comparisons, see `judged_before`. Differences are paired by prompt,
    and by seed where both sides have been trained. What was not trained is the same at every seed: the spread over
    seeds is then that of the mix alone.
    """
    made = []
    for metric in metrics:
        entries = [one for one in ranked(group, rivals, metric) if one.role in ("rival", "untrained")]
        for line in series(group):
            first = line.by_seed(metric)
            for entry in entries:
                second = {seed: next(iter(entry.values.values())) for seed in first} if entry.fixed else entry.values
                if set(first) & set(second):
                    made.append((metric, line, entry, compare(first, second, confidence=CONFIDENCE)))
    adjusted = holm([one.p_value for *_, one in made])
    return [
        (metric, Verdict(metric, side_label(line), entry.label, "rival", len(line.conditions) > 1, one, p))
        for (metric, line, entry, one), p in zip(made, adjusted)
    ]


def judged_before(group: Sequence[Condition], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Of a job's own comparisons those of its lines over alpha with what is ranked beside rivals, named as there."""
    lines = {side_label(line) for line in series(group)}
    others = {one.label for one in group if one.role in ("single", "beta0")}
    return [one for one in verdicts if one.first in lines and one.second in others]


def add_rivals(
    page: Page,
    groups: Sequence[tuple[Sequence[Condition], Sequence[Verdict]]],
    found: Sequence[Condition],
    left_out: Sequence[str],
) -> list[tuple[str, Verdict]]:
    """Add the ranking of every job that has rivals, with one figure of all; returns the comparisons by job.

    Args:
        page: to add to.
        groups: the jobs, each with its own comparisons.
        found: all conditions, rivals among them.
        left_out: sentences on rivals that are not there.
    """
    own = {id(group): verdicts for group, verdicts in groups}
    jobs = [(group, rivals) for group, _ in groups if (rivals := rivals_of(group, found)) and scorers(group)]
    if not jobs:
        return []
    page.text("## One mix against its rivals")
    page.figure("rivals", figure(jobs), _FIGURE)
    if left_out:
        page.text("Not among the rivals:\n\n" + "\n".join(f"- {text}." for text in left_out))
    verdicts = []
    for (group, rivals), stem in zip(jobs, stems([group for group, _ in jobs])):
        made = compare_rivals(group, rivals, scorers(group))
        page.text(f"### {job_name(group[0])}")
        shown = [*(one for _, one in made), *judged_before(group, own[id(group)])]
        _add_table(page, group, rivals, shown, f"{stem}-rivals".strip("-"))
        page.text("\n".join(f"- {one.sentence(CONFIDENCE)}" for _, one in made))
        verdicts += [(job_name(group[0]), one) for _, one in made]
    return verdicts


_FIGURE = (
    f"Means with {CONFIDENCE:.0%} intervals over seeds and prompts (over prompts for what is not trained), a panel a "
    "job, highest first, on the prompts of the evaluation. \u2020: chosen among candidates by the score itself."
)


def _add_table(
    page: Page, group: Sequence[Condition], rivals: Sequence[Condition], verdicts: Sequence[Verdict], name: str
) -> None:
    references, mix = group[0].first.references, side_label(series(group)[0])
    main = most_trusted(scorers(group))
    more = [metric for metric in scorers(group) if metric != main]
    judged = {one.second: one for one in verdicts if one.metric == main and one.first == mix}
    rows = []
    for rank, entry in enumerate(ranked(group, rivals, main), start=1):
        own = entry.condition
        others = [plus_minus(_interval(group, entry, metric)) for metric in more]
        far = [_distance(entry, reference) for reference in references]
        verdict = judged.get(entry.label)
        compared = ["–", "–"] if verdict is None else [signed(verdict.comparison.difference), verdict.word(CONFIDENCE)]
        seeds = "–" if entry.fixed else len(own.runs) if own else "–"
        row = [rank, entry.label, KINDS[entry.role][0], seeds, plus_minus(entry.interval), *others, *far]
        rows.append([*row, *costs(entry), *compared])
    headers = [
        "rank",
        "condition",
        "what",
        "seeds",
        *map(heading, [main, *more]),
        *(f"KL to {one}" for one in references),
    ]
    headers += ["responses trained on", "drawn an answer", "models an answer", f"{mix} minus it", "the mix is"]
    caption = (
        f"Ranked by {heading(main)}. Differences are paired by prompt and seed, with {CONFIDENCE:.0%} intervals; "
        "above and below: after Holm's correction, for rivals and the untrained over all comparisons of mixes with "
        "them on every score, for a reference alone among the job's own comparisons. \u2264: an upper bound (best of "
        "N). Responses trained on: pairs count two; stored samples of references "
        "count as others. \u2020: chosen among candidates by the score itself, with the solution at hand."
    )
    page.table(headers, rows, caption, name=name)


def costs(entry: Entry) -> list[int]:
    """Responses trained on, candidates drawn for an answer, and models that compute each of its tokens."""
    if entry.condition is None:
        return [0, 1, 1]
    experiment, algorithm = entry.condition.experiment, entry.condition.experiment.algorithm
    if isinstance(algorithm, UntrainedSettings):
        mixed = algorithm.sampler == "mixed"
        return [0, algorithm.best_of, len(experiment.active_references) if mixed else 1]
    steps = (entry.condition.first.history[0] or [0])[-1]
    each = 2 * algorithm.batch_size if isinstance(algorithm, DpoSettings) else algorithm.batch_size
    if isinstance(algorithm, OnlineSettings):
        count, size = len(experiment.active_references), experiment.rollout.group_size
        each *= size // count * count if experiment.reads_samples else size
        steps = -(-steps // algorithm.inner_iterations)
    return [steps * each, 1, 1]


def _interval(group: Sequence[Condition], entry: Entry, metric: str) -> Interval | None:
    if entry.condition is not None:
        return entry.condition.interval(metric)
    same = [one for one in ranked(group, (), metric) if one.label == entry.label]
    return same[0].interval if same else None


def _distance(entry: Entry, reference: str) -> str:
    """The KL of whole responses to a reference, in nats."""
    if entry.condition is None:
        return "0" if entry.label == f"{reference}, untrained" else "–"
    found = entry.condition.interval(f"kl/{reference}")
    exact = found is not None and found.half_width < 1e-5  # to the very model that was sampled
    shown = f"{found.mean:.3g}" if found is not None and exact else plus_minus(found)
    algorithm = entry.condition.experiment.algorithm
    bound = isinstance(algorithm, UntrainedSettings) and algorithm.best_of > 1 and shown != "–"
    return f"≤ {shown}" if bound else shown


def _chosen_by(condition: Condition, metric: str) -> bool:
    """Whether the answers were chosen by the very metric."""
    experiment = condition.experiment
    algorithm = experiment.algorithm
    if not isinstance(algorithm, UntrainedSettings) or algorithm.best_of == 1 or algorithm.selector is not None:
        return False
    return experiment.reward is not None and experiment.reward.name == metric


def figure(jobs: Sequence[tuple[Sequence[Condition], Sequence[Condition]]]) -> Figure:
    """Every job in a panel: means with intervals, highest on top, colored by what they are."""
    named = [(group, rivals, most_trusted(scorers(group))) for group, rivals in jobs]
    return drawn([(job_name(group[0]), metric, ranked(group, rivals, metric)) for group, rivals, metric in named])


def drawn(panels: Sequence[tuple[str, str, Sequence[Entry]]]) -> Figure:
    """Draw one panel a job: its name, the score that it is ranked by, its ranking."""
    tall = max(len(entries) for *_, entries in panels)
    made, grid = style.new_figure(len(panels), 1, 7.6, 0.3 + len(panels) * (0.8 + 0.24 * tall), squeeze=False)
    seen: dict[str, Any] = {}
    with style.applied():
        for (name, metric, entries), axes in zip(panels, np.ravel(grid)):
            seen |= _panel(axes, entries)
            style.title(axes, name)
            axes.set_xlabel(heading(metric))
        made.legend(list(seen.values()), list(seen), loc="outside lower center", ncols=len(seen))
    return made


def _panel(axes: Axes, entries: Sequence[Entry]) -> dict[str, Any]:
    """Draw one job; what each kind of entry looks like."""
    seen: dict[str, Any] = {}
    for height, entry in enumerate(reversed(entries)):
        words, color = KINDS[entry.role]
        mean, low, high, _ = entry.interval
        bars = [[0.0], [0.0]] if np.isnan(low) else [[mean - low], [high - mean]]
        marker = "D" if entry.role == "grid" else "o"
        seen[words] = axes.errorbar([mean], [height], xerr=bars, capsize=2, elinewidth=1.2, fmt=marker, color=color)
    axes.set_yticks(range(len(entries)), [entry.label for entry in reversed(entries)])
    axes.grid(axis="y", visible=False)
    return seen
