"""Exact solutions on finite response spaces: optimal policy, value and regret for every Amari order and K references.

    max_pi  E_pi[r] - beta sum_i alpha_i D_A(pi_i || pi)                                                  (problem)
    pi*(y) = M_A(y) u(y),   s_A(log u(y)) = (r(y) - nu) / beta,   nu such that pi* sums to one           (solution)

A = 0 is Theorem 5.1 and A = 1 Theorem 6.1 of arXiv 2502.01203; the other orders are derived (their future-work item b).
Probabilities are in the last axis, K references in the axis before it; every other axis is a batch (of prompts).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_cli.objectives.divergence import amari_divergence, score
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.theory.terms import objective_of_terms as objective_of_terms
from multiref_cli.theory.terms import optimal_policy_of_terms as optimal_policy_of_terms

CHUNK = 1 << 18  # elements solved together: small enough to stay in the cache


@dataclass(frozen=True)
class Solution:
    """An exact optimum.

    policy (..., Y) probabilities; log_ratio (..., Y) log u = log(pi*/M_A), -inf where an order A < 0 cuts a response
    off; peak (...) log u of the best response; normalizer (...) nu, in reward units: lambda = nu + beta / A.
    """

    policy: Tensor
    log_ratio: Tensor
    peak: Tensor
    normalizer: Tensor


def log_mixed(references: Tensor, weights: Tensor, order: float) -> Tensor:
    """Log of the unnormalized mixed reference M_A; supported where references with positive weight are.

    A > 0 needs one reference to support a response (union of the supports), A <= 0 all of them (intersection).

    Args:
        references: (..., K, Y) probabilities; zeros are allowed.
        weights: (K,) alpha on the simplex; a reference with weight 0 does not count.
        order: A of the mean.

    Returns:
        (..., Y) log M_A in nats, -inf off the support.

    Raises:
        ValueError: the references share no response, so that no policy has a finite objective.
    """
    mixed = power_mean(references.movedim(-2, 0).log(), weights, order)
    if bool(mixed.isneginf().all(-1).any()):
        raise ValueError(f"order {order:g} needs a response that every reference supports, and there is none")
    return mixed


def support(references: Tensor, weights: Tensor, order: float) -> Tensor:
    """Which responses an optimal policy may use: union of the supports for A > 0, intersection for A <= 0.

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha; references with weight 0 do not count.
        order: A.

    Returns:
        (..., Y) bool.
    """
    positive = references[..., weights > 0, :] > 0
    return positive.any(-2) if order > 0 else positive.all(-2)


def escort(distribution: Tensor, power: float) -> Tensor:
    """Escort distribution p^t / sum p^t (Definition 3.1 of arXiv 2502.01203).

    Args:
        distribution: (..., Y) probabilities.
        power: t > 0; 1 changes nothing, t < 1 flattens, t > 1 sharpens.

    Returns:
        (..., Y) probabilities.
    """
    return torch.softmax(power * distribution.log(), -1)


def generalized_escort(references: Tensor, weights: Tensor) -> Tensor:
    """Generalized escort prod_i pi_i^alpha_i / F, the normalized geometric mean (Definition 3.1 of arXiv 2502.01203).

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex.

    Returns:
        (..., Y) probabilities.
    """
    return torch.softmax(log_mixed(references, weights, 0.0), -1)


def solve(mixed: Tensor, reward: Tensor, beta: float, order: float) -> Solution:
    """Exact optimum against one unnormalized reference: sum_y M u = 1 with s_A(log u) = (r - nu) / beta.

    The unknown is q = log u at the best supported response. With d(y) = (max r - r(y)) / beta >= 0,

        log u(y) = q - log(1 + A d(y) e^(A q)) / A        (0 or less: u = 0, which happens for A < 0 only)

    so nothing cancels, neither at the pole of A > 0 nor at A = 0, where log u = q - d. Bracket: u(y) <= e^q for all y,
    so 1 = sum M u <= e^q F gives q >= -log F with F = sum M; the best responses have u = e^q and mass at most one,
    so q <= -log sum_{y: r = max r} M(y). sum M u grows with q, so the root is unique; Newton's steps are kept inside
    the bracket by bisection.

    Args:
        mixed: (..., Y) log M, unnormalized, -inf off the support.
        reward: (..., Y) finite.
        beta: weight of the divergence, > 0, in reward units per nat.
        order: A of the divergence, any real number.

    Returns:
        Solution with shapes (..., Y) and (...).
    """
    mixed, reward = torch.broadcast_tensors(mixed, reward)
    shape, responses = mixed.shape[:-1], mixed.shape[-1]
    best = reward.masked_fill(mixed.isneginf(), -torch.inf).amax(-1, keepdim=True)
    distance = ((best - reward) / beta).clamp(min=0.0).reshape(-1, responses)
    flat = mixed.reshape(-1, responses)
    rows = max(1, CHUNK // responses)
    peak = torch.cat([_peak(m, d, order) for m, d in zip(flat.split(rows), distance.split(rows))])
    log_ratio = _log_ratio(distance, peak, order)
    policy = torch.softmax(flat + log_ratio, -1)
    log_ratio = log_ratio.masked_fill(flat.isneginf(), -torch.inf)
    normalizer = best.squeeze(-1) - beta * score(peak.reshape(shape), order)
    return Solution(policy.reshape(*shape, -1), log_ratio.reshape(*shape, -1), peak.reshape(shape), normalizer)


def _log_ratio(distance: Tensor, peak: Tensor, order: float) -> Tensor:
    if order == 0:
        return peak[:, None] - distance
    exponent = (abs(order) * distance).log() + order * peak[:, None]
    if order > 0:
        return peak[:, None] - torch.nn.functional.softplus(exponent, threshold=40.0) / order
    inside = exponent < 0
    return torch.where(inside, peak[:, None] - torch.log1p(-exponent.exp()) / order, -torch.inf)


def _peak(mixed: Tensor, distance: Tensor, order: float) -> Tensor:
    # (P, Y), (P, Y) -> (P,) the root q of log sum M u(q) = 0.
    low = -torch.logsumexp(mixed, -1)
    high = -torch.logsumexp(mixed.masked_fill(distance > 0, -torch.inf), -1)
    peak = (-torch.logsumexp(mixed - distance, -1)).clamp(low, high)
    if order == 0:
        return peak
    tolerance = 4 * torch.finfo(mixed.dtype).eps
    last = torch.full_like(peak, torch.inf)
    for _ in range(200):
        log_ratio = _log_ratio(distance, peak, order)
        joint = mixed + log_ratio
        top = joint.amax(-1, keepdim=True)
        mass = (joint - top).exp()
        total = mass.sum(-1)
        excess = top.squeeze(-1) + total.log()
        # d log u / d q = (u / u_best)^A; at a response cut off (u = 0) the mass is zero and so is its share.
        slope = (order * (log_ratio - peak[:, None])).exp().masked_fill(log_ratio.isneginf(), 0.0)
        low, high = torch.where(excess <= 0, peak, low), torch.where(excess >= 0, peak, high)
        newton = peak - excess * total / (mass * slope).sum(-1)
        # A step that does not at least halve the one before gives way to bisection: cut-off responses make kinks.
        good = (newton >= low) & (newton <= high) & ((newton - peak).abs() <= 0.5 * last)
        step = torch.where(good, newton, 0.5 * (low + high))
        step = torch.where(excess.abs() <= tolerance, peak, step)
        last, peak = (step - peak).abs(), step
        if bool((last <= tolerance * peak.abs().clamp(min=1.0)).all()):
            break
    return peak


def solution(references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float) -> Solution:
    """The exact optimum of the multi-reference problem of order A, with its log-ratios and normalizer.

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0.
        order: A.

    Returns:
        Solution with shapes (..., Y) and (...).
    """
    return solve(log_mixed(references, weights, order), reward, beta, order)


def optimal_policy(references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float) -> Tensor:
    """The policy that maximizes E_pi[r] - beta sum_i alpha_i D_A(pi_i || pi).

    A = 0: M_0 exp(r / beta) / Z (Theorem 5.1); A = 1: beta M_1 / (lambda - r) (Theorem 6.1 of arXiv 2502.01203).

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0, in reward units per nat; usual 0.01 to 1.
        order: A, any real number; usual -1 to 1.

    Returns:
        (..., Y) probabilities.
    """
    return solution(references, weights, reward, beta, order).policy


def surrogate_policy(
    references: Tensor, weights: Tensor, reward: Tensor, beta: float, mean_order: float, score_order: float
) -> Tensor:
    """The policy that a regularizer (mean_order, score_order) leads to; exact only where the two orders agree.

    (-1, 0) is MRPO (arXiv 2405.16388): M_{-1} exp(r / beta) / Z, the maximizer of a lower bound of the reverse-KL
    objective.

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0.
        mean_order: A of the mixed reference.
        score_order: A of the divergence towards it.

    Returns:
        (..., Y) probabilities.
    """
    return solve(log_mixed(references, weights, mean_order), reward, beta, score_order).policy


def divergences(policy: Tensor, references: Tensor, order: float) -> Tensor:
    """D_A(pi_i || pi) of each reference, infinite where the supports demand it.

    Args:
        policy: (..., Y) probabilities.
        references: (..., K, Y) probabilities.
        order: A.

    Returns:
        (..., K) in nats, never negative up to rounding.
    """
    p, q = torch.broadcast_tensors(references.log(), policy.log().unsqueeze(-2))
    absent = p.isneginf() & q.isneginf()  # 0 times anything: such a response adds nothing
    if order < 0:
        p = p.masked_fill(absent, 0.0)
    elif order > 1:
        q = q.masked_fill(absent, 0.0)
    return amari_divergence(p, q, order)


def objectives(
    policy: Tensor, references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float
) -> Tensor:
    """E_pi[r] - beta sum_i alpha_i D_A(pi_i || pi), batched.

    Args:
        policy: (..., Y) probabilities.
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex; a reference with weight 0 is not looked at.
        reward: (..., Y).
        beta: weight of the divergence.
        order: A.

    Returns:
        (...) in reward units; -inf where the divergence is infinite.
    """
    kept = weights > 0
    penalty = (weights[kept].to(policy.dtype) * divergences(policy, references[..., kept, :], order)).sum(-1)
    return (policy * reward).sum(-1) - beta * penalty


def objective(policy: Tensor, references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float) -> float:
    """E_pi[r] - beta sum_i alpha_i D_A(pi_i || pi) of one prompt.

    Args:
        policy: (Y,) probabilities.
        references: (K, Y) probabilities.
        weights: (K,) alpha on the simplex.
        reward: (Y,).
        beta: weight of the divergence.
        order: A.

    Returns:
        float, in reward units.
    """
    return float(objectives(policy, references, weights, reward, beta, order))


def value(references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float) -> Tensor:
    """The optimal value of the multi-reference problem.

    A = 0: nu = beta log sum_y M_0 exp(r / beta). Derived for A != 1: (nu - A E_{pi*}[r]) / (1 - A).

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0.
        order: A.

    Returns:
        (...) in reward units.
    """
    best = optimal_policy(references, weights, reward, beta, order)
    return objectives(best, references, weights, reward, beta, order)


def regret(policy: Tensor, references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float) -> Tensor:
    """How far a policy is below the optimum; for A = 0 it is exactly beta KL(pi || pi*).

    Args:
        policy: (..., Y) probabilities.
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0.
        order: A.

    Returns:
        (...) in reward units, never negative up to rounding.
    """
    best = value(references, weights, reward, beta, order)
    return best - objectives(policy, references, weights, reward, beta, order)
