"""Intervals and comparisons over two crossed sources of error, seeds and prompts (numpy only).

Model: y_sp = mean + seed_s + prompt_p + residual_sp, one value a run and prompt, the same prompts in every run.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from multiref_cli.evaluation.statistics import (
    Comparison,
    Interval,
    probability_of_improvement,
    regularized_beta,
    student_t_cdf,
    student_t_quantile,
)

# Level of the test by which a pair that varies more than other conditions is judged by its own spread: high, since what
# it misses is covered too rarely.
APART = 0.1
# One value of every seed: (P,) scores of its prompts, or their mean alone where no more is known.
BySeed = Mapping[int, float | np.ndarray]


class Estimate(NamedTuple):
    """A mean with its standard error, and what both speak of.

    Attributes:
        interval: mean, bounds, and the number of seeds.
        standard_error: of the mean; NaN where one number gives none.
        degrees: degrees of freedom of its t interval.
        prompts: prompts that the interval generalizes over; 0: it holds for these prompts alone.
    """

    interval: Interval
    standard_error: float
    degrees: float
    prompts: int

    @property
    def over(self) -> str:
        """The population that the interval speaks of: seeds and prompts, seeds, prompts, or nothing."""
        if math.isnan(self.standard_error):
            return "nothing"
        seeds = ["seeds"] if self.interval.n > 1 else []
        return " and ".join([*seeds, *(["prompts"] if self.prompts else [])])


class MeanSquares(NamedTuple):
    """Mean squares of a two-way table (S, P) without replication; those of one seed are NaN."""

    seed: float
    prompt: float
    residual: float


def mean_squares(table: np.ndarray) -> MeanSquares:
    """Return the mean squares of seeds, prompts and residual.

    Equation: MS_seed = P sum_s (y_s. - y..)^2 / (S-1), MS_prompt = S sum_p (y_.p - y..)^2 / (P-1),
    MS_residual = sum_sp (y_sp - y_s. - y_.p + y..)^2 / ((S-1)(P-1)).

    Args:
        table: (S, P), S and P at least 2.
    """
    seeds, prompts = table.shape
    rows, columns, grand = table.mean(1), table.mean(0), table.mean()
    residual = table - rows[:, None] - columns[None] + grand
    return MeanSquares(
        float(prompts * ((rows - grand) ** 2).sum() / (seeds - 1)),
        float(seeds * ((columns - grand) ** 2).sum() / (prompts - 1)),
        float((residual**2).sum() / ((seeds - 1) * (prompts - 1))),
    )


def estimate(values: BySeed, confidence: float = 0.95) -> Estimate:
    """Return the mean of a condition with its interval over seeds and prompts, as far as both are known.

    Equation: SE^2 = (MS_seed + MS_prompt - MS_residual) / (S P), degrees of freedom by Satterthwaite (1946). A
    component of variance that comes out negative counts as zero.
    Means alone give the t interval over seeds; one seed with prompts the t interval over prompts.

    Args:
        values: seed -> (P,) scores, the same prompts in the same order in every seed; or seed -> mean.
        confidence: usual 0.95.

    Raises:
        ValueError: without values, or with different numbers of prompts.
    """
    table = _table(values)
    return _with_bounds(*_mean_and_error(table), len(table), _prompts(table), confidence)


def compare(
    first: BySeed,
    second: BySeed,
    block: Sequence[Mapping[int, float]] = (),
    weight: float = 2.0,
    confidence: float = 0.95,
    others: Sequence[Mapping[int, float]] = (),
    apart: float = APART,
) -> Comparison:
    """Compare two sides on their common seeds, and on their common prompts where these are known.

    Equation: with d_sp the difference of both sides at one seed and prompt,
    SE^2 = weight * MS_block / S + max(MS_prompt(d) - MS_residual(d), 0) / (S P),
    where MS_block, (C-1)(S-1) degrees of freedom, is the residual of the means of C conditions over S seeds after
    their condition and seed effects: what seeds do to all conditions alike is gone, and three seeds of one pair need
    not tell their spread by themselves. Without a block MS_block comes from the two sides, as in a paired t test; so
    it does where the sides vary more than the others of the block do (F test at `apart`), whose spread says nothing
    of them.

    Args:
        first: seed -> (P,) scores, or seed -> mean.
        second: the other side's.
        block: seed -> mean of every condition of the design; those that lack a common seed are left out.
        weight: sum of the squared coefficients of conditions in the difference: 2 for two conditions,
            1/m + 1/n for the means of m and n conditions.
        confidence: of the t interval of the difference.
        others: the conditions of the block that are on neither side; fewer than two leave the test out.
        apart: level of that test.

    Returns:
        The comparison. p is NaN where it cannot be judged: with one common seed, or with no spread at all.

    Raises:
        ValueError: without a common seed.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        raise ValueError("no common seeds")
    a, b = (_table({seed: side[seed] for seed in seeds}) for side in (first, second))
    if a.shape != b.shape:
        a, b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
    means = a.mean(1), b.mean(1)
    effect, improvement = standardized_effect(*means), probability_of_improvement(*means)
    if len(seeds) < 2:
        found = _with_bounds(float((a - b).mean()), math.nan, math.nan, 1, 0, confidence)
        return Comparison(found.interval, math.nan, effect, improvement, 0)
    shared, rest = (
        [[one[seed] for seed in seeds] for one in group if set(seeds) <= set(one)] for group in (block, others)
    )
    spread, degrees = float((a - b).mean(1).var(ddof=1)), len(seeds) - 1.0
    if len(shared) > 1 and not _wider(spread / weight, degrees, rest, apart):
        residual, degrees = block_residual(np.array(shared))
        spread = weight * residual
    mean, error, degrees = _difference_error(a - b, spread, degrees)
    # Below this a spread is rounding: equal differences say nothing about the next seed.
    if error <= 1e-12 * max(abs(mean), float(np.abs(a).max()), float(np.abs(b).max())):
        error = math.nan
    found = _with_bounds(mean, error, degrees, len(seeds), _prompts(a), confidence)
    p = math.nan if math.isnan(error) else 2 * student_t_cdf(-abs(mean) / error, degrees)
    return Comparison(found.interval, p, effect, improvement, found.prompts)


