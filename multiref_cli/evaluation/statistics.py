"""Intervals and comparisons for few seeds: t, bootstrap, Holm's correction (numpy only); crossed.py adds prompts."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its confidence interval; low and high are NaN where one value gives none."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half the length of the interval: what stands behind ±."""
        return (self.high - self.low) / 2


class Comparison(NamedTuple):
    """A paired difference first - second over common seeds, and what is needed to judge it.

    `p_value` is NaN where the difference cannot be judged: one seed, or no spread at all.
    `effect` is the difference in units of the seed spread: the pooled standard deviation of both sides over seeds,
    with Hedges' factor for few seeds.
    `improvement` is the share of all pairs of runs, one of each side, in which the first is higher (ties count half).
    `prompts` is the number of prompts that the interval generalizes over; 0: it holds for these prompts alone.
    """

    difference: Interval
    p_value: float
    effect: float
    improvement: float
    prompts: int = 0


def student_t_cdf(t: float, degrees: float) -> float:
    """Return P(T <= t) for Student's t with the given degrees of freedom, to about 1e-14.

    Equation: 1 - I_x(degrees / 2, 1 / 2) / 2 with x = degrees / (degrees + t^2), for t >= 0.
    """
    tail = 0.5 * regularized_beta(degrees / (degrees + t * t), degrees / 2, 0.5)
    return 1 - tail if t >= 0 else tail


def student_t_quantile(probability: float, degrees: float) -> float:
    """Return the t with P(T <= t) = probability.

    Args:
        probability: strictly between 0 and 1.
        degrees: degrees of freedom, above 0.

    Raises:
        ValueError: outside these ranges.
    """
    if not 0 < probability < 1 or degrees <= 0:
        raise ValueError(f"no t quantile for probability {probability} and {degrees} degrees of freedom")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while student_t_cdf(high, degrees) < probability:
        low, high = high, high * 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if student_t_cdf(middle, degrees) < probability else (low, middle)
    return high


def regularized_beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b) by its continued fraction (modified Lentz).

    Args:
        x: between 0 and 1.
        a: above 0.
        b: above 0.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1 - regularized_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    c, d = 1.0, 1.0 / ((1 - (a + b) * x / (a + 1)) or tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front * fraction / a


def wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(...) 1 where the first value is above the second, one half at a tie, else 0."""
    return (first > second) + 0.5 * (first == second)


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the mean with its Student t interval; one value has no interval.

    Args:
        values: one value a seed.
        confidence: usual 0.95.

    Raises:
        ValueError: without values.
    """
    sample = _sample(values)
    mean, n = float(sample.mean()), len(sample)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = student_t_quantile((1 + confidence) / 2, n - 1) * float(sample.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a statistic with its percentile bootstrap interval (Efron 1979).

    Args:
        values: (n,) independent values, or (n, s) with s dependent values a row (several samples of one prompt):
            whole rows are drawn again.
        statistic: maps (resamples, n) or (resamples, n, s) to (resamples,); default: the mean of everything.
        confidence: usual 0.95.
        resamples: usual 1,000 to 10,000.
        seed: the same seed draws the same resamples.

    Returns:
        The statistic of `values` itself, the percentiles of its resamples, and n rows.

    Raises:
        ValueError: without values.
    """
    sample = _sample(values)
    statistic = statistic or (lambda drawn: drawn.mean(axis=tuple(range(1, drawn.ndim))))
    generator = np.random.default_rng(seed)
    n, done, drawn = len(sample), 0, []
    chunk = max(1, 4_000_000 // sample.size)  # 32 MB of float64 at a time
    while done < resamples:
        count = min(chunk, resamples - done)
        drawn.append(statistic(sample[generator.integers(0, n, (count, n))]))
        done += count
    return _percentiles(float(statistic(sample[None])[0]), np.concatenate(drawn), confidence, n)


def wilson_interval(share: float, n: int, confidence: float = 0.95) -> Interval:
    """Return a share of n independent trials with its score interval (Wilson 1927).

    Equation: (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z the normal quantile: within 0 and
    1, and wider than nothing at shares of 0 and 1.

    Args:
        share: 0 to 1.
        n: trials, 1 or more.
        confidence: usual 0.95.

    Raises:
        ValueError: outside these ranges.
    """
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"no interval of a share of {share} in {n} trials")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(share, max(0.0, center - half), min(1.0, center + half), n)


def probability_of_improvement(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Return the share of pairs (x of first, y of second) with x > y, ties counted half (Mann and Whitney's U / nm)."""
    a, b = _sample(first)[:, None], _sample(second)[None]
    return float(np.mean(wins(a, b)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for many comparisons by Holm's step-down method (1979); NaN stays out of the family.

    Equation: with p sorted upwards, adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).
    """
    family = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(family):
        highest = max(highest, min(1.0, (len(family) - rank) * p))
        adjusted[index] = highest
    return adjusted


def conclusion(
    first: str,
    second: str,
    metric: str,
    comparison: Comparison,
    adjusted_p: float | None = None,
    confidence: float = 0.95,
) -> str:
    """Return one plain sentence on a comparison; it says "not significant" unless the corrected p value is small.

    Args:
        first: name of the first condition.
        second: name of the second condition.
        metric: name of what is compared; higher counts as higher, not as better.
        comparison: from `crossed.compare`.
        adjusted_p: p value after the correction for many comparisons; None: only one comparison was made.
        confidence: 0.95 means significant below 0.05.
    """
    mean, low, high, n = comparison.difference
    direction = "above" if mean > 0 else "below"
    size = f"{first} is {abs(mean):.3g} {direction} {second} on {metric}"
    if mean == 0:
        size = f"{first} equals {second} on {metric}"
    if n < 2:
        return f"{size}; one seed: nothing can be said about significance."
    p = comparison.p_value if adjusted_p is None else adjusted_p
    corrected = "" if adjusted_p is None else ", corrected"
    if math.isnan(p):
        return f"{size} in each of {n} seeds alike; without any spread it cannot be judged."
    over = f"n = {n} seeds" + (f" × {comparison.prompts} prompts" if comparison.prompts else "")
    numbers = f"difference {mean:+.3g}, {confidence:.0%} interval [{low:+.3g}, {high:+.3g}], {over}"
    if p < 1 - confidence:
        return f"{size}, which is significant ({numbers}, p = {p:.2g}{corrected})."
    return f"{size}, which is not significant ({numbers}, p = {p:.2g}{corrected})."


def _sample(values: Sequence[float] | np.ndarray) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        raise ValueError("no values")
    return sample


def _percentiles(center: float, drawn: np.ndarray, confidence: float, n: int) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(center, float(low), float(high), n)
