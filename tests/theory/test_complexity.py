"""Preference data, fits, predicted constants and slopes."""

import numpy as np
import pytest
import torch

from multiref_cli.theory import bounds, complexity, exact, privacy
from multiref_cli.theory.bandit import generator, random_references
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies import sample_complexity, sampling
from multiref_cli.theory.studies.setting import linear_setting, tabular

SAMPLING = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.2, 0.5, 0.0], dtype=torch.float64)


def test_counts_have_the_law_of_labeled_pairs():
    counts = complexity.preference_counts(generator(0, "law"), SAMPLING, REWARD, 1000, 4000, flip=0.1)
    wins = 0.8 * torch.sigmoid(REWARD[:, None] - REWARD) + 0.1
    expected = 2000 * SAMPLING[:, None] * SAMPLING * wins
    expected.fill_diagonal_(0.0)
    torch.testing.assert_close(counts.mean(0), expected, atol=1.0, rtol=0.0)
    informative = 1000 * (1 - (SAMPLING**2).sum())  # the rest are pairs of one response with itself
    assert float(counts.sum((1, 2)).mean()) == pytest.approx(float(informative), rel=2e-3)


def test_finite_estimate_is_the_most_likely_member():
    rivals = torch.from_numpy(generator(0, "class").random((20, 4)))
    counts = complexity.preference_counts(generator(1, "data"), SAMPLING, REWARD, 50, 30)
    found = complexity.finite_estimate(counts, rivals)
    for data, index in zip(counts, found):
        likelihood = [float((data * torch.sigmoid(f[:, None] - f).log()).sum()) for f in rivals]
        assert int(np.argmax(likelihood)) == int(index)


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_linear_estimate_has_a_vanishing_gradient(flip):
    features = torch.from_numpy(generator(0, "features").normal(size=(4, 2)))
    counts = complexity.preference_counts(generator(1, "data"), SAMPLING, REWARD, 500, 20, flip)
    theta = complexity.linear_estimate(counts, features, flip).requires_grad_()
    p = complexity.label_probability(theta @ features.T, flip)
    loss = (counts * p.log()).sum() - 0.5 * complexity.PRIOR * (theta**2).sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    assert gradient.abs().max() < 1e-5


def test_separable_data_have_a_finite_answer():
    counts = torch.zeros(1, 4, 4, dtype=torch.float64)
    counts[0, 0, 1:] = 5.0
    theta = complexity.linear_estimate(counts, torch.eye(4, dtype=torch.float64)[:, :3])
    assert torch.isfinite(theta).all() and theta[0, 0] > 3


@pytest.mark.parametrize("flip", [0.0, 0.25])
@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 1.0])
def test_the_predicted_constant_is_what_simulation_finds(order, flip):
    rng = generator(0, "constant")
    references, weights = random_references(rng, (1, 2, 8), 2.0)[0], torch.tensor([0.4, 0.6], dtype=torch.float64)
    features = torch.from_numpy(rng.normal(size=(8, 3)))
    reward = features @ torch.tensor([0.5, -0.4, 0.3], dtype=torch.float64)
    args, n, draws = (references, weights, reward, 0.5, order), 100_000, 4000
    q = bounds.normalized(exact.log_mixed(references, weights, order))
    information = complexity.pair_information(q, reward, features, flip)
    predicted = complexity.predicted_gap(exact.solution(*args), information, features, 0.5, order)
    counts = complexity.preference_counts(rng, q, reward, n, draws, flip)
    estimates = complexity.linear_estimate(counts, features, flip) @ features.T
    policies = exact.optimal_policy(references.expand(draws, 2, 8), weights, estimates, 0.5, order)
    gaps = n * exact.regret(policies, *args)
    assert abs(float(gaps.mean()) - predicted) < 4 * float(gaps.std()) / draws**0.5


def test_slope_of_an_exact_power_law_and_its_interval():
    n = 2.0 ** np.arange(5, 12)
    noise = generator(0, "noise").gamma(4.0, 0.25, (len(n), 300))
    slope = complexity.log_slope(n, noise / n[:, None], generator(1, "bootstrap"))
    assert slope.low < -1.0 < slope.high and slope.high - slope.low < 0.1
    half = complexity.log_slope(n, noise / np.sqrt(n)[:, None], generator(1, "bootstrap"))
    assert half.low < -0.5 < half.high < slope.high + 1


def test_reverse_and_forward_kl_gaps_both_fall_as_one_over_n():
    lab = Laboratory(n=8192, draws=200)
    setting = linear_setting(lab)
    for order in (0.0, 1.0):
        found = sample_complexity.sweep(lab, setting, order, linear=True)
        late = slice(4, None)
        slope = complexity.log_slope(found.n[late], found.regularized[late], generator(0, "slope"))
        assert slope.low < -0.95 and slope.high < -0.85 and slope.slope > -1.15
        plain = complexity.log_slope(found.n[late], found.plain[late], generator(0, "slope"))
        assert -0.62 < plain.slope < -0.38


def test_multiscale_class_holds_the_truth_first_and_stays_in_the_box():
    rivals = complexity.multiscale_class(generator(0, "class"), REWARD, 1.0, 64, 6)
    assert rivals.shape == (64, 4) and torch.equal(rivals[0], REWARD)
    assert rivals.min() >= 0 and rivals.max() <= 1
    distances = (rivals[1:] - REWARD).abs().amax(-1)
    assert distances.min() < 0.05 and distances.max() > 0.4


def test_two_stages_beat_one_where_the_best_response_is_rare():
    lab = Laboratory(draws=300, beta=0.075)
    setting = tabular(linear_setting(lab), 0.01)
    one, two = sampling.stages(lab, setting, 8192, "test")
    assert two.mean() < 0.75 * one.mean()


def test_second_stage_pairs_come_from_the_fitted_policy():
    first = torch.zeros(50, 4, 4, dtype=torch.float64)
    policies = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64).expand(50, 4)
    counts = complexity.two_stage_counts(generator(0, "stages"), first, policies, REWARD, 200)
    assert counts[:, 2:].sum() == 0 and counts[:, :, 2:].sum() == 0 and counts[:, 0, 1].sum() > 0


def test_randomized_response_is_private_and_its_cost_is_the_inflation():
    for epsilon in (0.5, 2.0):
        p = privacy.flip_probability(epsilon)
        assert (1 - p) / p == pytest.approx(np.exp(epsilon))
        assert privacy.inflation(epsilon) == pytest.approx(1 / (1 - 2 * p) ** 2)
    level = torch.zeros(4, dtype=torch.float64)  # labels that are coin flips: there the law is exact
    features = torch.eye(4, dtype=torch.float64)[:, 1:]
    clean, noisy = (
        complexity.pair_information(SAMPLING, level, features, f) for f in (0.0, privacy.flip_probability(1))
    )
    torch.testing.assert_close(clean, noisy * privacy.inflation(1.0))


def test_ignoring_the_flips_costs_more_than_knowing_them():
    lab = Laboratory(draws=200)
    aware, naive = sampling.private(lab, linear_setting(lab), 16384, 1.0)
    assert naive.mean() > 3 * aware.mean()
