"""Choosing alpha: by the normalized value of the problem, or without a reward by the references' disagreement.

V(alpha), the optimal value of E_pi[r] - beta sum_i alpha_i KL(pi || pi_i), charges -beta log F, the disagreement of the
references, which no policy can change, and is convex in alpha. The same policy is optimal for E_pi[r] - beta KL(pi ||
M_0 / F), whose value is V_norm(alpha) = V(alpha) - beta log F(alpha), a tighter lower bound of E_{pi*}[r].

What is computed of a distribution over all responses is estimated from samples by the same functions: their log masses
are then log M - log proposal of each sample, and are divided by their sum (self-normalized importance weights).
"""

import math

import torch
from torch import Tensor

from multiref_cli.objectives.mixing import power_mean
from multiref_cli.theory.exact import log_mixed, objectives, solve

STEPS = 400  # of ascent, at most
# Parts that an edge of the lattice is cut into: every weight is then a whole number of hundredths.
PARTS = (100, 50, 20, 10, 5, 2, 1)


def normalized_value(references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> Tensor:
    """V_norm(alpha) = beta log E_{y ~ M_0 / F}[exp(r / beta)] = V(alpha) - beta log F(alpha).

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0.

    Returns:
        (...) in reward units.
    """
    return optimal_value(log_mixed(references, weights, 0.0), reward, beta, 0.0)


def optimal_value(log_masses: Tensor, reward: Tensor, beta: float, order: float) -> Tensor:
    """max_pi E_pi[r] - beta D_A(q || pi) towards one distribution q: of M / F it is V_norm of any mean and score.

    Args:
        log_masses: (..., Y) log q up to a constant, in nats.
        reward: (..., Y).
        beta: weight of the divergence, > 0.
        order: A of the divergence; 0 gives beta log E_q[exp(r / beta)].

    Returns:
        (...) in reward units.
    """
    logs = torch.log_softmax(log_masses, -1)
    if order == 0:
        return beta * torch.logsumexp(logs + reward / beta, -1)
    policy = solve(logs, reward, beta, order).policy
    return objectives(policy, logs.exp().unsqueeze(-2), logs.new_ones(1), reward, beta, order)


def disagreement(logps: Tensor, weights: Tensor, order: float, log_proposal: Tensor | float = 0.0) -> Tensor:
    """min_pi sum_i alpha_i D_A(pi_i || pi) = (1 - F^A) / (A (1 - A)), F = sum_y M_A(y): what no policy can avoid.

    Its largest value over alpha is the minimax min_pi max_i D_A(pi_i || pi), where all references with a weight are
    equally far (a saddle point: it is concave in alpha, a minimum of functions linear in it). At A = 0 it is -log F,
    whose maximum is the Chernoff information; at A = 1 sum_i alpha_i KL(pi_i || M_1), whose maximum is the
    Jensen-Shannon capacity. Derived (Hoelder); at A = 0 the term -log F of the paper's D.3.

    Args:
        logps: (K, ..., Y) log-probabilities of responses in nats.
        weights: (K,) alpha on the simplex.
        order: A.
        log_proposal: (..., Y) log-probability with which each response was drawn; 0: these are all responses. F is then
            the ratio of sum M_A and sum M_1 = 1, so that it stays between 0 and 1 for A < 1.

    Returns:
        (...) in nats, 0 where the references agree.
    """
    arithmetic = power_mean(logps, weights, 1.0) - log_proposal
    if order == 1:
        kept = weights > 0
        shares = torch.softmax(_joint(logps[kept], weights[kept]), 0)
        prior = weights[kept].reshape(-1, *[1] * (logps.ndim - 1))
        each = torch.xlogy(shares, shares / prior).sum(0)
        return (torch.softmax(arithmetic, -1) * each).sum(-1)
    mixed = power_mean(logps, weights, order) - log_proposal
    log_f = torch.logsumexp(mixed, -1) - torch.logsumexp(arithmetic, -1)
    return -log_f if order == 0 else -torch.expm1(order * log_f) / (order * (1 - order))


def _joint(logps: Tensor, weights: Tensor) -> Tensor:
    return logps + weights.log().reshape(-1, *[1] * (logps.ndim - 1))


def effective_samples(log_masses: Tensor) -> Tensor:
    """How many equal samples weighted ones are worth, 1 / sum w^2 (Kish): (..., N) log w up to a constant -> (...)."""
    return 1 / torch.softmax(log_masses, -1).square().sum(-1)


def lattice(count: int, most: int) -> Tensor:
    """Weights on the simplex whose parts are whole hundredths: the finest regular lattice with at most so many points.

    Args:
        count: K references, 2 or more.
        most: points, at least K.

    Returns:
        (L, K) float64 rows that sum to one, the corners among them; of two references the first weight ascends.
    """
    parts = next((n for n in PARTS if math.comb(n + count - 1, count - 1) <= most), 1)
    rows = [[0] * count]
    for i in range(count - 1):  # what is left of the whole is given to the references in turn
        rows = [[*r[:i], n, *r[i + 1 :]] for r in rows for n in range(parts - sum(r[:i]) + 1)]
    return torch.tensor([[*r[:-1], parts - sum(r[:-1])] for r in rows], dtype=torch.float64) / parts


def normalized_value_gradient(references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> Tensor:
    """d V_norm / d alpha_i = beta (E_{pi*}[log pi_i] - E_{M_0 / F}[log pi_i]), each alpha moved alone.

    A reference earns weight iff it likes the improved responses better than the plain mix does.

    Args:
        references: (..., K, Y) probabilities, all positive.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0.

    Returns:
        (..., K) in reward units.
    """
    mixed = log_mixed(references, weights, 0.0)
    shift = torch.softmax(mixed + reward / beta, -1) - torch.softmax(mixed, -1)
    return beta * (references.log() * shift.unsqueeze(-2)).sum(-1)


def best_weights(references: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The rule: alpha that maximizes the mean of V_norm over a batch of prompts.

    Exponentiated gradient from equal weights and from near each corner, since V_norm is not concave; the corners
    themselves compete too.

    Args:
        references: (..., K, Y) probabilities, all positive.
        reward: (..., Y) the reward that is known, say a learned one.
        beta: weight of the divergence, > 0.

    Returns:
        (K,) on the simplex.
    """
    corners = torch.eye(references.shape[-2], dtype=references.dtype)
    starts = [corners.mean(0), *(0.8 * corners + 0.2 * corners.mean(0))]
    candidates = [*corners, *(_ascend(references, start, reward, beta) for start in starts)]
    return max(candidates, key=lambda w: float(normalized_value(references, w, reward, beta).mean()))


def _ascend(references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> Tensor:
    best, step = float(normalized_value(references, weights, reward, beta).mean()), 1.0 / beta
    for _ in range(STEPS):
        slope = normalized_value_gradient(references, weights, reward, beta)
        slope = slope.reshape(-1, slope.shape[-1]).mean(0)
        slope = slope - (weights * slope).sum()
        trial = torch.softmax(weights.log() + step * slope, 0)
        value = float(normalized_value(references, trial, reward, beta).mean())
        if value > best:
            weights, best, step = trial, value, 1.5 * step
        elif step * float(slope.abs().max()) < 1e-9:
            break
        else:
            step *= 0.5
    return weights
