"""Mixed references: K reference policies seen as one, by the weighted power mean of their probabilities."""

import torch
from torch import Tensor


def power_mean(logps: Tensor, weights: Tensor, order: float) -> Tensor:
    """Log of the weighted power mean of K probabilities, log M_A = (1/A) log sum_i alpha_i p_i^A, unnormalized.

    A = 0 is the geometric mean (the generalized escort of arXiv 2502.01203, Eq. 15), A = 1 the arithmetic mean
    (its Theorem 6.1), A = -1 the harmonic mean (MRPO, arXiv 2405.16388, Eq. 13). One formula holds near A = 0, so
    the limit is approached without drift; its error is a few float epsilons of the spread of the log-probabilities.

    Args:
        logps: (K, ...) log-probabilities in nats, of tokens or of whole responses; -inf is allowed.
        weights: (K,) alpha on the simplex. A reference with weight 0 is dropped, whatever its log-probability.
        order: A, any real number; usual range -1 to 1.

    Returns:
        (...) log M_A, differentiable in `logps`.

    Raises:
        ValueError: weights that do not fit `logps`, are negative, or do not sum to one.
    """
    weights = torch.as_tensor(weights, dtype=logps.dtype, device=logps.device)
    if weights.ndim != 1 or weights.shape[0] != logps.shape[0]:
        raise ValueError(f"{logps.shape[0]} references need as many weights, given shape {tuple(weights.shape)}")
    if (weights < 0).any() or abs(float(weights.sum()) - 1.0) > 1e-4:
        raise ValueError(f"weights must be non-negative and sum to one, given {weights.tolist()}")
    kept = weights > 0
    logps, weights = logps[kept], weights[kept].reshape(-1, *[1] * (logps.ndim - 1))
    if logps.shape[0] == 1:
        return logps[0]
    if order == 0:
        return (weights * logps).sum(0)
    # Anchored at the largest term, every exponent is <= 0: nothing overflows, and expm1 terms share one sign.
    anchor = (logps if order > 0 else -logps).detach().amax(0)
    anchor = anchor if order > 0 else -anchor
    exponents = order * torch.where(anchor.isinf(), torch.zeros_like(logps), logps - anchor)
    near = torch.log1p((weights * torch.expm1(exponents)).sum(0).clamp(min=-0.9))
    far = torch.logsumexp(torch.log(weights) + exponents, 0)
    return anchor + torch.where(exponents.detach().amin(0) > -1.0, near, far) / order


def token_power_mean(logps: Tensor, log_normalizers: Tensor, weights: Tensor, order: float) -> Tensor:
    """Log of the token-level mixed reference, log M_A(y_t | y_<t) - log F_t with F_t = sum_v M_A(v | y_<t).

    This is another policy than the sequence-level mean of the theorems: its normalizers cancel neither in DPO nor in
    a policy gradient (the released code of arXiv 2502.01203 uses this level).

    Args:
        logps: (K, ...) per-token reference log-probabilities in nats.
        log_normalizers: (...) log F_t <= 0 for order <= 0 and A = 1 exactly 0, in nats.
        weights: (K,) alpha on the simplex.
        order: A of the mean.

    Returns:
        (...) normalized per-token log-probabilities.
    """
    return power_mean(logps, weights, order) - log_normalizers
