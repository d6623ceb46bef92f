"""Exact solutions where every reference has its own divergence and weight: max_pi E_pi[r] - sum_i b_i D_i(pi || pi_i).

With S_y(x) = sum_i b_i s_i(x - log pi_i(y)), increasing in x, the unique optimum has

    r(y) = lambda + S_y(log pi(y))  where pi(y) > 0,      r(y) <= lambda + S_y(-inf)  where pi(y) = 0,

the latter only where no score is unbounded below. Probabilities are in the last axis, K references in the one before.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_cli.objectives.divergence import Divergence, divergence_of
from multiref_cli.objectives.mixing import power_mean

Kind = str | tuple[str, float] | Divergence
Terms = Sequence[tuple[Kind, float]]


@dataclass(frozen=True)
class Several:
    """sum_k w_k D_k of one reference, as one divergence: scores and divergences add up.

    Args:
        parts: (divergence, weight w_k > 0) each.
    """

    parts: tuple[tuple[Divergence, float], ...]

    def score(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """sum_k w_k s_k(x); (...) -> (...)."""
        return torch.stack([weight * one.score(log_ratio, clip) for one, weight in self.parts]).sum(0)

    def divergence(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """sum_k w_k D_k over the last axis; (..., V) -> (...)."""
        found = [weight * one.divergence(reference_logps, policy_logps) for one, weight in self.parts]
        return torch.stack(found).sum(0)


LEAST = -750.0  # log of less than the smallest float64: a response there has probability zero
STEPS = 200  # outer bisections; they stop at the resolution of the type long before
INNER_STEPS = 62  # 750 nats halved to below 2e-16


def parsed(terms: Terms, references: Tensor) -> list[tuple[Divergence, float]]:
    """Terms with their divergences looked up.

    Args:
        terms: K pairs (divergence name, (name, order) or a divergence; weight b_i > 0 in reward units).
        references: (..., K, Y), what the terms are about.

    Returns:
        K pairs (divergence, weight).

    Raises:
        ValueError: another number of terms than references, or a weight that is not positive and finite.
    """
    if len(terms) != references.shape[-2]:
        raise ValueError(f"{references.shape[-2]} references need as many terms, given {len(terms)}")
    found: list[tuple[Divergence, float]] = []
    for kind, weight in terms:
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight of a term must be positive and finite, given {weight}")
        name = (kind,) if isinstance(kind, str) else kind
        found.append((divergence_of(*name) if isinstance(name, tuple) else name, float(weight)))
    return found


def optimal_policy_of_terms(references: Tensor, terms: Terms, reward: Tensor) -> Tensor:
    """The policy that maximizes E_pi[r] - sum_i b_i D_i(pi || pi_i), by bisection in lambda over one in log pi(y).

    Args:
        references: (..., K, Y) probabilities; zeros are allowed.
        terms: K pairs (divergence name or (name, order), weight b_i > 0 in reward units).
        reward: (..., Y) finite.

    Returns:
        (..., Y) probabilities, zero where a response is cut off or a reference forbids it.

    Raises:
        ValueError: terms that do not fit, or no response that every divergence allows.
    """
    pairs = parsed(terms, references)
    allowed = allowed_responses(references, terms)
    if not bool(allowed.any(-1).all()):
        raise ValueError("the terms need a response that every reference allows, and there is none")
    logps = references.log().masked_fill(~allowed.unsqueeze(-2), 0.0)
    reward = reward.to(references.dtype).expand(allowed.shape)
    gain = reward.masked_fill(~allowed, -torch.inf)
    start = torch.zeros_like(gain)
    count = allowed.sum(-1, keepdim=True).to(gain.dtype)
    low = (gain - total_score(start, logps, pairs)).amax(-1, keepdim=True)
    high = (gain - total_score(start - count.log(), logps, pairs)).amax(-1, keepdim=True)
    fewest, most = torch.full_like(gain, LEAST), start  # log pi at lambda = high and at lambda = low
    for _ in range(STEPS):
        middle = low + (high - low) / 2
        if bool(((middle <= low) | (middle >= high)).all()):
            break
        found = _log_policy(gain - middle, logps, pairs, fewest, most)
        heavy = found.exp().sum(-1, keepdim=True) >= 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
        most, fewest = torch.where(heavy, found, most), torch.where(heavy, fewest, found)
    found = _log_policy(gain - low, logps, pairs, fewest, most)
    return torch.softmax(found.masked_fill((found <= LEAST) | ~allowed, -torch.inf), -1)


def _log_policy(
    target: Tensor, logps: Tensor, pairs: list[tuple[Divergence, float]], low: Tensor, high: Tensor
) -> Tensor:
    # (..., Y) the x between low and high at which S_y(x) = target; low where S_y exceeds it everywhere.
    for _ in range(INNER_STEPS):
        middle = low + (high - low) / 2
        if bool(((middle <= low) | (middle >= high)).all()):
            break
        below = total_score(middle, logps, pairs) <= target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def total_score(log_policy: Tensor, logps: Tensor, pairs: list[tuple[Divergence, float]]) -> Tensor:
    """S_y(x) = sum_i b_i s_i(x - log pi_i(y)), DPO's implicit reward.

    Args:
        log_policy: (..., Y) x in nats.
        logps: (..., K, Y) log-probabilities of the references.
        pairs: K pairs (divergence, weight).

    Returns:
        (..., Y) in reward units.
    """
    scores = [weight * kind.score(log_policy - logps[..., i, :]) for i, (kind, weight) in enumerate(pairs)]
    return torch.stack(scores).sum(0)


def allowed_responses(references: Tensor, terms: Terms) -> Tensor:
    """Responses that some reference supports and no divergence forbids: one with a score unbounded above forbids
    what its reference does not support.

    Args:
        references: (..., K, Y) probabilities.
        terms: K pairs.

    Returns:
        (..., Y) bool.
    """
    far = torch.tensor(torch.inf, dtype=references.dtype)
    forbids = torch.tensor([bool(kind.score(far).isinf()) for kind, _ in parsed(terms, references)])
    absent = references == 0
    return ~absent.all(-2) & ~(absent & forbids[:, None]).any(-2)


def objective_of_terms(policy: Tensor, references: Tensor, terms: Terms, reward: Tensor) -> Tensor:
    """E_pi[r] - sum_i b_i D_i(pi || pi_i).

    Args:
        policy: (..., Y) probabilities.
        references: (..., K, Y) probabilities.
        terms: K pairs (divergence, weight b_i).
        reward: (..., Y).

    Returns:
        (...) in reward units; -inf where a divergence is infinite.
    """
    logps = references.log()
    penalty = [w * d.divergence(logps[..., i, :], policy.log()) for i, (d, w) in enumerate(parsed(terms, references))]
    return (policy * reward).sum(-1) - torch.stack(penalty).sum(0)


def kkt_residual(policy: Tensor, references: Tensor, terms: Terms, reward: Tensor) -> Tensor:
    """How far a policy is from the optimality conditions, with lambda = E_pi[r - S].

    Args:
        policy: (..., Y) probabilities.
        references: (..., K, Y) probabilities.
        terms: K pairs.
        reward: (..., Y).

    Returns:
        (...) the largest violation over the allowed responses, in reward units; 0 at the optimum only.
    """
    allowed = allowed_responses(references, terms)
    logps = references.log().masked_fill(~allowed.unsqueeze(-2), 0.0)
    log_policy = policy.log().clamp(min=LEAST)
    rest = reward - total_score(log_policy, logps, parsed(terms, references))
    used = allowed & (policy > 0)
    normalizer = torch.where(used, policy * rest, 0.0).sum(-1, keepdim=True)
    violation = torch.where(policy > 0, (rest - normalizer).abs(), (rest - normalizer).clamp(min=0.0))
    return violation.masked_fill(~allowed, 0.0).amax(-1)


def signed_optimal_policy(references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The maximizer of E_pi[r] - beta sum_i alpha_i KL(pi || pi_i) with some alpha_i < 0.

    The penalty is -H(pi) - sum_i alpha_i E_pi log pi_i, strictly convex for every sign because the weights sum to one
    (teacher extrapolation, arXiv 2602.12125). Used are the responses that every reference with a weight supports.

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha, sum 1, negative ones allowed.
        reward: (..., Y).
        beta: > 0.

    Returns:
        (..., Y) probabilities.

    Raises:
        ValueError: weights that do not sum to one, or no response that all these references support.
    """
    inside = (references[..., weights != 0, :] > 0).all(-2)
    if not bool(inside.any(-1).all()):
        raise ValueError("signed weights need a response that every reference supports, and there is none")
    logps = references.log().masked_fill(~inside.unsqueeze(-2), 0.0).movedim(-2, 0)
    mixed = power_mean(logps, weights, 0.0, signed=True)
    return torch.softmax((mixed + reward / beta).masked_fill(~inside, -torch.inf), -1)


def signed_objective(policy: Tensor, references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> Tensor:
    """E_pi[r] - beta sum_i alpha_i KL(pi || pi_i) with signed weights, on the responses that the policy uses.

    Args:
        policy: (..., Y) probabilities; zero wherever a reference with a weight is.
        references: (..., K, Y) probabilities.
        weights: (K,) alpha, sum 1.
        reward: (..., Y).
        beta: > 0.

    Returns:
        (...) in reward units.
    """
    kept = weights != 0
    ratio = policy.log().unsqueeze(-2) - references[..., kept, :].log()
    used = (policy > 0).unsqueeze(-2)
    divergences = torch.where(used, policy.unsqueeze(-2) * ratio, 0.0).sum(-1)
    return (policy * reward).sum(-1) - beta * (divergences * weights[kept].to(policy.dtype)).sum(-1)
