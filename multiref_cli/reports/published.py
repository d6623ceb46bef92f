"""Results that are committed: a small CSV, whether new results agree with it, and the README's table made from it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.crossed import BySeed, estimate, welch
from multiref_cli.evaluation.statistics import Interval, holm, student_t_quantile
from multiref_cli.reports import metrics as names_of
from multiref_cli.reports.collect import CENTERED, Condition
from multiref_cli.reports.job_section import in_order, job_name, jobs, plus_minus, reference_value
from multiref_cli.reports.metrics import heading, scorers
from multiref_cli.reports.rivals import rivals_of
from multiref_cli.reports.table_file import pipe_table, read_table, write_table
from multiref_cli.reports.verdicts import compare_job

COLUMNS = (
    *("job", "condition", "role", "level", "estimator", "metric", "mean", "low", "high", "n"),
    *("commit", "hardware", "command"),
)
# What files of earlier versions lack, in whole or from `versions` on: without `degrees` their intervals are over seeds
# alone, with n - 1 degrees of freedom.
ADDED_COLUMNS = ("prompts", "degrees", "versions", "started_from")
# Columns of the README's tables, where a job has them.
README_METRICS = ("toy_gold", "reward_model", "reward_model/standardized", "toy_verifier", "kl/weighted")
# Of the two studies of a real language model: how pairs are ranked or sums are solved, and how far each reference is.
SMOLLM_METRICS = (
    *("reward_model", "ranking_accuracy", "preference_accuracy", "reasoning_gym"),
    *("kl/chat", "kl/instruct", "kl/sums", "kl/math", "kl/helpful"),
)
BEGIN, END = "<!-- results: made by multiref from {path}; do not edit -->", "<!-- results end -->"


@dataclass(frozen=True)
class Row:
    """One metric of one condition: mean and 95 % interval over n seeds (n prompts for untrained models).

    `prompts`: prompts that the interval generalizes over besides, 0 for none; `degrees`: of freedom of its t;
    `started_from`: sha256 of the policy, references, scorer and data that it rests on, by name.
    """

    job: str
    condition: str
    role: str
    level: str
    estimator: str
    metric: str
    interval: Interval
    commit: str
    hardware: str
    command: str
    prompts: int = 0
    degrees: float = math.nan
    versions: str = ""
    started_from: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes two rows speak of the same thing."""
        return (self.job, self.condition, self.level, self.estimator, self.metric)

    @property
    def error(self) -> tuple[float, float]:
        """Standard error and degrees of freedom, from the 95 % t interval; NaN where there is none."""
        degrees = self.interval.n - 1.0 if math.isnan(self.degrees) else self.degrees
        if math.isnan(self.interval.half_width) or degrees <= 0:
            return math.nan, math.nan
        return self.interval.half_width / student_t_quantile(0.975, degrees), degrees


@dataclass(frozen=True)
class Check:
    """A committed row beside the new one; `new` is None where the condition was not run.

    `p_value` of their difference, from the standard errors of both, is NaN where one of them has none.
    """

    committed: Row
    new: Row | None

    @property
    def p_value(self) -> float:
        """Two-sided, by Welch's t; 1 where both are the same number up to the digits of a text file."""
        if self.new is None:
            return math.nan
        difference = self.new.interval.mean - self.committed.interval.mean
        if abs(difference) <= 1e-5 * max(1e-3, abs(self.committed.interval.mean)):
            return math.nan if math.isnan(self.committed.error[0]) else 1.0
        return welch(difference, self.committed.error, self.new.error)

    @property
    def word(self) -> str:
        """agrees, differs, no interval, or not run."""
        if self.new is None:
            return "not run"
        if math.isnan(self.p_value):
            return "no interval"
        return "agrees" if self.p_value >= 0.05 else "**differs**"


@dataclass(frozen=True)
class Measured:
    """What a row is made from: values by seed (one without number for an untrained model); None: only its interval."""

    job: str
    condition: Condition
    label: str
    role: str
    metric: str
    values: BySeed | None


def measured(found: Sequence[Condition]) -> Iterator[Measured]:
    """What is worth committing of finished conditions: scores, objectives, distances; and untrained models."""
    for group in jobs(found):
        names, job = scorers(group), job_name(group[0])
        metrics = [*names_of.scores(group), *(f"{name}{CENTERED}" for name in names_of.centered(group))]
        metrics += [*names_of.objectives(group), *names_of.distances(group), *names_of.mixes(group)]
        metrics += names_of.rankings(group)
        first = group[0]
        for reference in first.first.references:
            for name in names:
                if reference_value(first, name, reference) is not None:
                    scores = next((run.per_prompt(f"reference/{name}/{reference}") for run in first.runs), None)
                    own = None if scores is None else {0: scores}
                    yield Measured(job, first, f"{reference}, untrained", "untrained", name, own)
        for condition in [*in_order(group), *rivals_of(group, found)]:
            for metric in metrics:
                values = condition.by_seed(metric)
                if values:
                    yield Measured(job, condition, condition.label, condition.role, metric, values)


