"""What a study hands over: numbers, tables and charts as plain data, drawn and printed elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Metrics = dict[str, dict[str, float]]
RATE_TOLERANCE = 0.25  # how far from a rate the ends of a slope's interval may lie for the rate to be called seen


@dataclass(frozen=True)
class Line:
    """A series: x and y (N,), optionally low and high (N,); `kind` is measured, predicted, bound or shape.

    The label stands at the right end of the line, or with `at_peak` where it is farthest from zero.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "measured"
    series: int = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    at_peak: bool = False


@dataclass(frozen=True)
class Range:
    """One row of a range panel: smallest, 5 %, middle, 95 % and largest of something, five numbers."""

    label: str
    points: tuple[float, float, float, float, float]
    series: int = 0


@dataclass(frozen=True)
class Panel:
    """One set of axes with lines, or with ranges."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    x_scale: str = "linear"
    y_scale: str = "linear"
    note: str = ""
    y_limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """A figure: panels in rows of `columns`, and a caption that says which theorem it shows and what to see."""

    name: str
    caption: str
    panels: list[Panel]
    columns: int = 2


@dataclass(frozen=True)
class Table:
    caption: str
    headers: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Study:
    """Everything one study found; `metrics` are its headline numbers, `texts` its conclusions in Markdown."""

    name: str
    title: str
    texts: list[str]
    tables: list[Table]
    charts: list[Chart]
    metrics: dict[str, dict[str, float]]


def metric(mean: float, low: float | None = None, high: float | None = None, n: int = 1) -> dict[str, float]:
    """A headline number as results.json has it; scalar arguments, the interval is the number itself if it is exact."""
    return {
        "mean": float(mean),
        "ci_low": float(mean if low is None else low),
        "ci_high": float(mean if high is None else high),
        "n": n,
    }


def follows(slope: dict[str, float], rate: float) -> bool:
    """Whether a measured log-log slope shows a rate: its whole 95 % interval lies within 0.25 of it.

    Args:
        slope: a metric, scalars.
        rate: the exponent, say -1 for 1/n.

    Returns:
        bool.
    """
    return abs(slope["ci_low"] - rate) <= RATE_TOLERANCE and abs(slope["ci_high"] - rate) <= RATE_TOLERANCE


def interval(value: dict[str, float], form: str = "+.2f") -> str:
    """A metric with its interval for a sentence, as in "-0.98 [-1.02, -0.94]"; scalars."""
    return f"{value['mean']:{form}} [{value['ci_low']:{form}}, {value['ci_high']:{form}}]"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"
