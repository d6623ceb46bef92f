"""The inequalities of the theory as numbers: coverage constants, gap bounds, and checks over random problems.

Where the paper (arXiv 2502.01203) states a bound its number stands in the name; `derived` marks what was derived here.
Gaps are bounded through the mean squared difference of the reward error over pairs from the mixed reference,
E = E_{y1,y2 ~ M/F}[(Delta(y1) - Delta(y2))^2] with Delta = estimate - truth, and E through the number of pairs n.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

from multiref_cli.theory.exact import solve

Pairs = TypeVar("Pairs", float, Tensor)  # one number of pairs, or many


def normalized(mixed: Tensor) -> Tensor:
    """Probabilities of the normalized mixed reference M / F, from which pairs are drawn; (..., Y) log M -> (..., Y)."""
    return torch.softmax(mixed, -1)


def squared_difference(sampling: Tensor, error: Tensor) -> Tensor:
    """E[(Delta(y1) - Delta(y2))^2] = 2 Var(Delta) over two independent draws.

    Args:
        sampling: (..., Y) probabilities of one draw.
        error: (..., Y) Delta = estimated - true reward.

    Returns:
        (...) squared reward units.
    """
    mean = (sampling * error).sum(-1, keepdim=True)
    return 2 * (sampling * (error - mean) ** 2).sum(-1)


def box_ratio(mixed: Tensor, beta: float, order: float, reward_max: float) -> Tensor:
    """Largest log-ratio u = pi / M that the optimum of any reward in [0, R_max]^Y can have (derived).

    u(y) grows with r(y) and falls with every other reward, so the worst reward is R_max at one y and zero elsewhere.

    Args:
        mixed: (..., Y) log M, unnormalized.
        beta: weight of the divergence.
        order: A.
        reward_max: R_max.

    Returns:
        (...) max u (not its logarithm); F times it is a coverage constant for every policy that a reward model in
        [0, R_max] can lead to, convex combinations of reward models included.
    """
    responses = mixed.shape[-1]
    corner = reward_max * torch.eye(responses, dtype=mixed.dtype)
    peaks = solve(mixed.unsqueeze(-2).expand(*mixed.shape, responses), corner, beta, order).peak
    return peaks.masked_fill(mixed.isneginf(), -torch.inf).amax(-1).exp()


def ball_coverage(sampling: Tensor, radius: Tensor | float, forward: bool = False) -> Tensor:
    """Coverage constant sup max_y pi / q over the policies in a KL ball around q (Eqs. 65 and 66), in closed form.

    Derived: by data processing the extreme policy puts p on one response and scales the others, so that only the
    binary divergence counts: KL(p | m) <= eps (65, reverse) or KL(m | p) <= eps (66, forward) with m = q(y).

    Args:
        sampling: (..., Y) q.
        radius: (...) or scalar eps in nats, >= 0.
        forward: whether the ball is that of KL(q || pi).

    Returns:
        (...) the constant, >= 1.
    """
    m = sampling.clamp(min=1e-300)
    radius = torch.as_tensor(radius, dtype=m.dtype).unsqueeze(-1)
    low, high = m.clone(), torch.ones_like(m)
    for _ in range(60):
        p = 0.5 * (low + high)
        apart = _binary_kl(m, p) if forward else _binary_kl(p, m)
        low, high = torch.where(apart <= radius, p, low), torch.where(apart <= radius, high, p)
    ratio = torch.where(sampling > 0, high / m, torch.ones_like(m))
    return ratio.amax(-1)


def _binary_kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.xlogy(p, p / q) + torch.xlogy(1 - p, (1 - p) / (1 - q).clamp(min=1e-300))


def quadratic_regret_bound(mixed: Tensor, squared: Tensor, beta: float, order: float, reward_max: float) -> Tensor:
    """Derived, A >= -1: regret of the plug-in policy <= F U^(1+A) E / (4 beta), U the box ratio.

    The regret is the Bregman divergence of the optimal value, whose Hessian diag(w) - w w^T / sum w has
    w = M u^(1+A) / beta; so it is at most half of max w / (M/F) times the variance of the error. A = 0: gamma C E / 4,
    four times sharper than the step in the proof of Theorem 5.2 (hence 32 for its 128). A = 1: of order 1/n, where
    Theorem 6.2 has n^(-1/2). A = -1: no coverage constant at all.

    Args:
        mixed: (..., Y) log M, unnormalized.
        squared: (...) E.
        beta: weight of the divergence.
        order: A >= -1.
        reward_max: R_max, for truth and estimate.

    Returns:
        (...) bound in reward units.
    """
    return (
        torch.logsumexp(mixed, -1).exp()
        * box_ratio(mixed, beta, order, reward_max) ** (1 + order)
        * squared
        / (4 * beta)
    )


def pairs_error_paper(n: Pairs, reward_max: float, classes: int, delta: float) -> Pairs:
    """Lemma B.1 as recovered here, without R_max >= 1: E <= 128 R^2 e^{4R} log(|R| / delta) / n.

    The R^2 cannot be free of scale: n labels carry no more than n R^2 of information. The derived constant is the
    larger one below R_max of about 0.28.

    Args:
        n: number of pairs, scalar or (N,).
        reward_max: R.
        classes: |R|.
        delta: probability of failure.

    Returns:
        scalar or (N,), squared reward units.
    """
    return 128 * reward_max**2 * math.exp(4 * reward_max) * math.log(classes / delta) / n


def pairs_error_derived(n: Pairs, reward_max: float, classes: int, delta: float) -> Pairs:
    """Derived: E <= 32 cosh(R/2)^4 log(|R| / delta) / n with probability 1 - delta, for every R_max.

    Chernoff on half the log-likelihood ratio gives squared Hellinger <= log(|R| / delta) / n for the maximum-likelihood
    model; |p - q|^2 <= 2 Hellinger^2 for two labels; and the logistic slope on [-R, R] is at least 1 / (4 cosh(R/2)^2).

    Args:
        n: number of pairs, scalar or (N,).
        reward_max: R.
        classes: |R|.
        delta: probability of failure.

    Returns:
        scalar or (N,), squared reward units.
    """
    return 32 * math.cosh(reward_max / 2) ** 4 * math.log(classes / delta) / n


def rkl_gap(coverage: Tensor, error: Tensor | float, beta: float, factor: float = 1.0) -> Tensor:
    """Sub-optimality gap, reverse KL: factor C E / beta; factor 1 is Theorem 5.2, 1/4 what suffices (derived).

    Args:
        coverage: (...) C.
        error: (...) or scalar E.
        beta: 1 / gamma.
        factor: scalar.

    Returns:
        (...) reward units.
    """
    return factor * coverage * error / beta


def rkl_reward_gap(coverage: Tensor, error: Tensor | float, beta: float, reward_max: float) -> Tensor:
    """Gap in plain reward to the regularized optimum, reverse KL: R sqrt(C E / 8) / beta (Theorem 5.3).

    Args:
        coverage: (...) C.
        error: (...) or scalar E.
        beta: 1 / gamma.
        reward_max: R.

    Returns:
        (...) reward units.
    """
    return reward_max / beta * (coverage * error / 8).sqrt()


def fkl_gap(coverage: Tensor, error: Tensor | float) -> Tensor:
    """Sub-optimality gap, forward KL: sqrt(2 C E) (Theorem 6.2, no strong convexity used).

    Args:
        coverage: (...) C.
        error: (...) or scalar E.

    Returns:
        (...) reward units.
    """
    return (2 * coverage * error).sqrt()


def fkl_reward_gap(ratio: Tensor, error: Tensor | float) -> Tensor:
    """Derived: gap in plain reward to the regularized optimum, forward KL: (U + sqrt U) sqrt(E / 2).

    E_{pi*}[r] = nu for A = 1, and nu moves with the reward by its average under w; so the gap is a difference of two
    averages of the error, under densities of at most U^2 (w) and U (the policy) against the mixture.

    Args:
        ratio: (...) U, the box ratio (F = 1, so it is C as well).
        error: (...) or scalar E.

    Returns:
        (...) reward units.
    """
    return (ratio + ratio.sqrt()) * torch.as_tensor(error / 2).sqrt()


def fkl_bias_paper(beta: float, reward_max: float) -> float:
    """Regularization bias in Theorem 6.3: beta log(1 + R / beta), between the two regularized optima of Eq. (5).

    It bounds beta KL(M || pi) for every policy that a reward in [0, R] leads to (lambda - r <= R + beta), for every
    R / beta. The distance of the optimum to max r is another quantity: `fkl_bias_derived`.

    Args:
        beta: 1 / gamma, scalar.
        reward_max: R, scalar.

    Returns:
        float, reward units.
    """
    return beta * math.log1p(reward_max / beta)


def fkl_bias_derived(beta: float, reward_max: float) -> float:
    """Derived: max r - E_{pi*}[r] = beta - (lambda - max r) <= min(beta, R) for the forward-KL optimum, and tight.

    Args:
        beta: 1 / gamma, scalar.
        reward_max: R, scalar.

    Returns:
        float, reward units.
    """
    return min(beta, reward_max)
