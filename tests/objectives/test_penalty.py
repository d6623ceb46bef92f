"""Every estimator's value and gradient against enumeration, and the loss against closed forms on a tree."""

from functools import partial

import pytest
import torch

from multiref_cli.config.regularizer import Estimator, Mix, Term
from multiref_cli.objectives.divergence import amari_divergence, score
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.objectives.penalty import (
    calibrated_threshold,
    clipped_penalty,
    k2,
    k3,
    k3_ratio,
    sampled_charge,
    sampled_penalty,
)

ORDERS = [-1.0, 0.0, 0.5, 1.0, 2.0]
VOCABULARY, LENGTH = 5, 3


def distribution(seed: int, *shape: int) -> torch.Tensor:
    """Random log-probs (..., V) in float64."""
    logits = torch.randn(*shape, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.log_softmax(-1)


def gradient(function, logits: torch.Tensor) -> torch.Tensor:
    """d function / d logits of a policy given by its logits."""
    logits = logits.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(logits.log_softmax(-1)), logits)
    return result


def expected(term, logits: torch.Tensor) -> torch.Tensor:
    """On-policy expected gradient of a loss term: sum_v pi(v) d term_v, the sampling itself not differentiated."""
    return gradient(lambda logps: (logps.detach().exp() * term(logps)).sum(), logits)


@pytest.mark.parametrize("order", ORDERS)
def test_reward_penalty_has_the_gradient_of_the_divergence(order):
    """E_pi[ s_A grad log pi ] = grad sum_i alpha_i D_A(pi_i‖pi) with the unnormalized mean of the same order."""
    references, logits, alpha = distribution(0, 3), distribution(1), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    mixed = power_mean(references, alpha, order)
    given = expected(lambda logps: score((logps - mixed).detach(), order) * logps, logits)
    wanted = gradient(lambda logps: (alpha * amari_divergence(references, logps, order)).sum(), logits)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("order", ORDERS)
def test_k2_descends_the_divergence_of_its_order(order):
    """Its on-policy gradient is that of D_A(M‖pi) for a normalized M."""
    mixed, logits = distribution(2), distribution(3)
    given = expected(lambda logps: k2(logps - mixed, order), logits)
    torch.testing.assert_close(given, gradient(lambda logps: amari_divergence(mixed, logps, order), logits))


def test_k3_estimates_reverse_but_descends_forward():
    """E k3 = KL(pi‖M), and its gradient is that of KL(M‖pi), which differs."""
    mixed, logits = distribution(4), distribution(5)
    value = (logits.exp() * k3(logits - mixed)).sum()
    torch.testing.assert_close(value, amari_divergence(mixed, logits, 0))
    given = expected(lambda logps: k3(logps - mixed), logits)
    torch.testing.assert_close(given, gradient(lambda logps: amari_divergence(mixed, logps, 1), logits))
    assert (given - gradient(lambda logps: amari_divergence(mixed, logps, 0), logits)).abs().max() > 1e-2


def test_k3_on_an_unnormalized_mean_is_off_by_its_normalizer():
    """E k3 with M = F q is KL(pi‖q) - log F + F - 1, and the pull towards q is scaled by F."""
    q, logits, log_f = distribution(6), distribution(7), -0.7
    value = (logits.exp() * k3(logits - q - log_f)).sum()
    f = torch.tensor(log_f, dtype=torch.float64).exp()
    torch.testing.assert_close(value, amari_divergence(q, logits, 0) - log_f + f - 1)
    given = expected(lambda logps: k3(logps - q - log_f), logits)
    torch.testing.assert_close(given, f * gradient(lambda logps: amari_divergence(q, logps, 1), logits))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("off_policy", [False, True])
