"""Scores behind published numbers, prompt by prompt: every mean and interval follows from them again."""

import csv
import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.crossed import BySeed, estimate
from multiref_cli.files import write_bytes
from multiref_cli.reports.collect import Condition
from multiref_cli.reports.contest import ANSWERS, answers_table, read_answers
from multiref_cli.reports.published import (
    BEGIN,
    END,
    Row,
    measured,
    metrics_of,
    read_rows,
    readme_table,
    write_rows,
)
from multiref_cli.reports.regime_words import markdown, read_regimes
from multiref_cli.reports.tuned import read_found, search_table
from multiref_cli.reports.worlds import read_claims, worlds_table

SCORES = "scores.csv.gz"
WORLDS, CELLS, SEARCH = "worlds.csv", "cells.csv", "search.csv"
COLUMNS = ("job", "condition", "level", "estimator", "seed", "metric", "values")


def write_scores(found: Sequence[Condition], path: Path) -> None:
    """Write scores.csv.gz: a row a condition, seed and metric, its values prompt by prompt (or a run's mean alone)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in measured(found):
        untrained = one.role == "untrained"
        how = ("–", "–") if untrained else (one.condition.level, one.condition.estimator)
        names = [one.job, one.label, *how]
        for seed, values in (one.values or {}).items():
            shown = " ".join(f"{value:.6g}" for value in np.atleast_1d(values))
            writer.writerow([*names, "" if untrained else seed, one.metric, shown])
    # Without a time in its header the same scores make the same file.
    write_bytes(path, gzip.compress(text.getvalue().encode(), mtime=0))


def keep_scores(report: Path, target: Path, metrics: Sequence[str]) -> None:
    """Write target.csv and target.scores.csv.gz from a report's: the rows of some metrics, where all of them are large.

    Args:
        report: folder with summary.csv and scores.csv.gz.
        target: path without an ending.
        metrics: to keep.
    """
    write_rows([row for row in read_rows(report / "summary.csv") if row.metric in metrics], Path(f"{target}.csv"))
    csv.field_size_limit(10**8)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    with gzip.open(report / SCORES, "rt", newline="") as file:
        rows = csv.reader(file)
        place = COLUMNS.index("metric")
        writer.writerows(row for row in rows if row[place] in (*metrics, COLUMNS[place]))
    write_bytes(Path(f"{target}.{SCORES}"), gzip.compress(text.getvalue().encode(), mtime=0))


def read_scores(path: Path) -> dict[tuple[str, ...], BySeed]:
    """Read what `write_scores` wrote, by the key of the row that it belongs to.

    Raises:
        RequestError: no such file, or another one.
    """
    if not path.is_file():
        raise RequestError(f"{path} does not exist: the scores must lie beside the CSV that they belong to.")
    csv.field_size_limit(10**8)
    with gzip.open(path, "rt", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise RequestError(f"{path} is no file of scores: its columns must be {', '.join(COLUMNS)}.")
        found: dict[tuple[str, ...], dict[int, np.ndarray]] = {}
        for row in reader:
            key = tuple(row[name] for name in ("job", "condition", "level", "estimator", "metric"))
            found.setdefault(key, {})[int(row["seed"] or 0)] = np.array(row["values"].split(), dtype=np.float64)
    return {**found}


def check_readme(readme: Path) -> list[str]:
    """Make every results table of a page, and of the pages that it links to, again from its committed CSV, and the CSV
    from the scores beside it.

    Returns:
        A sentence for each table and each CSV.

    Raises:
        RequestError: no such file, one without results, or one whose CSV is missing.
    """
    if not readme.is_file():
        raise RequestError(f"{readme} does not exist; give a README or a CSV of committed results.")
    linked = [readme.parent / name for name in re.findall(r"\]\(([^):]+\.md)\)", readme.read_text())]
    said = [one for page in dict.fromkeys((readme, *linked)) if page.is_file() for one in _check_page(page)]
    if not said:
        raise RequestError(f"{readme} has no results between marks; give a README or a CSV of committed results.")
    return said


def _check_page(page: Path) -> list[str]:
    text, said = page.read_text(), []
    for name in re.findall(re.escape(BEGIN).replace(r"\{path\}", "(.+?)"), text):
        path, shown = _published(page, name), text.split(BEGIN.format(path=name), 1)[1].split(END, 1)[0].strip()
        if not path.is_file() and not shown:
            said.append(f"Nothing is published as {name} yet.")
            continue
        verb = "is" if shown == _table(path).strip() else "is not"
        said.append(f"The table of {name} in {page.name} {verb} what the file says.")
        rows = path.with_name(path.name.replace(f".{CELLS}", ".csv").replace(f".{ANSWERS}", ".csv"))
        if path.name == WORLDS:  # it holds the difference of every world, and reading it computes all else from them
            said.append(f"All intervals over worlds of {path.name} follow from its differences.")
        elif path.name.endswith(f".{SEARCH}"):  # of trials, which are not published
            continue
        elif _scores_of(rows).is_file():
            said.append(check_rows(rows))
        else:
            said.append(f"{rows.name} has no scores beside it: its numbers cannot be computed again.")
    return said


def _table(path: Path) -> str:
    """A committed file as its page shows it."""
    if path.name == WORLDS:
        return worlds_table(read_claims(path))
    if path.name.endswith(f".{CELLS}"):
        return markdown(read_regimes(path))
    if path.name.endswith(f".{SEARCH}"):
        return search_table(read_found(path))
    if path.name.endswith(f".{ANSWERS}"):
        return answers_table(read_answers(path))
    return readme_table(read_rows(path), metrics_of(path))


def _published(page: Path, name: str) -> Path:
    """A published file as a page names it: from the page's folder, or from one above it, as pages in a checkout do."""
    found = (folder / name for folder in page.resolve().parents)
    return next((path for path in found if path.is_file()), page.parent / name)


def _scores_of(committed: Path) -> Path:
    own = committed.with_suffix(f".{SCORES}")
    return own if own.is_file() else committed.with_name(SCORES)


def check_rows(committed: Path) -> str:
    """Compute every number of a committed CSV again from the scores beside it: one sentence says whether they agree.

    Args:
        committed: NAME.csv; its scores are NAME.scores.csv.gz, or scores.csv.gz in the same folder.

    Raises:
        RequestError: one of the files is missing, or is another one.
    """
    rows = read_rows(committed)
    path = _scores_of(committed)
    scores = read_scores(path)
    known = [row for row in rows if row.key in scores]
    wrong = [f"{row.condition} on {row.metric}" for row in known if not _agrees(row, scores[row.key])]
    unknown = len(rows) - len(known)
    more = f"; {unknown} rows have no scores there" if unknown else ""
    if not wrong and known:
        return f"All {len(known)} means and intervals of {committed.name} follow from {path.name}{more}."
    named = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
    count = f"{len(wrong)} of {len(known)} rows of {committed.name} do not follow from {path.name}"
    return f"{count}: {named or 'none'}{more}."


def _agrees(row: Row, values: BySeed) -> bool:
    """Whether mean and bounds are those of the scores, to the six digits of the CSV."""
    found = estimate(values).interval
    new, old = np.array(found[:3]), np.array(row.interval[:3])
    scale = max(1e-9, float(np.nanmax(np.abs(old))))
    n = row.interval.n if row.role != "untrained" else 1
    return bool(np.allclose(new, old, rtol=0, atol=2e-5 * scale, equal_nan=True)) and found.n == n
