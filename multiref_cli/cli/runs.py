"""`multiref runs`: what is in a folder of runs."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from multiref_cli.cli import display
from multiref_cli.config.where import where

if TYPE_CHECKING:
    from multiref_cli.reports.overview import Found


def runs(folder: str, filter_text: str | None) -> None:
    """Print runs and sweeps of a folder; with a filter the runs that pass it, those of sweeps among them.

    Raises:
        RequestError: no such folder, or no such filter.
    """
    wanted = where(filter_text) if filter_text is not None else None
    from multiref_cli.reports.overview import matching, overview

    found = overview(Path(folder), points=wanted is not None)
    kept = found if wanted is None else matching(found, wanted)
    if kept:
        headers = ["folder", "state", "done", "condition", "seed", "metric", "score", "age"]
        rows = [
            [one.path, one.state, one.progress, one.condition, one.seed, one.metric, _score(one), _age(one.updated)]
            for one in kept
        ]
        display.table("", headers, rows)
    counts = {kind: sum(one.kind == kind for one in kept) for kind in ("run", "sweep")}
    shown = [f"{count} {kind}{'s' * (count != 1)}" for kind, count in counts.items() if count]
    of = f" of {len(found)}" if wanted is not None else ""
    display.line(f"{' and '.join(shown) or 'no runs'}{of} in {folder}")


def _score(one: "Found") -> float | str | None:
    if one.spread is None:
        return one.score
    low, high = (f"{value:.4g}" for value in one.spread)
    return low if low == high else f"{low} to {high}"


def _age(then: float) -> str:
    minutes = max(0.0, time.time() - then) / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f} d"
