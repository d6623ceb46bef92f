"""Mixed references: K reference policies seen as one, by the weighted power mean of their probabilities."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from multiref_cli.config.regularizer import Term


def power_mean(logps: Tensor, weights: Tensor, order: float, signed: bool = False) -> Tensor:
    """Log of the weighted power mean of K probabilities, log M_A = (1/A) log sum_i alpha_i p_i^A, unnormalized.

    A = 0 is the geometric mean (the generalized escort of arXiv 2502.01203, Eq. 15), A = 1 the arithmetic mean
    (its Theorem 6.1), A = -1 the harmonic mean (MRPO, arXiv 2405.16388, Eq. 13). One formula holds near A = 0, so
    the limit is approached without drift; rounding is a few epsilons of the spread of the log-probabilities, not of
    their size, so float32 is enough for the sums of thousands of tokens.

    Args:
        logps: (K, ...) log-probabilities in nats, of tokens or of whole responses; -inf is allowed.
        weights: (K,) alpha on the simplex, or (K, ...) one alpha per entry of `logps`; divided by its sum. A reference
            with weight 0 is dropped, whatever its log-probability.
        order: A, any real number; usual range -1 to 1.
        signed: whether weights may be negative (order 0 only): teacher extrapolation, arXiv 2602.12125.

    Returns:
        (...) log M_A in float32 or better, differentiable in `logps`.

    Raises:
        ValueError: weights that do not fit `logps`, are negative, or do not sum to one; signed at another order.
    """
    if signed and order != 0:
        raise ValueError(f"negative weights need order 0: at order {order:g} a weighted sum of powers may be negative")
    logps = wide(logps)
    weights = checked_weights(weights, logps, signed)
    dropped, largest = weights == 0, order >= 0
    kept = logps.detach()
    if dropped.any():
        kept = kept.masked_fill(dropped, -torch.inf if largest else torch.inf)
    # Measured from the largest term, no exponent is positive (nothing overflows) and all expm1 terms share one sign.
    anchor = kept.amax(0) if largest else kept.amin(0)
    anchor = anchor.masked_fill(anchor.isinf(), 0.0)
    if dropped.any():
        logps = torch.where(dropped, anchor, logps)
    if order == 0:
        return anchor + _weighted_sum(weights, (row - anchor for row in logps))
    return _from_anchor(logps, weights, order, anchor)


def _from_anchor(logps: Tensor, weights: Tensor, order: float, anchor: Tensor) -> Tensor:
    """(K, ...), K weights that broadcast over it, and (...) the term that no power of the others exceeds -> (...)."""
    shrink = _weighted_sum(weights, (torch.expm1(order * (row - anchor)) for row in logps))
    total = _weighted_sum(weights, (torch.exp(order * (row - anchor)) for row in logps))
    # The first keeps the digits of a mean close to the anchor, the second those of one far from it.
    return anchor + torch.where(shrink > -0.5, torch.log1p(shrink.clamp(min=-0.5)), total.log()) / order


def mean_of_rows(logps: Sequence[Tensor], weights: Sequence[float], order: float) -> Tensor:
    """`power_mean` in few passes over memory, for chunks over a vocabulary.

    Weights are plain numbers, checked where they were made, so that nothing is asked of the device. Nearer to A = 0
    than 1/4 the logarithm of the sum loses digits that the division by A brings to light: there it is the formula of
    `power_mean`.

    Args:
        logps: K tensors (C, V) of log-probabilities in nats, finite; left as they are.
        weights: K numbers that sum to one; those of 0 are dropped; negative ones for order 0 only.
        order: A.

    Returns:
        (C, V) log M_A, unnormalized: the very tensor where one reference has all the weight.
    """
    whole = sum(weights)
    kept = [(weight / whole, row) for weight, row in zip(weights, logps) if weight != 0]
    (first_weight, first), *others = kept
    if not others:
        return first
    if order == 0:
        mean = first.lerp(others[0][1], others[0][0]) if len(others) == 1 else first * first_weight
        for weight, row in others if len(others) > 1 else ():
            mean.add_(row, alpha=weight)
        return mean
    if abs(order) < 0.25:
        rows, alphas = torch.stack([row for _, row in kept]), first.new_tensor([weight for weight, _ in kept])
        return _from_anchor(rows, alphas, order, rows.amax(0) if order > 0 else rows.amin(0))
    total = (first * order).add_(math.log(first_weight))
    for weight, row in others:
        total = torch.logaddexp(total, (row * order).add_(math.log(weight)), out=total)
    return total.div_(order)


def log_mixed(
    terms: Sequence[Term], logps: Tensor, log_normalizers: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """From the log-probabilities of K references to log M of every term: the one way, for responses and for tokens.

    Args:
        terms: R summands of a penalty.
        logps: (K, ...) log-probabilities in nats, of whole responses (level sequence) or of tokens (level token).
        log_normalizers: (R, ...) log F_t that token-level means are divided by; None: unnormalized.
        weights: (K, ...) one alpha per entry in place of the terms' own (ARWC); None: the terms'.

    Returns:
        (R, ...) log M, float32 or better.
    """
    means = []
    for term in terms:
        own = torch.tensor(term.mix.weights, dtype=torch.float64) if weights is None else weights
        alone = term.mix.only if weights is None else None
        mean = power_mean(logps, own, term.mix.order, term.mix.signed) if alone is None else wide(logps[alone])
        means.append(mean)
    mixed = torch.stack(means)
    return mixed if log_normalizers is None else mixed - log_normalizers


def mix_factor(term: Term, log_normalizers: Tensor) -> Tensor:
    """F_t^A, by which the pull of sum_i alpha_i D_A(pi_i || pi) at a state exceeds that of D_A(M / F || pi).

    sum_i alpha_i D_A(pi_i || pi) = F^A D_A(M / F || pi) + (F^A - 1) / (A (A - 1)), M the mean of the same order A.
    Where the orders of mean and score differ there is no such sum: 1.

    Args:
        term: one summand of a penalty.
        log_normalizers: (...) log F_t in nats.

    Returns:
        (...) the factor; 1 everywhere for A = 0 and A = 1.
    """
    same = not isinstance(term.score, str) and term.mix.order == term.score and term.score not in (0, 1)
    return torch.exp(term.mix.order * log_normalizers) if same else torch.ones_like(log_normalizers)


def wide(logps: Tensor) -> Tensor:
    """Log-probabilities (...) in nats, in float32 or better: half precision becomes float32."""
    return logps.float() if logps.dtype.itemsize < 4 else logps


def token_power_mean(logps: Tensor, log_normalizers: Tensor, weights: Tensor, order: float) -> Tensor:
    """Log of the token-level mixed reference, log M_A(y_t | y_<t) - log F_t with F_t = sum_v M_A(v | y_<t).

    This is another policy than the sequence-level mean of the theorems: its normalizers cancel neither in DPO nor in
    a policy gradient (the released code of arXiv 2502.01203 uses this level).

    Args:
        logps: (K, ...) per-token reference log-probabilities in nats.
        log_normalizers: (...) log F_t in nats; below 0 for A < 1, 0 for A = 1, above 0 for A > 1.
        weights: (K,) alpha on the simplex.
        order: A of the mean.

    Returns:
        (...) normalized per-token log-probabilities.
    """
    return power_mean(logps, weights, order) - log_normalizers


def checked_weights(weights: Tensor, logps: Tensor, signed: bool = False) -> Tensor:
    """Weights checked against (K, ...) `logps`, shaped to broadcast over it and divided by their sum.

    Args:
        weights: (K,) or (K, ...) alpha, non-negative; sums to one within 1e-4 over the first axis.
        logps: (K, ...) what they weigh.
        signed: whether negative weights are allowed.

    Returns:
        (K, 1, ...) or (K, ...) weights of the type and on the device of `logps`.

    Raises:
        ValueError: weights that do not fit `logps`, are negative, or do not sum to one.
    """
    weights = torch.as_tensor(weights, dtype=torch.float64)
    if weights.shape not in (logps.shape[:1], logps.shape):
        raise ValueError(f"{logps.shape[0]} references need as many weights, given shape {tuple(weights.shape)}")
    total = weights.sum(0)
    if not (signed or (weights >= 0).all()) or not ((total - 1.0).abs() <= 1e-4).all():
        raise ValueError(f"weights must be non-negative and sum to one, given {weights.tolist()}")
    weights = (weights / total).to(logps)
    return weights.reshape(weights.shape + (1,) * (logps.ndim - weights.ndim))


def _weighted_sum(weights: Tensor, rows: Iterator[Tensor]) -> Tensor:
    # Row by row: over a vocabulary, (K, V) temporaries would cost more memory and time than the arithmetic.
    total = weights[0] * next(rows)
    for weight, row in zip(weights[1:], rows):
        total = torch.addcmul(total, weight, row)
    return total