def test_k3_ratio_has_value_and_gradient_of_its_divergence(order, off_policy):
    """Sampled from pi_old, rho f_A has expectation D_A(M‖pi) and its gradient is that of D_A, on and off policy."""
    mixed, logits = distribution(8), distribution(9)
    old = distribution(10) if off_policy else logits

    def term(logps):
        return (old.exp() * k3_ratio(logps - mixed, torch.exp(logps - old), order)).sum()

    torch.testing.assert_close(term(logits), amari_divergence(mixed, logits, order))
    torch.testing.assert_close(
        gradient(term, logits), gradient(lambda logps: amari_divergence(mixed, logps, order), logits)
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("off_policy", [False, True])
def test_all_estimators_of_a_mean_of_the_same_order_mean_the_sum_over_references(order, off_policy):
    """Against the normalized mix, with the factor F^A: the gradient of sum_i alpha_i D_A(pi_i‖pi), and as the charge
    its value less the least one, which M / F has; off the policy that sampled k3_ratio and the charge still do."""
    references, logits, alpha = distribution(0, 3), distribution(1), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    old = distribution(13) if off_policy else logits
    mixed = power_mean(references, alpha, order)
    log_f, terms = mixed.logsumexp(-1), [Term(order, Mix(order, tuple(alpha.tolist())))]

    def summed(logps):
        return (alpha * amari_divergence(references, logps, order)).sum()

    def each(function, logps):
        ratios = torch.exp(logps - old)
        found = function((logps - (mixed - log_f))[None, None], ratios[None], log_f.expand(1, 1, VOCABULARY))
        return (old.exp() * found[0]).sum()

    for estimator in (Estimator.k3_ratio,) if off_policy else (Estimator.k2, Estimator.k3_ratio):
        loss = partial(sampled_penalty, estimator, terms)
        given = gradient(partial(each, loss), logits)
        torch.testing.assert_close(given, gradient(summed, logits))
    charged = each(partial(sampled_charge, terms), logits)
    torch.testing.assert_close(charged, summed(logits) - summed(mixed - log_f))


def test_k1_as_a_loss_has_no_gradient():
    """The expected gradient of the plain log ratio is zero: it only works inside the reward."""
    mixed, logits = distribution(11), distribution(12)
    given = expected(lambda logps: logps - mixed, logits)
    torch.testing.assert_close(given, torch.zeros_like(given), atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_k2_beyond_the_clip_follows_the_linear_score(order, clip):
    """d k2 / dx is the clipped score everywhere, finite even where the exponential would overflow."""
    x = torch.tensor([-2000.0, -3.0, -0.4, 0.0, 0.3, 3.0, 2000.0], dtype=torch.float64, requires_grad=True)
    value = k2(x, order, clip)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    torch.testing.assert_close(slope, score(x.detach(), order, clip))


def clipped(x: torch.Tensor, order: float) -> torch.Tensor:
    """The clipped penalty of one term against a reference of log-probability 0, tau = 2."""
    return clipped_penalty([Term(order, Mix(order, (1.0,)))], x, torch.zeros(1, len(x)), 2.0)


def test_clipped_penalty_is_the_score_of_the_clipped_ratio():
    """Inside tau it is the reward penalty, outside it stays where tau put it."""
    x = torch.tensor([-5.0, -0.5, 0.5, 5.0])
    torch.testing.assert_close(clipped(x, 0.0), torch.tensor([-2.0, -0.5, 0.5, 2.0]))
    torch.testing.assert_close(clipped(x, 1.0)[1:3], score(x, 1.0)[1:3])


def test_clipped_penalty_of_two_terms_clips_each_ratio():
    """By hand: log ratios 5 and -1 to two references, both of order 0, weights 1 and 0.5: min(5, 2) - 0.5."""
    terms = [Term(0.0, Mix(0.0, (1.0, 0.0))), Term(0.0, Mix(0.0, (0.0, 1.0)), 0.5)]
    found = clipped_penalty(terms, torch.tensor([0.0]), torch.tensor([[-5.0], [1.0]]), 2.0)
    torch.testing.assert_close(found, torch.tensor([1.5]))


def test_calibrated_threshold_minimizes_bias_plus_sampling_error():
    """No tau on a grid beats it on tau * sqrt(2 log(2 / delta) / n) + mean (|x| - tau)_+."""
    x = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    rate = (2 * torch.log(torch.tensor(2 / 0.05)) / 400).sqrt().item()

    def cost(tau: float) -> float:
        return tau * rate + (x.abs() - tau).clamp(min=0).mean().item()

    best = min(cost(float(tau)) for tau in torch.linspace(0.01, 12, 2000))
    assert cost(calibrated_threshold(x)) <= best + 2e-3
    assert calibrated_threshold(torch.zeros(4)) > 0


def tree(tables: torch.Tensor) -> torch.Tensor:
    """Log-probs (125,) of all sequences under logits (31, 5), one row a prefix, in lexicographic order."""
    rows = tables.log_softmax(-1)
    first, second, third = rows[:1], rows[1:6], rows[6:31]
    return (first[0][:, None, None] + second[:, :, None] + third.reshape(5, 5, 5)).reshape(-1)


def test_on_a_tree_the_reward_penalty_is_complete_and_token_losses_take_states_as_given():
    """Over whole responses E[s_0 grad log pi] is the gradient of KL(pi‖q); the sum of per-token k2 gradients is not."""
    generator = torch.Generator().manual_seed(3)
    tables = torch.randn(31, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()
    other = torch.randn(31, VOCABULARY, generator=generator, dtype=torch.float64)
    policy, reference = tree(tables), tree(other).detach()
    (wanted,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), tables, retain_graph=True)
    surrogate = (policy.detach().exp() * score((policy - reference).detach(), 0.0) * policy).sum()
    (given,) = torch.autograd.grad(surrogate, tables)
    torch.testing.assert_close(given, wanted)

    rows, others = tables.log_softmax(-1), other.log_softmax(-1)
    root = torch.ones(1, dtype=torch.float64)
    reach = torch.cat([root, rows[0].exp(), (rows[0][:, None] + rows[1:6]).exp().flatten()]).detach()
    per_state = (reach * (rows.detach().exp() * k2(rows - others)).sum(-1)).sum()
    (token,) = torch.autograd.grad(per_state, tables)
    leaves = slice(6, 31)
    torch.testing.assert_close(token[leaves], wanted[leaves])
    assert (token[0] - wanted[0]).abs().max() > 1e-2
