"""Rungs of a search: how well a trial must do at a few of its steps for its training to go on.

They are written before a trial starts, from trials that are finished, and read by its training loop: where a trial ends
does not depend on when somebody looks.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multiref_cli.files import read_object, write_json

# In the folder of a run that was pruned: the step, the value of its curve there, and what it had to reach.
PRUNED = "pruned.json"
# The mean over this last part of the steps so far is what a curve is worth.
_WINDOW = 0.25


@dataclass(frozen=True)
class Rungs:
    """What a curve must reach.

    Attributes:
        metric: of metrics.jsonl, higher is better.
        least: (share of all steps, least value there) pairs, by share.
    """

    metric: str
    least: tuple[tuple[float, float], ...]

    def missed(self, rows: Iterable[Mapping[str, Any]], step: int, total: int) -> "Missed | None":
        """What a run missed at a step; None where no rung is there, it is reached, or the curve has no value."""
        for share, least in self.least:
            if step == rung_step(share, total):
                value = curve_value(rows, self.metric, step)
                if value is not None and value < least:
                    return Missed(step, total, self.metric, value, least)
        return None


@dataclass(frozen=True)
class Missed:
    """A rung that a run did not reach."""

    step: int
    total: int
    metric: str
    value: float
    least: float

    def __str__(self) -> str:
        return (
            f"pruned after step {self.step} of {self.total}: {self.metric} is {self.value:.4g}, below {self.least:.4g} "
            "of earlier trials"
        )


class Pruned(Exception):
    """A training that stops at a rung of its search."""

    def __init__(self, missed: Missed) -> None:
        super().__init__(str(missed))
        self.missed = missed


def rung_step(share: float, total: int) -> int:
    """The step of a rung."""
    return max(1, math.ceil(share * total))


def curve_value(rows: Iterable[Mapping[str, Any]], metric: str, step: int) -> float | None:
    """The mean of a training metric over the last quarter of the steps up to one; None where it has none there."""
    first = (1 - _WINDOW) * step
    found = [row[metric] for row in rows if first < row.get("step", 0) <= step and row.get(metric) is not None]
    return math.fsum(found) / len(found) if found else None


def write_rungs(folder: Path, rungs: Rungs) -> None:
    """Leave rungs for a run beside its folder, which need not be there."""
    write_json(_place(folder), asdict(rungs))


def read_rungs(folder: Path) -> Rungs | None:
    """The rungs that were left for a run; None for a run that is no trial."""
    content = read_object(_place(folder))
    if content is None:
        return None
    return Rungs(content["metric"], tuple((share, least) for share, least in content["least"]))


def write_pruned(folder: Path, missed: Missed) -> None:
    """Keep in a run's folder why it was pruned."""
    write_json(folder / PRUNED, asdict(missed))


def read_pruned(folder: Path) -> dict[str, Any] | None:
    """Why a run was pruned; None where it was not."""
    return read_object(folder / PRUNED)


def _place(folder: Path) -> Path:
    return folder.parent / ".sweep" / "rungs" / f"{folder.name}.json"
