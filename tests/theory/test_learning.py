"""Learned preferences, pessimism, and the rules of the clipping paper, against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch

from multiref_cli.theory import clipping, exact, learning, nash, privacy
from multiref_cli.theory.bandit import generator

WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)
REFERENCES = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)


def game():
    rng = generator(0, "game")
    features = torch.from_numpy(rng.standard_normal((4, 3)))
    one, other = torch.from_numpy(rng.standard_normal((2, 3)))
    theta = torch.outer(one, other) - torch.outer(other, one)
    return rng, features, theta, torch.sigmoid(features @ theta @ features.T)


def test_the_logit_of_a_low_rank_preference_is_linear_in_theta():
    _, features, theta, preferences = game()
    entries = theta[tuple(torch.triu_indices(3, 3, 1))]
    torch.testing.assert_close(torch.sigmoid(learning.skew_features(features) @ entries), preferences)
    assert torch.linalg.matrix_rank(torch.logit(preferences)) == 2


def test_pairs_come_from_the_policy_and_are_labeled_by_the_preferences():
    rng, _, _, preferences = game()
    counts = learning.game_counts(rng, REFERENCES, preferences, 200_000, 2) / 200_000
    for found, policy in zip(counts, REFERENCES):
        expected = 2 * torch.outer(policy, policy) * preferences
        expected = expected / expected.sum()
        expected.fill_diagonal_(0)
        assert (found - expected).abs().max() < 0.004


def test_preferences_are_found_again_from_many_pairs():
    rng, features, _, preferences = game()
    counts = learning.game_counts(rng, REFERENCES[0], preferences, 10**6, 3)
    fitted = learning.fitted_preferences(counts, learning.skew_features(features))
    assert (fitted - preferences).abs().max() < 0.01
    torch.testing.assert_close(fitted + fitted.mT, torch.ones_like(fitted))


def test_regrets_are_sums_of_dual_gaps():
    """With horizons 8 and 16 greedy plays the start eight times, then what eight rounds say eight times."""
    _, features, _, preferences = game()
    start, args = REFERENCES[0], (REFERENCES, WEIGHTS, 0.3, 0.0)
    z, gap = learning.skew_features(features), nash.dual_gap(REFERENCES[0], preferences, REFERENCES, WEIGHTS, 0.3, 0.0)
    regret = learning.greedy_regret(generator(1, "x"), preferences, z, start, [8, 16], 2, *args)
    assert regret[0] == pytest.approx(8 * float(gap))
    counts = learning.game_counts(generator(1, "x"), start, preferences, 8, 2)
    policies = learning.equilibria(learning.fitted_preferences(counts, z), *args)
    torch.testing.assert_close(regret[1] - regret[0], 8 * learning.gaps(policies, preferences, *args))
    committed = learning.committed_regret(generator(1, "x"), preferences, z, start, [64], 2, *args)
    torch.testing.assert_close(committed[0], 8 * gap + 56 * learning.gaps(policies, preferences, *args))


def test_standard_errors_are_those_of_repeated_fits():
    from multiref_cli.theory.complexity import linear_estimate, preference_counts

    reward, behavior = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2]).double()
    flip = privacy.flip_probability(2.0)
    counts = preference_counts(generator(0, "errors"), behavior, reward, 20_000, 500, flip)
    fitted = linear_estimate(counts, torch.eye(3, dtype=torch.float64), flip)
    seen = (fitted - (fitted @ behavior)[:, None]).std(0)
    told = privacy.standard_errors(counts, fitted, behavior, flip).mean(0)
    assert told.numpy() == pytest.approx(seen.numpy(), rel=0.1)


def test_the_printed_rule_by_hand():
    """P = 50, G = 2, delta = .05: a = .2094 + .1480, so the .2852 quantile; with P = 4 none is left."""
    unknown = math.sqrt(math.log(80) / 100) + math.sqrt(math.log(80) / 200)
    values = torch.linspace(-1, 0, 101, dtype=torch.float64)
    assert clipping.printed_threshold(values, 50, 2, 0.05) == pytest.approx(1 - 2 * unknown)
    assert clipping.printed_threshold(values, 4, 2, 0.05) is None


def test_the_shift_constant_is_the_largest_growth_of_an_error():
    policy, reference = REFERENCES
    constant = clipping.shift_constant(policy, reference)
    assert float(constant) == pytest.approx(math.sqrt(0.25 / 0.1 + 0.04 / 0.2 + 0.04 / 0.3 + 0.01 / 0.4))
    errors = torch.from_numpy(np.random.default_rng(0).standard_normal((500, 4)))
    growth = (errors.abs() @ policy) / (errors**2 @ reference).sqrt()
    assert (growth <= constant).all()
    worst = policy / reference
    assert float((worst @ policy) / (worst**2 @ reference).sqrt()) == pytest.approx(float(constant))
    assert float(exact.divergences(policy, reference[None], -1.0)[0]) == pytest.approx(float(constant**2 - 1) / 2)


@pytest.mark.parametrize("ratio", [0.5, 3.0, 40.0])
def test_the_best_number_of_rollouts_is_where_the_deviation_is_flat(ratio):
    best = torch.tensor(clipping.best_rollouts(ratio), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(clipping.deviation(best, ratio), best)
    assert abs(float(slope)) < 1e-12
    near = clipping.deviation(torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64) * best.detach(), ratio)
    assert near.argmin() == 1
