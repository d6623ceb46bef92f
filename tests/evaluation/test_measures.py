"""Measures of samples against hand arithmetic."""

import itertools
import math

import numpy as np
import pytest

from multiref_cli.evaluation.measures import avg_at_k, bits_per_byte, length_controlled_wins, pass_at_k


def test_pass_at_k_by_hand() -> None:
    """Four samples, two right: of six pairs one has none, so 5/6; with k = 1 the share of right ones."""
    assert pass_at_k(np.array([2, 0, 4, 3]), 4, 2) == pytest.approx([5 / 6, 0, 1, 1])
    assert pass_at_k(np.array([2, 1]), 4, 1) == pytest.approx([0.5, 0.25])
    with pytest.raises(ValueError, match="1 <= k <= 4"):
        pass_at_k(np.array([1]), 4, 5)
    with pytest.raises(ValueError, match="right ones"):
        pass_at_k(np.array([5]), 4, 1)


def test_pass_at_k_is_the_share_of_subsets() -> None:
    right = [True, False, False, True, False, False]
    for k in range(1, 7):
        share = np.mean([any(one) for one in itertools.combinations(right, k)])
        assert pass_at_k(np.array([2]), 6, k)[0] == pytest.approx(share)


def test_avg_at_k_is_the_mean_over_subsets() -> None:
    scores = [1.0, 0.0, 0.5, 0.25]
    for k in (1, 3, 4):
        mean = np.mean([np.mean(one) for one in itertools.combinations(scores, k)])
        assert avg_at_k(np.array([scores]), k)[0] == pytest.approx(mean)
    with pytest.raises(ValueError, match="avg@5"):
        avg_at_k(np.array([scores]), 5)


def test_length_controlled_wins() -> None:
    # Differences 10 and -10 have the standard deviation 10. Probabilities that follow the model are fitted exactly.
    differences = np.array([[10.0], [-10.0]])
    chances = 1 / (1 + np.exp(-(0.4 + 1.5 * np.tanh(differences / 10))))
    assert length_controlled_wins(chances, differences) == pytest.approx([1 / (1 + math.exp(-0.4))] * 2)
    # All of the advantage is length: the longer one wins at .9, so the two of equal length are even.
    assert length_controlled_wins(np.array([[0.9], [0.1]]), differences).mean() == pytest.approx(0.5)
    # Equal lengths: the plain preferences.
    wins = np.array([[1.0, 1.0], [0.0, 1.0]])
    assert length_controlled_wins(wins, np.zeros((2, 2))) == pytest.approx([1, 0.5])
    assert length_controlled_wins(np.array([[1.0], [0.0]]), differences) is None


def test_length_controlled_wins_have_the_mean_and_spread_of_the_rate() -> None:
    """Their mean is the fitted rate; their standard error that of the rate over new sets of prompts."""
    rates, errors = [], []
    generator = np.random.default_rng(0)
    for _ in range(300):
        lengths = generator.normal(3, 10, (200, 2))
        chance = 1 / (1 + np.exp(-(0.3 + 0.8 * np.tanh(lengths / 10) + generator.normal(0, 1, (200, 1)))))
        values = length_controlled_wins(chance, lengths)
        rates.append(values.mean())
        errors.append(values.std(ddof=1) / math.sqrt(200))
    # Averaged over prompts that differ by a standard deviation of 1 in log odds, sigmoid(.3) is less than .574.
    assert 0.55 < np.mean(rates) < 0.574
    assert np.mean(errors) == pytest.approx(np.std(rates), rel=0.1)


def test_bits_per_byte_is_the_ratio_of_sums_and_its_spread_that_of_the_ratio():
    """Two texts: 8 bits in 2 bytes, 4 bits in 4 bytes: 12 / 6 = 2 bits a byte; influences (8 - 4) / 3, (4 - 8) / 3."""
    found = bits_per_byte(-np.log(2) * np.array([8.0, 4.0]), np.array([2, 4]))
    np.testing.assert_allclose(found, [2 + 4 / 3, 2 - 4 / 3], rtol=1e-12)
    assert bits_per_byte(np.array([-1.0]), np.array([0])) is None


def test_the_spread_of_bits_per_byte_is_its_standard_error():
    """Beside a bootstrap of the ratio itself."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(20, 200, 400)
    logps = -sizes * generator.gamma(4.0, 0.25, 400)
    values = bits_per_byte(logps, sizes)
    rows = generator.integers(0, 400, (4000, 400))
    ratios = -logps[rows].sum(1) / np.log(2) / sizes[rows].sum(1)
    assert abs(values.std() / 20 / ratios.std() - 1) < 0.05
