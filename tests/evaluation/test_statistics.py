"""Statistics against printed tables, hand arithmetic and their own promises on simulated data."""

import math
import statistics

import numpy as np
import pytest

from multiref_cli.evaluation.crossed import compare
from multiref_cli.evaluation.statistics import (
    bootstrap_interval,
    conclusion,
    holm,
    probability_of_improvement,
    regularized_beta,
    student_t_cdf,
    student_t_quantile,
    t_interval,
)


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [
        # The table of every textbook, three decimals.
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.95, 5, 2.015),
        (0.995, 3, 5.841),
        (0.999, 7, 4.785),
        (0.9995, 2, 31.599),
        (0.025, 4, -2.776),
    ],
)
def test_t_quantile_table(probability: float, degrees: int, quantile: float) -> None:
    assert student_t_quantile(probability, degrees) == pytest.approx(quantile, abs=6e-4)


def test_t_closed_forms() -> None:
    """One degree: Cauchy, tan(pi (p - 1/2)). Two degrees: F(t) = 1/2 + t / (2 sqrt(2 + t^2)). Many: the normal."""
    for p in (0.01, 0.3, 0.5, 0.8, 0.999):
        assert student_t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9, abs=1e-12)
        assert student_t_quantile(p, 1e7) == pytest.approx(statistics.NormalDist().inv_cdf(p), rel=1e-5, abs=1e-9)
    for t in (-30.0, -1.5, 0.0, 0.2, 8.0):
        assert student_t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), rel=1e-10)
    assert regularized_beta(0.3, 1, 1) == pytest.approx(0.3)
    assert regularized_beta(0.4, 2, 3) == pytest.approx(0.5248)  # sum_{j=2..4} C(4,j) 0.4^j 0.6^(4-j)
    with pytest.raises(ValueError, match="no t quantile"):
        student_t_quantile(1.0, 3)


def test_t_interval_by_hand() -> None:
    """1, 2, 3: mean 2, standard deviation 1, half width 4.303 / sqrt(3) = 2.484."""
    interval = t_interval([1, 2, 3])
    assert interval.mean == 2 and interval.n == 3
    assert interval.half_width == pytest.approx(2.484, abs=1e-3)
    assert math.isnan(t_interval([5.0]).low)
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_t_interval_covers() -> None:
    generator = np.random.default_rng(0)
    intervals = [t_interval(generator.normal(3, 2, 4)) for _ in range(1000)]
    assert np.mean([i.low <= 3 <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.02)


def test_bootstrap_covers_and_repeats() -> None:
    generator = np.random.default_rng(1)
    samples = generator.exponential(2.0, (300, 60))
    intervals = [bootstrap_interval(s, resamples=400, seed=3) for s in samples]
    assert np.mean([i.low <= 2 <= i.high for i in intervals]) == pytest.approx(0.93, abs=0.035)
    assert bootstrap_interval(samples[0], seed=5) == bootstrap_interval(samples[0], seed=5)
    assert bootstrap_interval([1.0, 1.0]) == (1.0, 1.0, 1.0, 2)
    median = bootstrap_interval([1.0, 2.0, 50.0], statistic=lambda drawn: np.median(drawn, axis=1))
    assert median.mean == 2.0 and median.low == 1.0 and median.high == 50.0


def test_bootstrap_draws_whole_rows() -> None:
    """Four copies of a value are one observation: the interval must not become narrower."""
    values = np.random.default_rng(2).normal(size=100)
    single, copied = bootstrap_interval(values), bootstrap_interval(np.repeat(values[:, None], 4, axis=1))
    assert copied.n == 100
    assert copied.half_width == pytest.approx(single.half_width, rel=1e-9)


def test_compare_pairs_seeds() -> None:
    """Differences 1, 1, 2 over seeds 0, 1, 2: t = (4/3) / (0.57735 / sqrt(3)) = 4, two degrees: p = 0.0572."""
    result = compare({0: 11.0, 1: 21.0, 2: 32.0, 7: 0.0}, {2: 30.0, 1: 20.0, 0: 10.0})
    assert result.difference.mean == pytest.approx(4 / 3) and result.difference.n == 3
    assert result.p_value == pytest.approx(1 - 4 / math.sqrt(18), rel=1e-9)
    # Hedges' factor with four degrees of freedom: Gamma(2) / (sqrt(2) Gamma(3/2)) = sqrt(2 / pi).
    assert result.effect == pytest.approx(math.sqrt(2 / math.pi) * (4 / 3) / math.sqrt((110.3333333 + 100) / 2))
    assert result.improvement == pytest.approx(6 / 9)
    with pytest.raises(ValueError, match="no common seeds"):
        compare({0: 1.0}, {1: 1.0})


def test_differences_without_spread_cannot_be_judged() -> None:
    same, shifted = {0: 1.0, 1: 2.0}, {0: 1.1, 1: 2.1}
    assert math.isnan(compare(same, same).p_value)
    assert math.isnan(compare(shifted, same).p_value)
    assert math.isnan(compare({0: 1.0}, {0: 0.0}).p_value)
    assert math.isnan(compare({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0}).effect)
    assert "cannot be judged" in conclusion("a", "b", "reward", compare(shifted, same))


def test_p_values_are_uniform_under_no_difference() -> None:
    draws = np.random.default_rng(4).normal(size=(800, 2, 4))
    p = [compare(dict(enumerate(first)), dict(enumerate(second))).p_value for first, second in draws]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(p) == pytest.approx(0.5, abs=0.03)


def test_probability_of_improvement() -> None:
    assert probability_of_improvement([2, 3], [1, 2]) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert probability_of_improvement([1], [1]) == 0.5


def test_holm_by_hand() -> None:
    """0.01, 0.04, 0.03 of three: 0.03, then max(0.03, 2 x 0.03) = 0.06, then max(0.06, 0.04) = 0.06."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    adjusted = holm([0.02, math.nan])
    assert adjusted[0] == 0.02 and math.isnan(adjusted[1])
    assert holm([]) == []


def test_conclusions() -> None:
    strong = compare({0: 1.0, 1: 1.1, 2: 1.2}, {0: 0.5, 1: 0.61, 2: 0.69})
    sentence = conclusion("rkl", "single", "accuracy", strong)
    assert sentence.startswith("rkl is 0.5 above single on accuracy, which is significant (difference +0.5")
    assert "not significant" in conclusion("rkl", "single", "accuracy", strong, adjusted_p=0.2)
    assert "corrected" in conclusion("rkl", "single", "accuracy", strong, adjusted_p=0.2)
    assert "one seed" in conclusion("a", "b", "reward", compare({0: 1.0}, {0: 2.0}))
    assert conclusion("a", "b", "reward", compare({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})).startswith("a equals b")
