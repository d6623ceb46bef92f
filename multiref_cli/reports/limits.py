"""Limits of axes that one arm which diverged, or an interval over two seeds, does not set (numpy only)."""

from collections.abc import Sequence

import numpy as np

# An arm sets the limits while it is neither so many times as wide as a usual one, nor so many times farther away.
FACTOR = 20.0
# A mean is usual within so many interquartile ranges beyond the quartiles.
FENCE = 4.0
# A whisker may reach so many times the range of the means beyond them.
REACH = 1.0
_MARGIN = 0.05


def curve_limits(curves: Sequence[np.ndarray]) -> tuple[tuple[float, float], list[int]] | None:
    """Limits for curves, and the indices of those that leave them.

    An arm's width is that between its quantiles .02 and .98; usual is the median width (of two the narrower). Arms of
    `FACTOR` times the usual width, or as far from the others' middle (in units of the usual width or of the middles'
    median distance), are cut, as are an arm's own first steps where they lie far outside of its later ones.

    Args:
        curves: one array of values an arm; empty ones and values that are not finite are passed over.

    Returns:
        None where there is nothing to draw.
    """
    known = {i: one[np.isfinite(one)] for i, one in enumerate(map(np.asarray, curves))}
    known = {i: one for i, one in known.items() if len(one)}
    if not known:
        return None
    spans = {i: np.quantile(one, [0.02, 0.98]) for i, one in known.items()}
    widths = {i: float(span[1] - span[0]) for i, span in spans.items()}
    middles = {i: float(span.mean()) for i, span in spans.items()}
    usual, center = sorted(widths.values())[(len(widths) - 1) // 2], float(np.median([*middles.values()]))
    unit = max(usual, float(np.median([abs(one - center) for one in middles.values()])))
    inside = [i for i in known if widths[i] <= FACTOR * usual and abs(middles[i] - center) <= FACTOR * unit]
    inside = inside or [i for i in known if widths[i] <= usual]
    low, high = min(float(spans[i][0]) for i in inside), max(float(spans[i][1]) for i in inside)
    room = REACH * (high - low)
    values = np.concatenate([known[i] for i in inside])
    limits = _padded(max(float(values.min()), low - room), min(float(values.max()), high + room))
    outside = [i for i, one in known.items() if one.min() < limits[0] or one.max() > limits[1]]
    return limits, outside


def point_limits(means: Sequence[float], halves: Sequence[float]) -> tuple[float, float] | None:
    """Limits for means with intervals: every usual mean is inside, an interval as far as `REACH` allows.

    A mean is unusual if it lies more than `FENCE` interquartile ranges beyond the quartiles of five or more.

    Args:
        means: N values.
        halves: N half widths; NaN: none.

    Returns:
        None where there is nothing to draw.
    """
    values, half = np.asarray(means, float), np.nan_to_num(np.asarray(halves, float))
    finite = np.isfinite(values)
    values, half = values[finite], half[finite]
    if not len(values):
        return None
    if len(values) >= 5:
        first, third = np.quantile(values, [0.25, 0.75])
        room = FENCE * max(third - first, 1e-9 * abs(first))
        usual = (values >= first - room) & (values <= third + room)
        values, half = values[usual], half[usual]
    low, high = float(values.min()), float(values.max())
    reach = REACH * max(high - low, float(np.median(half)))
    return _padded(max(float((values - half).min()), low - reach), min(float((values + half).max()), high + reach))


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) or abs(high) or 1.0
    return low - _MARGIN * room, high + _MARGIN * room
