"""Divergences by name: the score that every penalty and implicit reward is made of, and the divergence itself.

With D_f(pi || p) = sum_y p f(pi / p) the score is s(x) = f'(e^x) at x = log pi - log p. Reverse KL, forward KL, chi-PO
and Jeffreys are sums of Amari's scores; Jensen-Shannon is not. `divergence_of` is the table.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from multiref_cli.config.regularizer import Term


def score(log_ratio: Tensor, order: float, clip: float = 0.0) -> Tensor:
    """The score s_A(log u) = (1 - u^(-A)) / A, the derivative of the divergence's generator at u = policy / mixed.

    s_0(x) = x (reverse KL), s_1(x) = 1 - exp(-x) (forward KL), s_{-1}(x) = exp(x) - 1 (chi-square / 2); constants
    dropped. On the side where the exponential grows, beyond |A x| = `clip` the score goes on linearly with its slope
    there: it cannot overflow and its gradient never dies, as that of a clamp would. The bound is on |A x| because the
    slope there is e^|A x|: the same for every order.

    Args:
        log_ratio: (...) log policy - log mixed reference, in nats.
        order: A of the divergence.
        clip: |A x| at which the linear continuation begins, in nats; usual 10; 0 turns it off.

    Returns:
        (...) the score, dimensionless, increasing in `log_ratio`.
    """
    if order == 0:
        return log_ratio
    bounded = _bounded(log_ratio, order, clip)
    value = -torch.expm1(-order * bounded) / order
    return value if clip <= 0 else value + torch.exp(-order * bounded) * (log_ratio - bounded)


def score_is_clipped(log_ratio: Tensor, order: float, clip: float) -> Tensor:
    """Which entries lie on the linear continuation of `score`; (...) -> (...) bool."""
    if order == 0 or clip <= 0:
        return torch.zeros_like(log_ratio, dtype=torch.bool)
    return log_ratio < -clip / order if order > 0 else log_ratio > -clip / order


def score_integral(log_ratio: Tensor, order: float, clip: float = 0.0) -> Tensor:
    """The integral of s_A from 0 to x: x^2/2 for A = 0, e^-x - 1 + x for A = 1, e^x - 1 - x for A = -1.

    Args:
        log_ratio: (...) x in nats.
        order: A.
        clip: |A x| beyond which s_A goes on linearly, its integral as a parabola; 0: off.

    Returns:
        (...) never negative.
    """
    if order == 0:
        return log_ratio.square() / 2
    bounded = _bounded(log_ratio, order, clip)
    inside = (bounded + torch.expm1(-order * bounded) / order) / order
    beyond = log_ratio - bounded
    return inside + score(bounded, order) * beyond + torch.exp(-order * bounded) * beyond.square() / 2


def _bounded(log_ratio: Tensor, order: float, clip: float) -> Tensor:
    if clip <= 0:
        return log_ratio
    return log_ratio.clamp(min=-clip / order) if order > 0 else log_ratio.clamp(max=-clip / order)


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
    return _total(parts)


def _weighted(weight: float, values: Tensor) -> Tensor:
    return values if weight == 1 else weight * values


def is_clipped(terms: Sequence[Term], policy_logps: Tensor, log_mixed: Tensor, clip: float) -> Tensor:
    """Where the score of any term lies on its linear continuation; (...) bool, arguments as in `total_score`."""
    found = [score_is_clipped(policy_logps - mixed, t.score_order, clip) for t, mixed in zip(terms, log_mixed)]
    return torch.stack(found).any(0)


class Divergence(Protocol):
    """What a penalty and an exact solver need of a divergence."""

    @property
    def positive(self) -> bool:
        """Whether the score is unbounded below, which keeps the optimum positive where the reference is."""

    def score(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """s(x) = f'(e^x) up to a constant, 0 at x = 0, increasing; (...) -> (...)."""

    def divergence(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """D_f(pi || p) over the last axis of log-probabilities, -inf allowed; (..., V) -> (...)."""


@dataclass(frozen=True)
class AmariSum:
    """A sum of Amari's divergences; `parts` holds pairs (order, coefficient > 0)."""

    parts: tuple[tuple[float, float], ...]

    @property
    def positive(self) -> bool:
        """Whether the score is unbounded below: some order is not negative."""
        return any(order >= 0 for order, _ in self.parts)

    def score(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """Sum of the scores, each clipped on its own growing side; (...) -> (...)."""
        return _total(weight * score(log_ratio, order, clip) for order, weight in self.parts)

    def is_clipped(self, log_ratio: Tensor, clip: float) -> Tensor:
        """Where some part is on its linear continuation; (...) -> (...) bool."""
        clipped = [score_is_clipped(log_ratio, order, clip) for order, _ in self.parts]
        return torch.stack(clipped).any(0)

    def integral(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """Integral of the score from 0 to x, the k2-type loss; (...) -> (...)."""
        return _total(weight * score_integral(log_ratio, order, clip) for order, weight in self.parts)

    def divergence(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """Full-vocabulary divergence over the last axis; (..., V) -> (...)."""
        return _total(weight * amari_divergence(reference_logps, policy_logps, order) for order, weight in self.parts)


@dataclass(frozen=True)
class JensenShannon:
    """f(u) = u log u - (u + 1) log((u + 1) / 2): KL(pi || m) + KL(p || m) with m = (pi + p) / 2 (f-DPO, 2309.16240).

    Its slope is at most 1 and it is bounded above: nothing to clip, `clip` has no effect.
    """

    positive: bool = True

    def score(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """log 2 - softplus(-x); (...) -> (...)."""
        return torch.nn.functional.logsigmoid(log_ratio) + math.log(2.0)

    def is_clipped(self, log_ratio: Tensor, clip: float) -> Tensor:
        """Nowhere; (...) -> (...) bool."""
        return torch.zeros_like(log_ratio, dtype=torch.bool)

    def divergence(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """Full-vocabulary divergence over the last axis; (..., V) -> (...)."""
        return self._towards_middle(policy_logps, reference_logps) + self._towards_middle(reference_logps, policy_logps)

    def _towards_middle(self, logps: Tensor, other: Tensor) -> Tensor:
        possible = ~logps.isneginf()
        here = torch.where(possible, logps, 0.0)
        return (here.exp() * possible * self.score(here - other)).sum(-1)


def divergence_of(name: str, order: float | None = None) -> AmariSum | JensenShannon:
    """The divergence of a name.

    Args:
        name: reverse_kl, forward_kl, amari, jensen_shannon, chi_po (arXiv 2407.13399), jeffreys.
        order: A, for amari only.

    Raises:
        ValueError: an unknown name, an order missing or without use, total variation.
    """
    if name == "total_variation":
        raise ValueError("total_variation has a score of slope zero almost everywhere, which trains nothing")
    if name not in (*DIVERGENCES, "amari"):
        raise ValueError(f"divergence {name} is none of {', '.join(DIVERGENCES)}, amari")
    if (name == "amari") != (order is not None):
        raise ValueError(f"amari needs an order and only amari has one, given {name} with order {order}")
    return AmariSum(((float(order), 1.0),)) if order is not None else DIVERGENCES[name]


def score_of(name: str, log_ratio: Tensor, order: float | None = None, clip: float = 0.0) -> Tensor:
    """The score s(x) of a divergence by name, 0 at x = 0 and increasing.

    Args:
        name: see `divergence_of`.
        log_ratio: (...) x = log pi - log pi_i in nats.
        order: A, for amari only.
        clip: |A x| beyond which an exponentially growing part goes on linearly; 0: off.

    Returns:
        (...) the score.
    """
    return divergence_of(name, order).score(log_ratio, clip)


def _total(values: Iterable[Tensor]) -> Tensor:
    first, *rest = values
    for value in rest:
        first = first + value
    return first


DIVERGENCES: dict[str, AmariSum | JensenShannon] = {
    "reverse_kl": AmariSum(((0.0, 1.0),)),
    "forward_kl": AmariSum(((1.0, 1.0),)),
    "jensen_shannon": JensenShannon(),
    "chi_po": AmariSum(((0.0, 1.0), (-1.0, 1.0))),
    "jeffreys": AmariSum(((0.0, 1.0), (1.0, 1.0))),
}