def rows_of(found: Sequence[Condition], command: str = "") -> list[Row]:
    """What is worth committing of finished conditions: scores, objectives, distance; and untrained models.

    Args:
        found: conditions of one or several jobs.
        command: what made them; by default what the manifests say.
    """
    return [_row(one, command) for one in measured(found)]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows as CSV, numbers with six significant digits."""
    write_table(path, (*COLUMNS, *ADDED_COLUMNS), map(_written, rows))


def _written(row: Row) -> list[Any]:
    mean, low, high, n = row.interval
    numbers = [f"{value:.6g}" for value in (mean, low, high)]
    names = [row.job, row.condition, row.role, row.level, row.estimator, row.metric]
    added = [row.prompts, f"{row.degrees:.6g}", row.versions, row.started_from]
    return [*names, *numbers, n, row.commit, row.hardware, row.command, *added]


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote.

    Raises:
        RequestError: no such file, or another one.
    """
    known = (*COLUMNS, *ADDED_COLUMNS)
    found = read_table(Path(path), "CSV of committed results", COLUMNS, known[: len(COLUMNS) + 2], known)
    return [_parsed(row) for row in found]


def compare_with(committed: Sequence[Row], found: Sequence[Condition]) -> list[Check]:
    """Put every committed row beside what was found now."""
    now = {row.key: row for row in rows_of(found)}
    return [Check(row, now.get(row.key)) for row in committed]


@dataclass(frozen=True)
class Conclusion:
    """What the committed rows and the new ones say of one pair: above, below, or not significant."""

    job: str
    metric: str
    first: str
    second: str
    committed: str
    new: str


def conclusions(checks: Sequence[Check], found: Sequence[Condition]) -> list[Conclusion]:
    """Judge the comparisons of the report's conditions in both sets of rows, by the same test for both.

    Published rows have means and intervals but no pairs: both sides are judged as independent means (Welch's t, Holm
    over all comparisons), with less power than the report's own paired comparisons.
    """
    both = {check.committed.key: check for check in checks if check.new is not None}
    pairs = []
    for group in jobs(found):
        how = {condition.label: (condition.level, condition.estimator) for condition in group}
        for one in compare_job(group, scorers(group)):
            if not one.over_alpha:
                job = job_name(group[0])
                first, second = ((job, side, *how[side], one.metric) for side in (one.first, one.second))
                if first in both and second in both:
                    pairs.append((both[first], both[second]))
    old = _words([(a.committed, b.committed) for a, b in pairs])
    new = _words([(a.new, b.new) for a, b in pairs if a.new and b.new])
    rows = [(a.committed, b.committed) for a, b in pairs]
    return [Conclusion(a.job, a.metric, a.condition, b.condition, *words) for (a, b), *words in zip(rows, old, new)]


def verdict(checks: Sequence[Check], drawn: Sequence[Conclusion] = ()) -> str:
    """One sentence: whether the reproduction holds, by its means and by its conclusions.

    It holds where no mean differs after Holm's correction for all of them, and no significant difference of two
    conditions is significant the other way round.
    """
    compared = [check for check in checks if not math.isnan(check.p_value)]
    missing = sum(check.new is None for check in checks)
    more = f"; {missing} committed rows were not run" if missing else ""
    if not compared:
        return (
            f"Nothing can be said about the reproduction: no committed mean with an interval was measured again{more}."
        )
    adjusted = holm([check.p_value for check in compared])
    apart = [check for check, p in zip(compared, adjusted) if p < 0.05]
    agree = sum(check.word == "agrees" for check in compared)
    reversed_ = [one for one in drawn if {one.committed, one.new} == {"above", "below"}]
    text = "The reproduction does not hold" if apart or reversed_ else "The reproduction holds"
    text += f": {agree} of {len(compared)} means agree within the standard errors of both (95 % would by chance)"
    text += f", {len(apart)} differ after Holm's correction"
    if apart:
        text += f" ({', '.join(f'{c.committed.condition} on {c.committed.metric}' for c in apart[:5])}"
        text += f" and {len(apart) - 5} more)" if len(apart) > 5 else ")"
    if drawn:
        same = sum(one.committed == one.new for one in drawn)
        text += f"; {same} of {len(drawn)} conclusions are the same, {len(reversed_)} reversed"
    return f"{text}{more}."


