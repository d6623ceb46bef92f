"""Choosing alpha by the normalized value of the reverse-KL problem.

V(alpha), the optimal value of E_pi[r] - beta sum_i alpha_i KL(pi || pi_i), charges -beta log F, the disagreement of the
references, which no policy can change, and is convex in alpha. The same policy is optimal for E_pi[r] - beta KL(pi ||
M_0 / F), whose value is V_norm(alpha) = V(alpha) - beta log F(alpha), a tighter lower bound of E_{pi*}[r].
"""

import torch
from torch import Tensor

from multiref_cli.theory.exact import log_mixed

STEPS = 400  # of ascent, at most


def normalized_value(references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> Tensor:
    """V_norm(alpha) = beta log E_{y ~ M_0 / F}[exp(r / beta)] = V(alpha) - beta log F(alpha).

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0.

    Returns:
        (...) in reward units.
    """
    mixed = log_mixed(references, weights, 0.0)
    return beta * (torch.logsumexp(mixed + reward / beta, -1) - torch.logsumexp(mixed, -1))


def normalized_value_gradient(references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> Tensor:
    """d V_norm / d alpha_i = beta (E_{pi*}[log pi_i] - E_{M_0 / F}[log pi_i]), each alpha moved alone.

    A reference earns weight iff it likes the improved responses better than the plain mix does.

    Args:
        references: (..., K, Y) probabilities, all positive.
        weights: (K,) alpha on the simplex.
        reward: (..., Y).
        beta: weight of the divergence, > 0.

    Returns:
        (..., K) in reward units.
    """
    mixed = log_mixed(references, weights, 0.0)
    shift = torch.softmax(mixed + reward / beta, -1) - torch.softmax(mixed, -1)
    return beta * (references.log() * shift.unsqueeze(-2)).sum(-1)


def best_weights(references: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The rule: alpha that maximizes the mean of V_norm over a batch of prompts.

    Exponentiated gradient from equal weights and from near each corner, since V_norm is not concave; the corners
    themselves compete too.

    Args:
        references: (..., K, Y) probabilities, all positive.
        reward: (..., Y) the reward that is known, say a learned one.
        beta: weight of the divergence, > 0.

    Returns:
        (K,) on the simplex.
    """
    corners = torch.eye(references.shape[-2], dtype=references.dtype)
    starts = [corners.mean(0), *(0.8 * corners + 0.2 * corners.mean(0))]
    candidates = [*corners, *(_ascend(references, start, reward, beta) for start in starts)]
    return max(candidates, key=lambda w: float(normalized_value(references, w, reward, beta).mean()))


def _ascend(references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> Tensor:
    best, step = float(normalized_value(references, weights, reward, beta).mean()), 1.0 / beta
    for _ in range(STEPS):
        slope = normalized_value_gradient(references, weights, reward, beta)
        slope = slope.reshape(-1, slope.shape[-1]).mean(0)
        slope = slope - (weights * slope).sum()
        trial = torch.softmax(weights.log() + step * slope, 0)
        value = float(normalized_value(references, trial, reward, beta).mean())
        if value > best:
            weights, best, step = trial, value, 1.5 * step
        elif step * float(slope.abs().max()) < 1e-9:
            break
        else:
            step *= 0.5
    return weights
