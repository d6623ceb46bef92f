"""Looking at a comparison several times without more false conclusions: alpha spending over looks (numpy only).

The looks of a comparison are the values at several times of one Brownian motion: with Z_j the z value at look j and t_j
its share of all information, cov(Z_i, Z_j) = sqrt(t_i / t_j) (Jennison and Turnbull 2000, Chapter 3). How much of alpha
may have been spent by a share t is fixed before; the boundary of each look follows from it (Lan and DeMets 1983).

t tests are judged by their p values against the p value of the boundary, which is exact at the first look and close
afterwards (Jennison and Turnbull 2000, Section 4.4; tests/bench/results/bench_seeds_auto.md has it simulated).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from multiref_cli.evaluation.statistics import holm

# Nodes of the quadrature over the values at a look that go on.
_NODES = 48
# Levels at which boundaries are tabulated; between them they are interpolated in logarithms.
_LEVELS = tuple(10 ** (exponent / 4) for exponent in range(-48, 0))


def obrien_fleming(alpha: float, share: float) -> float:
    """Alpha spent by a share of the information: next to nothing early, so that the last look is nearly a single one.

    Equation: 4 - 4 Phi(z_(1 - alpha / 4) / sqrt(t)), half of it on each side (Lan and DeMets 1983).
    """
    return 2 * math.erfc(normal_quantile_two_sided(alpha / 2) / math.sqrt(2 * share))


def normal_quantile_two_sided(p: float) -> float:
    """The z with P(|Z| >= z) = p."""
    low, high = 0.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) > p else (low, middle)
    return high


def boundaries(alpha: float, shares: Sequence[float]) -> list[float]:
    """The two-sided p value at or below which each look decides, so that all looks together err with `alpha`.

    Args:
        alpha: chance of a false decision at any look, between 0 and 1.
        shares: of the information at each look, ascending, the last at most 1.

    Returns:
        One p value a look.

    Raises:
        ValueError: alpha or shares out of range, or shares not ascending.
    """
    if not 0 < alpha < 1 or list(shares) != sorted(set(shares)) or not shares[0] > 0 or shares[-1] > 1:
        raise ValueError(f"no boundaries for alpha {alpha} at shares {list(shares)}")
    found: list[float] = []
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    values, density, before, spent = np.zeros(1), np.ones(1), 0.0, 0.0
    for share in shares:
        step, total = math.sqrt(share - before), obrien_fleming(alpha, min(share, 1.0))
        edge = _edge(values, density, step, max(total - spent, 0.0), math.sqrt(share))
        found.append(math.erfc(edge / math.sqrt(share) / math.sqrt(2)))
        points = edge * nodes
        steps = (points[:, None] - values[None]) / step
        density = edge * weights * (np.exp(-(steps**2) / 2) @ density) / (step * math.sqrt(2 * math.pi))
        values, before, spent = points, share, total
    return found


def sequential_p(p_values: Sequence[float], shares: Sequence[float]) -> float:
    """The smallest alpha at which one of the looks so far decides: a p value for whoever stops whenever they like.

    Args:
        p_values: two-sided, one a look so far; NaN where a look could not judge.
        shares: of the information at each look.

    Returns:
        The sequential p value (Liu and Anderson 2008), at least the smallest of the table's levels, at most 1; NaN
        where no look could judge.
    """
    table = _table(tuple(shares))
    logs = np.log(_LEVELS)
    found = [
        math.exp(np.interp(math.log(max(p, 1e-300)), np.log(row), logs)) if p <= row[-1] else 1.0
        for p, row in zip(p_values, table)
        if not math.isnan(p)
    ]
    return min(found, default=math.nan)


@lru_cache(maxsize=64)
def _table(shares: tuple[float, ...]) -> list[np.ndarray]:
    """For every look the boundary at each of the levels, ascending."""
    rows = np.array([boundaries(level, shares) for level in _LEVELS]).T
    return [np.maximum.accumulate(np.maximum(row, 1e-290)) for row in rows]


def _edge(values: np.ndarray, density: np.ndarray, step: float, spend: float, scale: float) -> float:
    """The distance from 0 that a motion at `values` passes within `step` with chance `spend`."""
    low, high = 0.0, 40.0 * scale
    for _ in range(50):
        middle = (low + high) / 2
        passed = 2 * float(_tail((middle - values) / step) @ density)  # both sides alike
        low, high = (middle, high) if passed > spend else (low, middle)
    return high


def _tail(z: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(one / math.sqrt(2)) for one in z])


class Decision(NamedTuple):
    """What is known of one comparison of a family after some looks.

    Attributes:
        adjusted_p: sequential p value, corrected for the family; NaN where nothing could be judged.
        look: the first look, from 1, at which it was at or below 1 - confidence; 0: none so far.
    """

    adjusted_p: float
    look: int


def decide(
    history: Sequence[Sequence[float]],
    shares: Sequence[float],
    confidence: float = 0.95,
) -> list[Decision]:
    """Judge a family of comparisons after every look: Holm over sequential p values (Maurer and Bretz 2013).

    No false conclusion at any look, with probability `confidence`, whichever comparisons are true and whatever is
    looked at again because of earlier looks.

    Args:
        history: L looks so far of H p values; NaN where a look could not judge, or nothing new was there to judge.
        shares: of the information at each planned look, at least L.
        confidence: 0.95 means that a corrected p value of 0.05 decides.

    Returns:
        H decisions.
    """
    looks: list[int] = [0] * len(history[0])
    adjusted: list[float] = []
    for count in range(1, len(history) + 1):
        columns = zip(*history[:count])
        adjusted = holm([sequential_p(column, shares) for column in columns])
        looks = [look or (count if p <= 1 - confidence else 0) for look, p in zip(looks, adjusted)]
    return [Decision(p, look) for p, look in zip(adjusted, looks)]