def _words(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    """above, below or not significant for each pair, corrected for all."""
    gaps = [a.interval.mean - b.interval.mean for a, b in pairs]
    adjusted = holm([welch(gap, a.error, b.error) for gap, (a, b) in zip(gaps, pairs)])
    return [("above" if gap > 0 else "below") if p < 0.05 else "not significant" for gap, p in zip(gaps, adjusted)]


def metrics_of(committed: Path) -> tuple[str, ...]:
    """The columns that the README's table of a committed CSV has."""
    return SMOLLM_METRICS if committed.name.startswith("smollm") else README_METRICS


def readme_table(rows: Sequence[Row], metrics: Sequence[str] = ()) -> str:
    """The README's results as Markdown: one table a job, with commit, command and hardware under it.

    Args:
        rows: committed rows.
        metrics: columns to show, where a job has them; by default every metric of its rows.
    """
    parts = []
    for job in dict.fromkeys(row.job for row in rows):
        own = [row for row in rows if row.job == job]
        shown = [m for m in (metrics or dict.fromkeys(r.metric for r in own)) if any(r.metric == m for r in own)]
        names = [heading(metric) for metric in shown]
        parts.append(f"**{job}**")
        headers, lines = ["condition", "level, estimator", "seeds", *names], []
        for condition, level, estimator, role in dict.fromkeys(
            (r.condition, r.level, r.estimator, r.role) for r in own
        ):
            same = [r for r in own if (r.condition, r.level, r.estimator) == (condition, level, estimator)]
            by_metric = {r.metric: r.interval for r in same}
            how = "–" if role == "untrained" else level + ("" if estimator == "–" else f", {estimator}")
            seeds = "–" if role == "untrained" else str(max(r.interval.n for r in same))
            cells = [plus_minus(by_metric.get(metric)) for metric in shown]
            lines.append([condition, how, seeds, *cells])
        parts.append(pipe_table(headers, lines, right=range(2, len(headers))))
        facts = [sorted({getattr(row, name) for row in own}) for name in ("commit", "hardware", "command")]
        commit, hardware, command = (", ".join(one) for one in facts)
        bounds = "± is half of a 95 % t interval over seeds, for untrained models of a bootstrap interval over prompts"
        if any(row.prompts for row in own):
            bounds = "± is half of a 95 % interval over seeds and prompts, for untrained models over prompts"
        parts.append(f"Commit `{commit}`, `{command}`, on {hardware}. {bounds}.")
    return "\n\n".join(parts)


def update_readme(readme: Path, committed: Path, name: str, metrics: Sequence[str] = ()) -> bool:
    """Replace the results in a README by those of the committed CSV.

    Args:
        readme: holds the begin and end markers (`BEGIN` with the path, `END`).
        committed: the CSV.
        name: its path as the marker names it.
        metrics: see `readme_table`.

    Returns:
        Whether anything changed.

    Raises:
        RequestError: the markers are missing.
    """
    return put_results(readme, name, readme_table(read_rows(committed), metrics))


def put_results(readme: Path, name: str, body: str) -> bool:
    """Put a text between the marks of a published file; returns whether anything changed.

    Raises:
        RequestError: the markers are missing.
    """
    text, begin = readme.read_text(), BEGIN.format(path=name)
    if begin not in text or END not in text[text.index(begin) :]:
        raise RequestError(f"{readme} has no results to replace: put '{begin}' and '{END}' where they belong.")
    start = text.index(begin) + len(begin)
    end = text.index(END, start)
    new = f"{text[:start]}\n{body}\n{text[end:]}"
    if new == text:
        return False
    readme.write_text(new)
    return True


def origin(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Where a run comes from: commit, hardware, versions and started_from, each as one text; from its manifest."""
    hardware = manifest.get("hardware") or {}
    machine = ", ".join(hardware.get("gpus") or []) or str(hardware.get("processor") or hardware.get("machine"))
    parts = [machine, hardware.get("cpu_capability"), f"{hardware.get('cores', '?')} cores"]
    references: dict[str, str] = manifest.get("references") or {}
    sums = {"policy": manifest.get("policy"), **references, "scorer": manifest.get("scorer")}
    sums["data"] = (manifest.get("data") or {}).get("sha256")
    return {
        "commit": str((manifest.get("git") or {}).get("commit") or "installed package")[:12],
        "hardware": ", ".join(part for part in parts if part),
        "versions": ", ".join(f"{name} {version}" for name, version in (manifest.get("versions") or {}).items()),
        "started_from": ", ".join(f"{name} {str(sha256)[:12]}" for name, sha256 in sums.items() if sha256),
    }


def _row(one: Measured, command: str) -> Row:
    condition, untrained = one.condition, one.role == "untrained"
    manifest = condition.first.manifest
    found = estimate(one.values) if one.values is not None else None
    interval = found.interval if found else None
    if untrained:
        interval = reference_value(condition, one.metric, one.label.removesuffix(", untrained"))
    assert interval is not None
    return Row(
        job=one.job,
        condition=one.label,
        role=one.role,
        level="–" if untrained else condition.level,
        estimator="–" if untrained else condition.estimator,
        metric=one.metric,
        interval=interval,
        command=command or str(manifest.get("command", "unknown")),
        prompts=found.prompts if found else 0,
        degrees=found.degrees if found else math.nan,
        **origin(manifest),
    )


def _parsed(row: dict[str, str]) -> Row:
    interval = Interval(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))
    names: dict[str, Any] = {name: row[name] for name in (*COLUMNS[:6], *COLUMNS[-3:])}
    names |= {name: row.get(name) or "" for name in ADDED_COLUMNS[2:]}
    prompts, degrees = int(row.get("prompts") or 0), float(row.get("degrees") or "nan")
    return Row(interval=interval, prompts=prompts, degrees=degrees, **names)
