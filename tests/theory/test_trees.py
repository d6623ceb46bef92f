"""Autoregressive trees: look-ahead, posterior mixtures, and what mixing per token costs."""

import itertools

import pytest
import torch

from multiref_cli.theory import exact, trees
from multiref_cli.theory.bandit import generator

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


def tree(distance=1.0, seed=0, vocabulary=3, length=4):
    return trees.random_trees(generator(seed, "tree"), 2, vocabulary, length, distance)


def test_sequence_probabilities_are_products_of_conditionals():
    models = tree()
    logps = trees.sequence_logps(models)
    for index, sequence in enumerate(itertools.product(range(3), repeat=4)):
        prefix, total = 0, 0.0
        for level, token in zip(models, sequence):
            total = total + level[:, prefix, token]
            prefix = 3 * prefix + token
        torch.testing.assert_close(logps[:, index], total)
    torch.testing.assert_close(logps.exp().sum(-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 1.0])
def test_look_ahead_conditionals_sample_the_exact_mixed_reference(order):
    mixed = trees.sequence_mixed(tree(), WEIGHTS, order)
    stepwise = trees.sequence_logps(trees.conditionals(mixed, 3))
    torch.testing.assert_close(stepwise, mixed - mixed.logsumexp(-1))


def test_the_exact_escort_needs_look_ahead_its_conditionals_are_not_the_token_level_ones():
    models = tree()
    exact_first = trees.conditionals(trees.sequence_mixed(models, WEIGHTS, 0.0), 3)[0]
    local_first = (WEIGHTS[:, None, None] * models[0]).sum(0).log_softmax(-1)
    assert (exact_first - local_first).abs().max() > 1e-2


def test_the_arithmetic_mixture_needs_only_a_running_posterior():
    models = tree()
    by_posterior = trees.posterior_mixture(models, WEIGHTS)
    by_look_ahead = trees.conditionals(trees.sequence_mixed(models, WEIGHTS, 1.0), 3)
    for a, b in zip(by_posterior, by_look_ahead):
        torch.testing.assert_close(a, b)


def test_token_level_differs_from_sequence_level_by_the_summed_normalizers():
    models = tree()
    token, normalizers = trees.token_mixed(models, WEIGHTS, 0.0)
    sums = torch.zeros(1, dtype=torch.float64)
    for normalizer in normalizers:
        sums = (sums + normalizer).repeat_interleave(3)
    torch.testing.assert_close(token, trees.sequence_mixed(models, WEIGHTS, 0.0) - sums)
    torch.testing.assert_close(token.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert all((f <= 1e-12).all() for f in normalizers)


def test_regret_of_the_token_level_grows_with_distance_and_vanishes_without():
    reward = torch.from_numpy(generator(1, "reward").random(81))
    regrets = []
    for distance in (0.0, 0.3, 1.0, 3.0):
        models = tree(distance)
        references = trees.sequence_logps(models).exp()
        policy = trees.token_level_policy(models, WEIGHTS, reward, 0.2, 0.0)
        regrets.append(float(exact.regret(policy, references, WEIGHTS, reward, 0.2, 0.0)))
    assert abs(regrets[0]) < 1e-12
    assert regrets[1] < regrets[2] < regrets[3] and regrets[3] > 1e-2


def test_disagreement_is_zero_for_equal_references_only():
    policy = torch.full((81,), 1 / 81, dtype=torch.float64)
    assert abs(trees.disagreement(tree(0.0), WEIGHTS, policy)) < 1e-12
    assert trees.disagreement(tree(1.0), WEIGHTS, policy) > 0.1


def test_the_token_level_policy_is_optimal_for_the_token_level_reference():
    models, reward = tree(), torch.from_numpy(generator(1, "reward").random(81))
    single = trees.token_mixed(models, WEIGHTS, 0.0)[0].exp()[None]
    policy = trees.token_level_policy(models, WEIGHTS, reward, 0.2, 0.0)
    assert abs(float(exact.regret(policy, single, torch.ones(1, dtype=torch.float64), reward, 0.2, 0.0))) < 1e-12
