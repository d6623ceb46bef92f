"""How a mean with its interval is written."""

import math

from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports.parts import format_cell


def plus_minus(interval: Interval | None) -> str:
    """mean ± half width, rounded to what the interval supports; the mean alone where there is no interval."""
    if interval is None:
        return "–"
    if math.isnan(interval.half_width):
        return str(format_cell(interval.mean))
    decimals = _decimals(interval.half_width)
    return f"{interval.mean:.{decimals}f} ± {interval.half_width:.{decimals}f}".replace("-", "−")


def signed(interval: Interval) -> str:
    """The same of a difference, with its sign."""
    text = plus_minus(interval)
    return f"+{text}" if interval.mean > 0 else text


def listed(names: list[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _decimals(half: float) -> int:
    """Two significant digits of the half width."""
    if half <= 0:
        return 3
    digits = 0
    while half < 10 and digits < 6:
        half *= 10
        digits += 1
    return digits
