"""Amari's divergences: the score that every penalty and implicit reward is made of, and the divergence itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiref_cli.config.regularizer import Term


def score(log_ratio: Tensor, order: float, clip: float = 0.0) -> Tensor:
    """The score s_A(log u) = (1 - u^(-A)) / A, the derivative of the divergence's generator at u = policy / mixed.

    s_0(x) = x (reverse KL), s_1(x) = 1 - exp(-x) (forward KL), s_{-1}(x) = exp(x) - 1 (chi-square / 2); constants
    dropped. On the side where the exponential grows, beyond `clip` nats the score goes on linearly with its slope
    there: it cannot overflow and its gradient never dies, as that of a clamp would.

    Args:
        log_ratio: (...) log policy - log mixed reference, in nats.
        order: A of the divergence.
        clip: where the linear continuation begins, in nats; usual 10; 0 turns it off.

    Returns:
        (...) the score, dimensionless, increasing in `log_ratio`.
    """
    if order == 0:
        return log_ratio
    bounded = log_ratio
    if clip > 0:
        bounded = log_ratio.clamp(min=-clip) if order > 0 else log_ratio.clamp(max=clip)
    value = -torch.expm1(-order * bounded) / order
    return value if clip <= 0 else value + torch.exp(-order * bounded) * (log_ratio - bounded)


def score_is_clipped(log_ratio: Tensor, order: float, clip: float) -> Tensor:
    """Which entries lie on the linear continuation of `score`; (...) -> (...) bool."""
    if order == 0 or clip <= 0:
        return torch.zeros_like(log_ratio, dtype=torch.bool)
    return log_ratio < -clip if order > 0 else log_ratio > clip


def amari_divergence(reference_logps: Tensor, policy_logps: Tensor, order: float) -> Tensor:
    """D_A(p || q) = (sum_y p^A q^(1-A) - 1) / (A (A - 1)) over the last axis; p the reference, q the policy.

    A = 0 is KL(q || p), A = 1 is KL(p || q), A = -1 is chi^2(q || p) / 2, A = 1/2 is 4 (1 - sum sqrt(p q)). Computed
    as sum_y q ((p / q)^A - 1) / (A (A - 1)) for A <= 1/2, and through D_A(p || q) = D_{1-A}(q || p) above: each term
    is an expm1 over A, so that rounding is not magnified near A = 0 and A = 1.

    Args:
        reference_logps: (..., V) normalized log-probabilities of the reference, in nats; -inf is allowed.
        policy_logps: (..., V) normalized log-probabilities of the policy, in nats; -inf is allowed.
        order: A.

    Returns:
        (...) the divergence in nats (for A = 0 and 1), never negative up to rounding; differentiable in both.
    """
    if order > 0.5:
        return amari_divergence(policy_logps, reference_logps, 1.0 - order)
    # Where q = 0 the term is 0 for every A <= 1/2, also where p = 0 too.
    possible = ~policy_logps.isneginf()
    log_q = torch.where(possible, policy_logps, 0.0)
    log_ratio = torch.where(possible, reference_logps - policy_logps, 0.0)
    q = log_q.exp()
    if order == 0:
        return -(q * log_ratio).sum(-1)
    exponent = order * log_ratio
    near = q * torch.expm1(exponent.clamp(max=1.0))
    far = torch.exp(log_q + exponent) - q  # q (p / q)^A need not overflow where (p / q)^A does
    return torch.where(exponent > 1.0, far, near).sum(-1) / (order * (order - 1.0))


def total_score(terms: Sequence[Term], policy_logps: Tensor, log_mixed: Tensor, clip: float = 0.0) -> Tensor:
    """sum_r w_r s_r(log pi - log M_r): implicit rewards and penalties are beta times this.

    Args:
        terms: R summands.
        policy_logps: (...) log pi, in nats.
        log_mixed: (R, ...) log M of every term, in nats.
        clip: see `score`.

    Returns:
        (...) the sum, dimensionless.
    """
    parts = [
        _weighted(term.weight, score(policy_logps - mixed, term.score_order, clip))
        for term, mixed in zip(terms, log_mixed)
    ]
    return sum(parts[1:], parts[0])


def _weighted(weight: float, values: Tensor) -> Tensor:
    return values if weight == 1 else weight * values


def is_clipped(terms: Sequence[Term], policy_logps: Tensor, log_mixed: Tensor, clip: float) -> Tensor:
    """Where the score of any term lies on its linear continuation; shapes as in `total_score`, bool."""
    found = [score_is_clipped(policy_logps - mixed, t.score_order, clip) for t, mixed in zip(terms, log_mixed)]
    return torch.stack(found).any(0)
