"""Clipped log-ratios (arXiv 2602.21765): bias against variance of the estimate, and what clipping does to the optimum.

Derived here: a penalty clamped at +-c in the reward has a hard-edged optimum (responses that want less than -c lose all
mass, the best ones take more than +c for free), while the linear continuation of `objectives.divergence.score` has the
exact optimum as soon as c covers the log-ratios that the optimum needs.
"""

import math

import torch
from torch import Tensor

from multiref_cli.objectives.divergence import score


def clipped_moments(policy: Tensor, log_ratio: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Bias and variance of the one-sample estimate clip(log u, -c, c) of KL = E_pi[log u].

    Args:
        policy: (Y,) probabilities.
        log_ratio: (Y,) log pi / q.
        threshold: (C,) values of c, nats.

    Returns:
        (C,) bias and (C,) variance of one sample.
    """
    used = policy > 0
    policy, log_ratio = policy[used], log_ratio[used]
    clipped = torch.minimum(torch.maximum(log_ratio, -threshold[:, None]), threshold[:, None])
    mean = clipped @ policy
    return mean - log_ratio @ policy, (clipped**2) @ policy - mean**2


def clip_bias_bound(policy: Tensor, log_ratio: Tensor, threshold: Tensor) -> Tensor:
    """Derived: |bias| <= E[(log u)^2] / (4 c), from |x| - c <= x^2 / (4 c).

    Args:
        policy: (Y,) probabilities.
        log_ratio: (Y,) log pi / q.
        threshold: (C,) values of c.

    Returns:
        (C,) in nats.
    """
    used = policy > 0
    return (policy[used] * log_ratio[used] ** 2).sum() / (4 * threshold)


def best_threshold(policy: Tensor, log_ratio: Tensor, threshold: Tensor, samples: int) -> tuple[float, float]:
    """Threshold with the smallest mean squared error bias^2 + variance / n.

    Args:
        policy: (Y,) probabilities.
        log_ratio: (Y,) log pi / q.
        threshold: (C,) candidates.
        samples: n rollouts.

    Returns:
        threshold and its root mean squared error, two scalars.
    """
    bias, variance = clipped_moments(policy, log_ratio, threshold)
    error = (bias**2 + variance / samples).sqrt()
    best = int(error.argmin())
    return float(threshold[best]), float(error[best])


def printed_threshold(log_ratio: Tensor, prompts: int, rollouts: int, delta: float) -> float | None:
    """The clip rule that arXiv 2602.21765 prints: the (1 - 2a)-quantile of |log u| of the rollouts.

    Equation: a = sqrt(log(4 / delta) / (2 P)) + sqrt(log(4 / delta) / (2 P G)), what P prompts of G rollouts each leave
    unknown of a distribution function.

    Args:
        log_ratio: (P G,) log pi / q of the rollouts.
        prompts: P.
        rollouts: G a prompt.
        delta: probability that the rule fails, a scalar.

    Returns:
        tau in nats; None where a is 1/2 or more and no quantile is left.
    """
    unknown = (math.log(4 / delta) / (2 * prompts)) ** 0.5 + (math.log(4 / delta) / (2 * prompts * rollouts)) ** 0.5
    return float(log_ratio.abs().quantile(1 - 2 * unknown)) if unknown < 0.5 else None


def shift_constant(policy: Tensor, reference: Tensor) -> Tensor:
    """C = sqrt(1 + chi^2(pi || q)): E_pi|e| <= C sqrt(E_q e^2) for every error e of a reward (Cauchy-Schwarz).

    The reward is fitted where q samples and used where pi does: the reward shift of arXiv 2602.21765. Errors
    proportional to pi / q reach it.

    Args:
        policy: (..., Y) probabilities.
        reference: (..., Y) probabilities, positive where the policy is.

    Returns:
        (...).
    """
    return (torch.where(policy > 0, policy**2 / reference, 0.0)).sum(-1).sqrt()


def best_rollouts(cost_ratio: float) -> float:
    """Rollouts a prompt that spend a budget best, K* = (c_p / c_d)^(2/3) (arXiv 2602.21765).

    A prompt costs c_p, a rollout c_d. Minimum over K of the deviation 1 / sqrt(P) + 1 / sqrt(P K) at a fixed
    P (c_p + c_d K), see `deviation`.

    Args:
        cost_ratio: c_p / c_d, a scalar.

    Returns:
        K*, not rounded.
    """
    return cost_ratio ** (2 / 3)


def deviation(rollouts: Tensor, cost_ratio: float) -> Tensor:
    """1 / sqrt(P) + 1 / sqrt(P K) with P = 1 / (c_p / c_d + K), all that a budget of one unit c_d buys.

    Args:
        rollouts: (...) K.
        cost_ratio: c_p / c_d, a scalar.

    Returns:
        (...); with b times the budget it is 1 / sqrt(b) of it.
    """
    return (cost_ratio + rollouts).sqrt() * (1 + rollouts.rsqrt())


def clamped_policy(mixed: Tensor, reward: Tensor, beta: float, order: float, clip: float) -> Tensor:
    """Fixed point of policy gradient with the penalty beta s_A(clamp(log u, -c, c)) in the reward (derived).

    At rest r - beta s is one number nu on the support. A response that would need log u < -c is pushed down for ever;
    none may need more than +c, so nu >= max r - beta s_A(c), and if the masses then fall short of one, the best
    responses hold the rest at no further penalty.

    Args:
        mixed: (Y,) log M.
        reward: (Y,).
        beta: weight of the penalty.
        order: A.
        clip: c > 0, nats.

    Returns:
        (Y,) probabilities.
    """
    low_score, high_score = score(torch.tensor([-clip, clip], dtype=mixed.dtype), order)
    best = reward == reward.masked_fill(mixed.isneginf(), -torch.inf).max()

    def _masses(normalizer: Tensor) -> Tensor:
        wanted = (reward - normalizer) / beta
        u = _inverse_score(wanted.clamp(low_score, high_score), order).exp()
        return torch.where(wanted >= low_score, mixed.exp() * u, 0.0)

    low = reward[best][0] - beta * high_score
    if float(_masses(low).sum()) >= 1:
        high = reward[best][0] - beta * low_score
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if float(_masses(middle).sum()) >= 1 else (low, middle)
        kept = _masses(low)
        return kept / kept.sum()
    kept = _masses(low)
    return kept + (1 - kept.sum()) * (mixed.exp() * best) / (mixed.exp() * best).sum()


def continued_policy(mixed: Tensor, reward: Tensor, beta: float, order: float, clip: float) -> Tensor:
    """Optimum when the score goes on linearly beyond c, as `objectives.divergence.score` does (derived).

    Args:
        mixed: (Y,) log M.
        reward: (Y,).
        beta: weight of the penalty.
        order: A != 0.
        clip: c > 0, nats.

    Returns:
        (Y,) probabilities; the exact optimum if its log u stays within the range that is not continued.
    """
    edge = torch.tensor(-clip if order > 0 else clip, dtype=mixed.dtype)
    edge_score, slope = score(edge, order), torch.exp(-order * edge)

    def _log_masses(normalizer: Tensor) -> Tensor:
        wanted = (reward - normalizer) / beta
        inside = wanted > edge_score if order > 0 else wanted < edge_score
        curved = _inverse_score(torch.where(inside, wanted, edge_score), order)
        return mixed + torch.where(inside, curved, edge + (wanted - edge_score) / slope)

    # At low every response would keep u >= 1 / F, at high none would reach it.
    target = score(-torch.logsumexp(mixed, -1), order, clip)
    low, high = reward.min() - beta * target - beta, reward.max() - beta * target + beta
    if order > 0:
        low = torch.maximum(low, reward.max() - beta / order)
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(torch.logsumexp(_log_masses(middle), -1)) >= 0 else (low, middle)
    return torch.softmax(_log_masses(high), -1)


def _inverse_score(value: Tensor, order: float) -> Tensor:
    # log u with s_A(log u) = value.
    return value if order == 0 else -torch.log1p(-order * value) / order
