"""Crossed seeds and prompts: hand arithmetic, and coverage and power on data with the measured components."""

import math

import numpy as np
import pytest

from multiref_cli.evaluation.crossed import block_residual, compare, estimate, mean_squares, welch
from multiref_cli.evaluation.statistics import student_t_quantile, t_interval

SEEDS, PROMPTS, RESIDUAL = 3, 512, 0.28


def _scores(generator, seed_error: float, prompt_error: float, shared: np.ndarray | None = None) -> dict:
    """(S, P) scores of true mean 0; errors are the contributions of seeds and prompts to that of the mean."""
    seeds = seed_error * math.sqrt(SEEDS) * generator.normal(size=(SEEDS, 1))
    prompts = prompt_error * math.sqrt(PROMPTS) * generator.normal(size=PROMPTS)
    noise = RESIDUAL * generator.normal(size=(SEEDS, PROMPTS))
    return dict(enumerate(seeds + prompts + noise + (0 if shared is None else shared)))


def test_a_table_by_hand() -> None:
    """Rows 0 2 4 and 2 4 9: means 2 and 5, columns 1 3 6.5; MS 13.5, 15.5, 1.5; SE^2 = (13.5 + 15.5 - 1.5) / 6."""
    table = np.array([[0.0, 2.0, 4.0], [2.0, 4.0, 9.0]])
    assert mean_squares(table) == pytest.approx((13.5, 15.5, 1.5))
    found = estimate(dict(enumerate(table)))
    assert found.standard_error == pytest.approx(math.sqrt(27.5 / 6)) and found.prompts == 3
    degrees = 27.5**2 / (13.5**2 / 1 + 15.5**2 / 2 + 1.5**2 / 2)
    assert found.degrees == pytest.approx(degrees) and found.over == "seeds and prompts"
    half = student_t_quantile(0.975, degrees) * math.sqrt(27.5 / 6)
    assert found.interval == pytest.approx((3.5, 3.5 - half, 3.5 + half, 2))


def test_what_is_unknown_is_left_out() -> None:
    assert estimate({0: 1.0, 1: 2.0, 2: 3.0}).interval == pytest.approx(t_interval([1, 2, 3]))
    assert estimate({0: 1.0, 1: 2.0}).over == "seeds" and estimate({0: 1.0}).over == "nothing"
    one = estimate({4: np.array([1.0, 2.0, 3.0])})
    assert (
        one.over == "prompts" and one.interval[:3] == pytest.approx(t_interval([1, 2, 3])[:3]) and one.interval.n == 1
    )
    with pytest.raises(ValueError, match="numbers of prompts"):
        estimate({0: np.zeros(2), 1: np.zeros(3)})


@pytest.mark.parametrize("errors", [(0.0086, 0.0138), (0.0138, 0.0045)])
def test_crossed_intervals_cover(errors: tuple[float, float]) -> None:
    """Measured components, and seeds above prompts: 95 % also where seeds alone have less than 90."""
    generator = np.random.default_rng(0)
    drawn = [_scores(generator, *errors) for _ in range(1000)]
    crossed = [estimate(scores).interval for scores in drawn]
    alone = [t_interval([row.mean() for row in scores.values()]) for scores in drawn]
    covered, before = (np.mean([i.low <= 0 <= i.high for i in intervals]) for intervals in (crossed, alone))
    assert 0.93 <= covered <= 0.97
    if errors[1] > errors[0]:
        assert before < 0.90


