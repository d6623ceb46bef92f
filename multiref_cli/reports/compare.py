"""Results that are committed: a small CSV, whether new results agree with it, and the README's table made from it."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports.collect import Condition, scorers
from multiref_cli.reports.comparison import in_order, job_name, jobs, plus_minus, reference_value

COLUMNS = (
    *("job", "condition", "role", "level", "estimator", "metric", "mean", "low", "high", "n"),
    *("commit", "hardware", "command"),
)
BEGIN, END = "<!-- results: made by multiref from {path}; do not edit -->", "<!-- results end -->"


@dataclass(frozen=True)
class Row:
    """One metric of one condition: mean and 95 % interval over n seeds (over prompts for untrained models)."""

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

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes two rows speak of the same thing."""
        return (self.job, self.condition, self.level, self.estimator, self.metric)


@dataclass(frozen=True)
class Check:
    """A committed row beside the new one; `new` is None where the condition was not run."""

    committed: Row
    new: Interval | None

    @property
    def word(self) -> str:
        """within, outside, or not run."""
        if self.new is None:
            return "not run"
        low, high = self.committed.interval.low, self.committed.interval.high
        if math.isnan(low):
            return "no interval"
        # The last digit of a text file is not a disagreement.
        slack = 1e-6 * max(1.0, abs(self.committed.interval.mean))
        return "within" if low - slack <= self.new.mean <= high + slack else "**outside**"


def rows_of(found: Sequence[Condition], command: str = "") -> list[Row]:
    """What is worth committing of finished conditions: scores, objectives, distance; and untrained models.

    Args:
        found: conditions of one or several jobs.
        command: what made them; by default what the manifests say.
    """
    rows = []
    for group in jobs(found):
        names = scorers(group)
        metrics = [*names, *(f"objective/{name}" for name in names), "kl/mixed", "preference_accuracy"]
        first = group[0]
        for reference in first.first.references:
            for name in names:
                value = reference_value(first, name, reference)
                if value is not None:
                    rows.append(_row(first, f"{reference}, untrained", "untrained", name, value, command))
        for condition in in_order(group):
            for metric in metrics:
                interval = condition.interval(metric)
                if interval is not None:
                    rows.append(_row(condition, condition.label, condition.role, metric, interval, command))
    return rows


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows as CSV, numbers with six significant digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            mean, low, high, n = row.interval
            numbers = [f"{value:.6g}" for value in (mean, low, high)]
            names = [row.job, row.condition, row.role, row.level, row.estimator, row.metric]
            writer.writerow([*names, *numbers, n, row.commit, row.hardware, row.command])


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote.

    Raises:
        RequestError: no such file, or another one.
    """
    if not Path(path).is_file():
        raise RequestError(f"{path} does not exist; give a CSV of committed results.")
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise RequestError(f"{path} is no CSV of committed results: its columns must be {', '.join(COLUMNS)}.")
        return [_parsed(row) for row in reader]


def compare_with(committed: Sequence[Row], found: Sequence[Condition]) -> list[Check]:
    """Put every committed row beside what was found now."""
    now = {row.key: row.interval for row in rows_of(found)}
    return [Check(row, now.get(row.key)) for row in committed]


def verdict(checks: Sequence[Check]) -> str:
    """One sentence: how many new means lie within the committed intervals, and which do not."""
    compared = [check for check in checks if check.new is not None and check.word != "no interval"]
    outside = [check for check in compared if check.word == "**outside**"]
    missing = sum(check.new is None for check in checks)
    text = f"{len(compared) - len(outside)} of {len(compared)} means lie within the committed intervals"
    if outside:
        named = [f"{c.committed.condition} on {c.committed.metric}" for c in outside[:5]]
        text += f"; outside: {', '.join(named)}" + (f" and {len(outside) - 5} more" if len(outside) > 5 else "")
    return text + (f"; {missing} committed rows were not run" if missing else "") + "."


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
        names = [metric.replace("objective/", "J, ").replace("kl/mixed", "KL to mixed") for metric in shown]
        parts.append(f"**{job}**")
        lines = ["| condition | level, estimator | seeds | " + " | ".join(names) + " |"]
        lines.append("|---|---|---:|" + "---:|" * len(names))
        for condition, level, estimator, role in dict.fromkeys(
            (r.condition, r.level, r.estimator, r.role) for r in own
        ):
            same = [r for r in own if (r.condition, r.level, r.estimator) == (condition, level, estimator)]
            by_metric = {r.metric: r.interval for r in same}
            how = "–" if role == "untrained" else level + ("" if estimator == "–" else f", {estimator}")
            seeds = "–" if role == "untrained" else str(max(r.interval.n for r in same))
            cells = [plus_minus(by_metric.get(metric)) for metric in shown]
            lines.append(f"| {condition} | {how} | {seeds} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
        facts = [sorted({getattr(row, name) for row in own}) for name in ("commit", "hardware", "command")]
        commit, hardware, command = (", ".join(one) for one in facts)
        bounds = "± is half of a 95 % t interval over seeds, for untrained models of a bootstrap interval over prompts"
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
    text, begin = readme.read_text(), BEGIN.format(path=name)
    if begin not in text or END not in text[text.index(begin) :]:
        raise RequestError(f"{readme} has no results to replace: put '{begin}' and '{END}' where they belong.")
    start = text.index(begin) + len(begin)
    end = text.index(END, start)
    new = f"{text[:start]}\n{readme_table(read_rows(committed), metrics)}\n{text[end:]}"
    if new == text:
        return False
    readme.write_text(new)
    return True


def _row(condition: Condition, label: str, role: str, metric: str, interval: Interval, command: str) -> Row:
    manifest = condition.first.manifest
    hardware = manifest.get("hardware") or {}
    machine = ", ".join(hardware.get("gpus") or []) or str(hardware.get("processor") or hardware.get("machine"))
    return Row(
        job=job_name(condition),
        condition=label,
        role=role,
        level="–" if role == "untrained" else condition.level,
        estimator="–" if role == "untrained" else condition.estimator,
        metric=metric,
        interval=interval,
        commit=str((manifest.get("git") or {}).get("commit") or "installed package")[:12],
        hardware=f"{machine}, {hardware.get('cores', '?')} cores",
        command=command or str(manifest.get("command", "unknown")),
    )


def _parsed(row: dict[str, str]) -> Row:
    interval = Interval(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))
    names = {name: row[name] for name in ("job", "condition", "role", "level", "estimator", "metric")}
    return Row(**names, interval=interval, commit=row["commit"], hardware=row["hardware"], command=row["command"])