def block_residual(means: np.ndarray) -> tuple[float, float]:
    """Return the residual mean square of conditions by seeds, and its (C-1)(S-1) degrees of freedom.

    Args:
        means: (C, S), C and S at least 2.
    """
    conditions, seeds = means.shape
    residual = means - means.mean(1, keepdims=True) - means.mean(0, keepdims=True) + means.mean()
    degrees = (conditions - 1) * (seeds - 1)
    return float((residual**2).sum() / degrees), float(degrees)


def _wider(mean_square: float, degrees: float, others: Sequence[Sequence[float]], level: float) -> bool:
    """Whether a mean square is significantly above the residual of other conditions, by a one-sided F test."""
    if len(others) < 2:
        return False
    residual, rest = block_residual(np.array(others))
    if residual <= 0:
        return mean_square > 0
    ratio = mean_square / residual
    return regularized_beta(rest / (rest + degrees * ratio), rest / 2, degrees / 2) < level


def standardized_effect(first: np.ndarray, second: np.ndarray) -> float:
    """Return the difference in units of the pooled standard deviation over seeds, times Hedges' factor (1981).

    Equation: J(m) (a - b) / s with J(m) = Gamma(m/2) / (sqrt(m/2) Gamma((m-1)/2)), m = 2 (S - 1): without J three
    seeds overstate an effect by a quarter. NaN with one seed or without spread.
    """
    degrees = 2 * (len(first) - 1)
    spread = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2) if degrees else 0.0
    scale = max(float(np.abs(first).max()), float(np.abs(second).max()))
    if spread <= 1e-12 * scale:
        return math.nan
    factor = math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)
    return factor * float(first.mean() - second.mean()) / spread


def welch(difference: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """Return the two-sided p value of a difference of two independent means; NaN where no error is known.

    Args:
        difference: of the means.
        first: standard error and degrees of freedom of one.
        second: of the other.
    """
    variance = first[0] ** 2 + second[0] ** 2
    if math.isnan(variance) or variance == 0:
        return math.nan
    degrees = _satterthwaite([(first[0] ** 2, first[1]), (second[0] ** 2, second[1])])
    return 2 * student_t_cdf(-abs(difference) / math.sqrt(variance), degrees)


def _table(values: BySeed) -> np.ndarray:
    """(S, P), or (S, 1) of means."""
    if not values:
        raise ValueError("no values")
    rows = [np.atleast_1d(np.asarray(values[seed], dtype=np.float64)) for seed in sorted(values)]
    if len({row.shape for row in rows}) > 1:
        raise ValueError("the seeds have different numbers of prompts")
    return np.stack(rows)


def _prompts(table: np.ndarray) -> int:
    return table.shape[1] if table.shape[1] > 1 else 0


def _mean_and_error(table: np.ndarray) -> tuple[float, float, float]:
    """Mean, standard error, degrees of freedom of an (S, P) table."""
    seeds, prompts = table.shape
    mean = float(table.mean())
    if seeds == 1 or prompts == 1:
        if table.size == 1:
            return mean, math.nan, math.nan
        return mean, float(table.std(ddof=1)) / math.sqrt(table.size), table.size - 1.0
    found = mean_squares(table)
    return _crossed_error(table, found.seed / table.size, seeds - 1.0, found)


def _difference_error(table: np.ndarray, seed_variance: float, degrees: float) -> tuple[float, float, float]:
    """Mean, standard error, degrees of freedom of (S, P) differences whose seed means have the variance given."""
    seeds, prompts = table.shape
    if prompts == 1:
        return float(table.mean()), math.sqrt(seed_variance / seeds), degrees
    return _crossed_error(table, seed_variance / seeds, degrees, mean_squares(table))


def _crossed_error(
    table: np.ndarray, seed_part: float, degrees: float, found: MeanSquares
) -> tuple[float, float, float]:
    """Add what prompts contribute to the variance of the mean that the seeds show.

    The seeds' part holds the residual already, so the prompts' part is added without it. It is never less than the
    residual, but keeps the seeds' degrees of freedom: that few seeds happened to agree is no knowledge of their spread.
    """
    seeds, prompts = table.shape
    mean, residual = float(table.mean()), found.residual / table.size
    parts = [(max(seed_part, residual), degrees)]
    if found.prompt > found.residual:
        parts += [(found.prompt / table.size, prompts - 1.0), (-residual, (seeds - 1.0) * (prompts - 1.0))]
    variance = max(sum(part for part, _ in parts), 0.0)
    return mean, math.sqrt(variance), _satterthwaite(parts)


def _satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of mean squares: (sum m)^2 / sum(m^2 / degrees)."""
    total, spread = sum(part for part, _ in parts), sum(part**2 / degrees for part, degrees in parts)
    return max(total**2 / spread, 1.0) if spread > 0 else max(min(degrees for _, degrees in parts), 1.0)


def _with_bounds(mean: float, error: float, degrees: float, seeds: int, prompts: int, confidence: float) -> Estimate:
    half = math.nan if math.isnan(error) else student_t_quantile((1 + confidence) / 2, degrees) * error
    return Estimate(Interval(mean, mean - half, mean + half, seeds), error, degrees, prompts)
