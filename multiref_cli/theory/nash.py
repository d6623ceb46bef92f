"""General preferences: the regularized Nash equilibrium with the same divergences and K references.

P[a, b] is the probability that a is preferred to b, P + P^T = 1, not necessarily transitive. The game is
max_pi min_pi' pi' P pi - beta D(pi) + beta D(pi') with D = sum_i alpha_i D_A(pi_i || .).
"""

import torch
from torch import Tensor

from multiref_cli.theory.bounds import box_ratio, squared_difference
from multiref_cli.theory.exact import Solution, log_mixed, objectives, solve, value
from multiref_cli.theory.sensitivity import reward_jacobian


def nash_equilibrium(preferences: Tensor, references: Tensor, weights: Tensor, beta: float, order: float) -> Solution:
    """The symmetric equilibrium: the policy that is the exact optimum for its own win rates, r = P pi*(r).

    Newton on g(r) = r - P pi*(r). With H = d pi*/d r (positive semi-definite, H 1 = 0) and P = 1/2 + S, S skew,
    g' = I - S H, and S H has the eigenvalues of the skew H^(1/2) S H^(1/2), all imaginary: g' is never singular, the
    equilibrium is unique and moves smoothly with beta (derived). Where Newton does not arrive from the start, beta
    comes down in steps from where the game is trivial.

    Args:
        preferences: (Y, Y) P.
        references: (K, Y) probabilities.
        weights: (K,) alpha.
        beta: weight of the divergence, > 0.
        order: A.

    Returns:
        Solution of shape (Y,): the equilibrium policy, its log-ratios, and its normalizer.
    """
    mixed = log_mixed(references, weights, order)
    level = torch.full_like(mixed, 0.5)
    reward, error = _newton(preferences, mixed, level, beta, order)
    if error > 1e-12:
        reward, current = level, max(4.0, beta)
        while current > beta:
            reward, _ = _newton(preferences, mixed, reward, current, order)
            current = max(beta, 0.7 * current)
        reward, _ = _newton(preferences, mixed, reward, beta, order)
    return solve(mixed, reward, beta, order)


def _newton(preferences: Tensor, mixed: Tensor, reward: Tensor, beta: float, order: float) -> tuple[Tensor, float]:
    # Win rates at rest and the largest error left in them.
    identity = torch.eye(len(reward), dtype=reward.dtype)

    def _residual(r: Tensor) -> tuple[Tensor, Solution]:
        found = solve(mixed, r, beta, order)
        return r - preferences @ found.policy, found

    error, found = _residual(reward)
    for _ in range(60):
        if float(error.abs().max()) < 1e-14:
            break
        step = torch.linalg.solve(identity - preferences @ reward_jacobian(found, beta, order), error)
        size = 1.0
        while True:
            trial = reward - size * step
            trial_error, trial_found = _residual(trial)
            if size < 1e-6 or float(trial_error.norm()) < float(error.norm()):
                break
            size *= 0.5
        if size < 1e-6:
            break  # rounding has been reached
        reward, error, found = trial, trial_error, trial_found
    return reward, float(error.abs().max())


def dual_gap(
    policy: Tensor, preferences: Tensor, references: Tensor, weights: Tensor, beta: float, order: float
) -> Tensor:
    """How much two best-responding opponents gain against a policy: 2 (V(P pi) - pi' P pi + beta D(pi)).

    Args:
        policy: (Y,) probabilities.
        preferences: (Y, Y) P.
        references: (K, Y) probabilities.
        weights: (K,) alpha.
        beta: weight of the divergence.
        order: A.

    Returns:
        scalar Tensor >= 0, zero at the equilibrium only.
    """
    rewards = preferences @ policy
    best = value(references, weights, rewards, beta, order)
    return 2 * (best - objectives(policy, references, weights, rewards, beta, order))


def dual_gap_bound(policy: Tensor, error: Tensor, mixed: Tensor, beta: float, order: float) -> Tensor:
    """Derived, A >= -1: the equilibrium of a wrong P + E has dual gap <= F U^(1+A) / (2 beta) times the squared error.

    The equilibrium of P + E is the exact optimum for the reward (P + E) pi, so its regret under P pi is a Bregman
    divergence, quadratic in E pi. arXiv 2602.23116 has the quadratic rate for strongly convex regularizers.

    Args:
        policy: (Y,) equilibrium of the estimated preferences.
        error: (Y, Y) E, skew.
        mixed: (Y,) log M.
        beta: weight of the divergence.
        order: A >= -1.

    Returns:
        scalar Tensor.
    """
    squared = squared_difference(torch.softmax(mixed, -1), error @ policy)
    ratio = box_ratio(mixed, beta, order, 1.0)
    return torch.logsumexp(mixed, -1).exp() * ratio ** (1 + order) * squared / (2 * beta)
