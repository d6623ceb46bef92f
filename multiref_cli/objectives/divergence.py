"""Divergences by name: the score that every penalty and implicit reward is made of, and the divergence itself.

With D_f(pi || p) = sum_y p f(pi / p) the score is s(x) = f'(e^x) at x = log pi - log p. Reverse KL, forward KL, chi-PO
and Jeffreys are sums of Amari's scores; Jensen-Shannon is not. The table of names is `config.terms.DIVERGENCES`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from multiref_cli.config.terms import DivergenceTerm, Term


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


def weighted_score(q: Tensor, log_q: Tensor, log_p: Tensor, order: float) -> Tensor:
    """q s_A(log q - log p), elementwise, in few passes over memory; no gradient is kept.

    With q = softmax(z), the gradient of sum_v D_A(p || q) in z is w - q sum_v w, w this product. Near A = 0 it is
    an expm1 over A, so that rounding is not magnified; far from it q^(1-A) p^A is one exponential, which cannot
    overflow where the product does not.

    Args:
        q: (C, V) exp(log_q).
        log_q: (C, V) log-probabilities in nats, finite.
        log_p: (C, V) log-probabilities of the reference in nats, finite, normalized or not.
        order: A.

    Returns:
        (C, V), a new tensor.
    """
    if order == 0:
        return (log_q - log_p).mul_(q)
    if order == 1:
        return torch.sub(q, product := log_p.exp(), out=product)
    product = (log_p - log_q).mul_(order)
    if abs(order) <= 0.5:
        # Beyond the bound q is 0 in float32, and so is what the product stands for.
        return product.clamp_(max=80.0).expm1_().mul_(q).div_(-order)
    product.add_(log_q).exp_()
    return torch.sub(q, product, out=product).div_(order)


def amari_of_rows(q: Tensor, log_q: Tensor, log_p: Tensor, order: float) -> Tensor:
    """`amari_divergence` as (C,) from the (C, V) that `weighted_score` takes, in as few passes; not differentiable."""
    if order > 0.5:
        return weighted_score(log_p.exp(), log_p, log_q, 1.0 - order).sum(-1) / order
    return weighted_score(q, log_q, log_p, order).sum(-1) / (1.0 - order)


def amari_columns(reference_logps: Tensor, policy_logps: Tensor, order: float) -> Tensor:
    """sum_v p_v f_A(m_v / p_v) over some columns v, f_A as in `ratio_estimate`; nothing overflows where p_v is tiny.

    It is what `amari_divergence` sums plus c sum_v (p_v - m_v), of which nothing is left over the whole vocabulary;
    c = 1 / (A - 1), or 1 / A where that function goes by D_A(m || p) = D_{1-A}(p || m).

    Args:
        reference_logps: (..., k) log m in nats, m normalized over the vocabulary.
        policy_logps: (..., k) log p in nats.
        order: A.

    Returns:
        (...) never negative up to rounding.
    """
    rest = (policy_logps.exp() - reference_logps.exp()).sum(-1)
    return amari_divergence(reference_logps, policy_logps, order) + rest / _slope_at_one(order)


def amari_excess(log_normalizer: Tensor, order: float) -> Tensor:
    """By how much `amari_divergence` from m of mass F exceeds sum_v p_v f_A(m_v / p_v): (F - 1) / (A - 1), or / A."""
    return torch.expm1(log_normalizer) / _slope_at_one(order)


def _slope_at_one(order: float) -> float:
    return order if order > 0.5 else order - 1.0


def ratio_estimate(log_ratio: Tensor, order: float) -> Tensor:
    """f_A(e^-x), f_A(t) = (t^A - 1 - A (t - 1)) / (A (A - 1)): under the policy its expectation is D_A, its terms >= 0.

    f_0(t) = t - 1 - log t (Schulman's k3), f_1(t) = t log t - t + 1.

    Args:
        log_ratio: (...) x = log pi - log M in nats, M normalized.
        order: A.

    Returns:
        (...) never negative.
    """
    log_t = -log_ratio
    t_minus_one = torch.expm1(log_t)
    if order == 0:
        return t_minus_one - log_t
    if order == 1:
        return torch.exp(log_t) * log_t - t_minus_one
    return (torch.expm1(order * log_t) - order * t_minus_one) / (order * (order - 1.0))


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
        weighted(term.weight, kind_of(term.score).score(policy_logps - mixed, clip))
        for term, mixed in zip(terms, log_mixed)
    ]
    return total(parts)


def weighted(weight: float, values: Tensor) -> Tensor:
    """Values times a weight, (...) -> (...) in their unit; the very tensor where the weight is 1."""
    return values if weight == 1 else weight * values


def total(values: Iterable[Tensor]) -> Tensor:
    """Sum of tensors of one shape, at least one; R of (...) -> (...), added in the order given."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def is_clipped(terms: Sequence[Term], policy_logps: Tensor, log_mixed: Tensor, clip: float) -> Tensor:
    """Where the score of any term lies on its linear continuation; (...) bool, arguments as in `total_score`."""
    found = [kind_of(term.score).is_clipped(policy_logps - mixed, clip) for term, mixed in zip(terms, log_mixed)]
    return torch.stack(found).any(0)


class Divergence(Protocol):
    """What an exact solver needs of a divergence."""

    def score(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """s(x) = f'(e^x) up to a constant, 0 at x = 0, increasing; (...) -> (...)."""

    def divergence(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """D_f(pi || p) over the last axis of log-probabilities, -inf allowed; (..., V) -> (...)."""


class Trainable(Divergence, Protocol):
    """What every estimator of a penalty needs of a divergence besides."""

    def is_clipped(self, log_ratio: Tensor, clip: float) -> Tensor:
        """Where the score is on a linear continuation; (...) -> (...) bool."""

    def integral(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """Integral of the score from 0 to x, the k2-type loss; (...) -> (...)."""

    def ratio_estimate(self, log_ratio: Tensor) -> Tensor:
        """(f(u) - f'(1) (u - 1)) / u at u = e^x, whose expectation under the policy is D_f; (...) -> (...)."""

    def weighted_score(self, q: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
        """q s(log q - log p), a new tensor; (C, V) each."""

    def of_rows(self, q: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
        """`divergence` of finite log-probabilities in few passes, not differentiable; (C, V) -> (C,)."""

    def columns(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """sum_v p_v `ratio_estimate`(x_v) over some columns, the whole of which is D_f; (..., k) -> (...)."""


@dataclass(frozen=True)
class AmariSum:
    """A sum of Amari's divergences; `parts` holds pairs (order, coefficient > 0)."""

    parts: tuple[tuple[float, float], ...]

    def score(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """Sum of the scores, each clipped on its own growing side; (...) -> (...)."""
        return total(weighted(weight, score(log_ratio, order, clip)) for order, weight in self.parts)

    def is_clipped(self, log_ratio: Tensor, clip: float) -> Tensor:
        """Where some part is on its linear continuation; (...) -> (...) bool."""
        clipped = [score_is_clipped(log_ratio, order, clip) for order, _ in self.parts]
        return torch.stack(clipped).any(0)

    def integral(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """Integral of the score from 0 to x, the k2-type loss; (...) -> (...)."""
        return total(weighted(weight, score_integral(log_ratio, order, clip)) for order, weight in self.parts)

    def ratio_estimate(self, log_ratio: Tensor) -> Tensor:
        """Sum of `ratio_estimate`; (...) -> (...)."""
        return total(weighted(weight, ratio_estimate(log_ratio, order)) for order, weight in self.parts)

    def columns(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """Sum of `amari_columns`; (..., k) -> (...)."""
        pairs = [(weight, amari_columns(reference_logps, policy_logps, order)) for order, weight in self.parts]
        return total(weighted(weight, value) for weight, value in pairs)

    def divergence(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """Full-vocabulary divergence over the last axis; (..., V) -> (...)."""
        pairs = [(weight, amari_divergence(reference_logps, policy_logps, order)) for order, weight in self.parts]
        return total(weighted(weight, value) for weight, value in pairs)

    def weighted_score(self, q: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
        """q s(log q - log p), a new tensor; (C, V) each."""
        return total(weighted(weight, weighted_score(q, log_q, log_p, order)) for order, weight in self.parts)

    def of_rows(self, q: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Full-vocabulary divergence of finite log-probabilities in few passes; (C, V) -> (C,)."""
        return total(weighted(weight, amari_of_rows(q, log_q, log_p, order)) for order, weight in self.parts)


_LOG2 = math.log(2.0)


@dataclass(frozen=True)
class JensenShannon:
    """f(u) = u log u - (u + 1) log((u + 1) / 2): KL(pi || m) + KL(p || m) with m = (pi + p) / 2 (f-DPO, 2309.16240).

    Its slope is at most 1 and it is bounded above: nothing to clip, `clip` has no effect.
    """

    def score(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """log 2 - softplus(-x); (...) -> (...)."""
        return F.logsigmoid(log_ratio) + _LOG2

    def is_clipped(self, log_ratio: Tensor, clip: float) -> Tensor:
        """Nowhere; (...) -> (...) bool."""
        return torch.zeros_like(log_ratio, dtype=torch.bool)

    def integral(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """x log 2 - Li_2(-e^-x) - pi^2 / 12, whose derivative is the score; (...) -> (...)."""
        x = log_ratio.detach()
        value = x * _LOG2 - _dilogarithm(-x) - math.pi**2 / 12
        return value + self.score(x) * (log_ratio - x)

    def ratio_estimate(self, log_ratio: Tensor) -> Tensor:
        """x - (1 + e^-x) log((1 + e^x) / 2), which is f(u) / u; (...) -> (...)."""
        return log_ratio + (1.0 + torch.exp(-log_ratio)) * (F.logsigmoid(-log_ratio) + _LOG2)

    def columns(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """The same sum as `divergence`, f'(1) being 0; (..., k) -> (...)."""
        return self.divergence(reference_logps, policy_logps)

    def divergence(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """Full-vocabulary divergence over the last axis; (..., V) -> (...)."""
        p, q = reference_logps.exp(), policy_logps.exp()
        both = ~(reference_logps.isneginf() | policy_logps.isneginf())
        ratio = torch.where(both, reference_logps, 0.0) - torch.where(both, policy_logps, 0.0)
        # log m = log q - logsigmoid(-ratio) - log 2; where one of them is 0, the other has log 2.
        inside = (p + q) * (F.logsigmoid(-ratio) + _LOG2) + p * ratio
        return torch.where(both, inside, (p + q) * _LOG2).sum(-1)

    def weighted_score(self, q: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
        """q (log 2 - softplus(-x)), a new tensor; (C, V) each."""
        return F.logsigmoid(log_q - log_p).add_(_LOG2).mul_(q)

    def of_rows(self, q: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
        """KL(q || m) + KL(p || m) of finite log-probabilities; (C, V) -> (C,)."""
        ratio, p = log_p - log_q, log_p.exp()
        inside = F.logsigmoid(-ratio).add_(_LOG2).mul_(q + p)
        return inside.addcmul_(p, ratio).sum(-1)


def _dilogarithm(x: Tensor) -> Tensor:
    """Li_2(-e^x) by Landen's series in w / (1 + w) <= 1/2 with w = e^-|x|, and its inversion for x > 0."""
    w = torch.exp(-x.abs())
    ratio, series = w / (1.0 + w), torch.zeros_like(x)
    for k in range(50, 0, -1):
        series = ratio * (1.0 / k**2 + series)
    small = -series - torch.log1p(w).square() / 2
    return torch.where(x > 0, -(math.pi**2) / 6 - x.square() / 2 - small, small)


# Divergences that are no sum of Amari's, by the name that config.terms.DIVERGENCES has for them.
OTHERS: dict[str, Trainable] = {"jensen_shannon": JensenShannon()}


@cache
def kind_of(score: float | str) -> Trainable:
    """The divergence of a term's score: an order A, or a name."""
    return OTHERS[score] if isinstance(score, str) else AmariSum(((float(score), 1.0),))


def divergence_of(name: str, order: float | None = None) -> Trainable:
    """The divergence of a name.

    Args:
        name: reverse_kl, forward_kl, amari, jensen_shannon, chi_po (arXiv 2407.13399), jeffreys.
        order: A, for amari only.

    Raises:
        ValueError: an unknown name, an order missing or without use, total variation.
    """
    term = DivergenceTerm(name, order)
    problem = term.problem()
    if problem is not None:
        raise ValueError(problem)
    return AmariSum(term.parts) if term.parts else OTHERS[name]


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