def _simulated(correlation: float, spread: float, unequal: float, trials: int) -> dict[str, tuple[float, float]]:
    """Coverage, and power at three standard errors, of a pair's own spread and of the shared one.

    Ten conditions, three seeds, the residual and the interaction of prompts that were measured; `unequal` times the
    spread over seeds on the first side.
    """
    generator, rho, count = np.random.default_rng(1), max(correlation, 0.0), 10
    size = 3 * spread * math.sqrt((1 + unequal**2) * (1 - rho) / SEEDS)
    counts = {"paired": np.zeros(2), "shared": np.zeros(2)}
    for _ in range(trials):
        own = math.sqrt(1 - rho) * generator.normal(size=(count, SEEDS))
        own[0] *= unequal
        effects = spread * (math.sqrt(rho) * generator.normal(size=SEEDS) + own)
        noise = RESIDUAL * generator.normal(size=(2, SEEDS, PROMPTS)) + 0.1 * generator.normal(size=(2, 1, PROMPTS))
        tables = effects[:2, :, None] + noise
        means = effects + RESIDUAL / math.sqrt(PROMPTS) * generator.normal(size=effects.shape)
        means[:2] = tables.mean(2)
        block = [dict(enumerate(row)) for row in means]
        sides = (dict(enumerate(table)) for table in tables)
        found = {"paired": compare(block[0], block[1]), "shared": compare(*sides, block, others=block[2:])}
        for name, one in found.items():
            low, high = one.difference.low, one.difference.high
            counts[name] += (low <= 0 <= high, low + size > 0)
    return {name: tuple(both / trials) for name, both in counts.items()}


@pytest.mark.parametrize(("correlation", "spread"), [(0.84, 0.03), (-0.03, 0.0149)])
def test_comparisons_cover_and_find_more(correlation: float, spread: float) -> None:
    """As correlated over seeds as measured offline and online: 93 to 97 % coverage, and more power than paired."""
    found = _simulated(correlation, spread, 1.0, 500)
    assert 0.93 <= found["shared"][0] <= 0.97
    assert found["shared"][1] > 1.4 * found["paired"][1]


def test_a_side_that_varies_more_is_covered_by_its_own_spread() -> None:
    """Four times the spread on one side: the shared residual alone covers 72 %."""
    assert _simulated(-0.03, 0.0149, 4.0, 300)["shared"][0] > 0.85


def test_the_test_of_the_own_spread_by_hand() -> None:
    """F(2, 2) has the tail 1 / (1 + F): a spread is the pair's own from nine times the others' residual on."""
    others = [{0: 0.0, 1: 1.0, 2: 2.0}, {0: 0.5, 1: 1.0, 2: 1.5}]
    residual, degrees = block_residual(np.array([list(one.values()) for one in others]))
    assert degrees == 2
    for factor, own in ((8.9, False), (9.1, True)):
        half = math.sqrt(2 * factor * residual)  # differences -half, 0, half have the variance half^2
        first, second = {0: 1.0 - half, 1: 1.0, 2: 1.0 + half}, {0: 0.0, 1: 0.0, 2: 0.0}
        block = [first, second, *others]
        found = compare(first, second, block, others=others)
        assert (found == compare(first, second)) == own and (found == compare(first, second, block)) != own


def test_a_block_by_hand() -> None:
    """Means 1 2 3, 2 3 4, 0 4 2: the residual sum of squares is what conditions and seeds leave of the total."""
    means = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [0.0, 4.0, 2.0]])
    rows, columns = means.mean(1, keepdims=True), means.mean(0, keepdims=True)
    total = ((means - 7 / 3) ** 2).sum() - 3 * ((rows - 7 / 3) ** 2).sum() - 3 * ((columns - 7 / 3) ** 2).sum()
    assert block_residual(means) == pytest.approx((total / 4, 4))
    block = [dict(enumerate(row)) for row in means]
    found = compare(block[1], block[0], block)
    half = student_t_quantile(0.975, 4) * math.sqrt(2 * total / 4 / 3)
    assert found.difference == pytest.approx((1, 1 - half, 1 + half, 3))
    # Alone these differences, 1 in every seed, have no spread to be judged by.
    assert math.isnan(compare(block[1], block[0]).p_value)


def test_independent_means() -> None:
    """Errors 3 and 4 with 4 degrees each: difference 10 over 5, degrees 25^2 / (9^2/4 + 16^2/4) = 7.418."""
    half = student_t_quantile(0.975, 625 / (337 / 4))
    assert welch(5 * half, (3.0, 4.0), (4.0, 4.0)) == pytest.approx(0.05)
    assert math.isnan(welch(1.0, (0.0, 2.0), (0.0, 2.0))) and math.isnan(welch(1.0, (math.nan, 2.0), (1.0, 2.0)))
