"""Enumeration is the judge of `objectives/`: expectations and gradients by summing over every response."""

import pytest
import torch

from multiref_cli.objectives import penalty, preference
from multiref_cli.objectives.divergence import amari_divergence, score
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.theory import exact, trees
from multiref_cli.theory.bandit import generator, random_references

ORDERS = [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
BETA = 0.4


def problem(seed=0, responses=6):
    rng = generator(seed, "enumeration")
    references = random_references(rng, (1, 3, responses), 1.0)[0]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logits = torch.from_numpy(rng.normal(size=responses)).requires_grad_()
    return references, weights, torch.from_numpy(rng.random(responses)), logits


def gradient(value, logits):
    (found,) = torch.autograd.grad(value, logits, retain_graph=True)
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_the_score_in_the_reward_has_the_gradient_of_the_objective(order):
    references, weights, reward, logits = problem()
    truth = gradient(exact.objectives(logits.softmax(-1), references, weights, reward, BETA, order), logits)
    logps = logits.log_softmax(-1)
    signal = reward - BETA * score((logps - power_mean(references.log(), weights, order)).detach(), order)
    surrogate = (logps.exp().detach() * signal * logps).sum()  # E_pi[ signal grad log pi ]
    torch.testing.assert_close(gradient(surrogate, logits), truth)


@pytest.mark.parametrize("order", ORDERS)
def test_the_exact_optimum_is_where_that_gradient_vanishes(order):
    references, weights, reward, _ = problem()
    logits = exact.optimal_policy(references, weights, reward, BETA, order).log()
    mixed = power_mean(references.log(), weights, order)
    signal = reward - BETA * score(logits - mixed, order)
    assert signal.max() - signal.min() < 1e-10


@pytest.mark.parametrize("order", ORDERS)
def test_implicit_rewards_of_the_optimum_are_the_reward(order):
    references, weights, reward, _ = problem()
    best = exact.optimal_policy(references, weights, reward, BETA, order).log()
    implicit = preference.implicit_reward(best, power_mean(references.log(), weights, order), BETA, order)
    torch.testing.assert_close(implicit - implicit[0], reward - reward[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_the_expected_preference_loss_is_least_at_the_optimum(order):
    references, weights, reward, _ = problem()
    mixed = power_mean(references.log(), weights, order)
    logits = exact.optimal_policy(references, weights, reward, BETA, order).log().requires_grad_()
    implicit = preference.implicit_reward(logits.log_softmax(-1), mixed, BETA, order)
    wins = torch.sigmoid(reward[:, None] - reward)
    losses = preference.preference_loss(implicit[:, None].expand(6, 6), implicit.expand(6, 6), "sigmoid")
    assert gradient((wins * losses).sum(), logits).abs().max() < 1e-9


@pytest.mark.parametrize("order", [-1.0, 0.0, 1.0])
def test_k2_has_the_gradient_of_the_divergence(order):
    references, _, _, logits = problem()
    logps, reference = logits.log_softmax(-1), references[0].log()
    truth = gradient(amari_divergence(reference, logps, order), logits)
    estimate = (logps.exp().detach() * penalty.k2(logps - reference, order)).sum()
    torch.testing.assert_close(gradient(estimate, logits), truth)


def test_k3_estimates_the_reverse_kl_and_descends_the_forward_one():
    references, _, _, logits = problem()
    logps, reference = logits.log_softmax(-1), references[0].log()
    estimate = (logps.exp().detach() * penalty.k3(logps - reference)).sum()
    torch.testing.assert_close(estimate, amari_divergence(reference, logps, 0.0))
    forward = gradient(amari_divergence(reference, logps, 1.0), logits)
    torch.testing.assert_close(gradient((logps.exp().detach() * penalty.k3(logps - reference)).sum(), logits), forward)
    reverse = gradient(amari_divergence(reference, logps, 0.0), logits)
    assert (forward - reverse).abs().max() > 1e-2


def test_k3_on_an_unnormalized_mean_is_off_by_its_mass_less_one():
    references, weights, _, logits = problem()
    policy, mixed = logits.detach().softmax(-1), power_mean(references.log(), weights, 0.0)
    estimate = (policy * penalty.k3(policy.log() - mixed)).sum()
    truth = (policy * (policy.log() - mixed)).sum()
    torch.testing.assert_close(estimate - truth, mixed.exp().sum() - 1)
    assert mixed.exp().sum() < 0.9


def test_summed_k3_descends_the_forward_kl_to_the_arithmetic_mean():
    references, weights, _, logits = problem()
    logps = logits.log_softmax(-1)
    each = (logps.exp().detach() * penalty.k3(logps - references.log())).sum(-1)
    mixture = (weights @ references).log()
    truth = gradient(amari_divergence(mixture, logps, 1.0), logits)
    torch.testing.assert_close(gradient((weights * each).sum(), logits), truth)


@pytest.mark.parametrize("order", ORDERS)
def test_the_mean_divergence_is_that_of_the_unnormalized_power_mean(order):
    references, weights, _, logits = problem()
    policy = logits.detach().softmax(-1)
    mean = (exact.divergences(policy, references, order) * weights).sum()
    mixed = power_mean(references.log(), weights, order)
    if order in (0.0, 1.0):  # derivatives in A of the closed form
        truth = (
            (policy * (policy.log() - mixed)).sum()
            if order == 0
            else (weights[:, None] * references * (references.log() - policy.log())).sum()
        )
    else:
        truth = ((order * mixed + (1 - order) * policy.log()).exp().sum() - 1) / (order * (order - 1))
    torch.testing.assert_close(mean, truth)


def test_preference_training_per_token_is_another_problem():
    # The implicit rewards of the sequence-level optimum give the reward back; through the token-level mean they do not.
    tree = trees.random_trees(generator(0, "tree"), 2, 3, 4, 1.0)
    weights, reward = torch.tensor([0.4, 0.6], dtype=torch.float64), torch.from_numpy(generator(1, "r").random(81))
    best = exact.optimal_policy(trees.sequence_logps(tree).exp(), weights, reward, BETA, 0.0).log()
    at_sequence = preference.implicit_reward(best, trees.sequence_mixed(tree, weights, 0.0), BETA, 0.0)
    at_token = preference.implicit_reward(best, trees.token_mixed(tree, weights, 0.0)[0], BETA, 0.0)
    assert (at_sequence - reward).std() < 1e-12 and (at_token - reward).std() > 0.02
