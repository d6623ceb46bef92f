"""How the exact optimum and its value move with the reward, with alpha and with beta.

All of it hangs on one vector, derived for every order A (appendices D.5 and E of arXiv 2502.01203 treat 0 and 1):

    w(y) = M_A(y) u(y)^(1 + A) / beta = pi*(y) u(y)^A / beta

d pi* / d r = diag(w) - w w^T / sum w: a covariance under the distribution w / sum w. For A = 0 that is the policy
itself; for A = 1 the responses already pushed up (large u) are the sensitive ones, for A = -1 all alike.
"""

import torch
from torch import Tensor

from multiref_cli.theory.exact import Solution, divergences, log_mixed, solution


def sensitivity_weights(found: Solution, beta: float, order: float) -> Tensor:
    """w = pi* u^A / beta, zero where a response is cut off.

    Args:
        found: an exact optimum, shapes (..., Y).
        beta: weight of the divergence.
        order: A.

    Returns:
        (..., Y) in units of 1 / reward; sum w = gamma for A = 0.
    """
    cut = found.log_ratio.isneginf()
    return (found.policy * (order * found.log_ratio.masked_fill(cut, 0.0)).exp() / beta).masked_fill(cut, 0.0)


def reward_jacobian(found: Solution, beta: float, order: float) -> Tensor:
    """d pi*(y) / d r(z) = w_y [y = z] - w_y w_z / sum w; also the Hessian of the optimal value in the reward.

    Args:
        found: an exact optimum, shapes (..., Y).
        beta: weight of the divergence.
        order: A.

    Returns:
        (..., Y, Y) symmetric, positive semi-definite, rows sum to zero.
    """
    w = sensitivity_weights(found, beta, order)
    return torch.diag_embed(w) - w.unsqueeze(-1) * w.unsqueeze(-2) / w.sum(-1)[..., None, None]


def beta_derivative(found: Solution, reward: Tensor, beta: float, order: float) -> Tensor:
    """d pi* / d beta = -w (s - E_w[s]) with the score s = (r - nu) / beta.

    Args:
        found: an exact optimum, shapes (..., Y).
        reward: (..., Y).
        beta: weight of the divergence.
        order: A.

    Returns:
        (..., Y), sums to zero.
    """
    w = sensitivity_weights(found, beta, order)
    scores = (reward - found.normalizer.unsqueeze(-1)) / beta
    return -w * (scores - (w * scores).sum(-1, keepdim=True) / w.sum(-1, keepdim=True))


def alpha_derivative(references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float) -> Tensor:
    """d pi* / d alpha_i, each alpha moved alone (combine along directions that keep the sum at one).

    d pi* = pi* dlog M - w E_{pi*}[dlog M] / sum w, with dlog M / d alpha_i = (pi_i / M)^A / A, log pi_i for A = 0.

    Args:
        references: (K, Y) probabilities, all positive.
        weights: (K,) alpha, all positive.
        reward: (Y,).
        beta: weight of the divergence.
        order: A.

    Returns:
        (K, Y), rows sum to zero.
    """
    found = solution(references, weights, reward, beta, order)
    log_share = references.log() - log_mixed(references, weights, order)
    slopes = references.log() if order == 0 else (order * log_share).exp() / order
    w = sensitivity_weights(found, beta, order)
    return found.policy * slopes - w * (found.policy * slopes).sum(-1, keepdim=True) / w.sum()


def value_gradients(
    references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the optimal value: pi* in the reward, -beta D_i in alpha, -sum alpha_i D_i in beta (envelope).

    Args:
        references: (..., K, Y) probabilities.
        weights: (K,) alpha.
        reward: (..., Y).
        beta: weight of the divergence.
        order: A.

    Returns:
        (..., Y) in the reward, (..., K) in alpha, (...) in beta.
    """
    policy = solution(references, weights, reward, beta, order).policy
    apart = divergences(policy, references, order)
    return policy, -beta * apart, -(apart * weights).sum(-1)


def gradient_ascent(references: Tensor, weights: Tensor, reward: Tensor, beta: float, steps: int = 200) -> Tensor:
    """Maximize the optimal value of the reverse-KL problem over alpha (the question of Remark D.4).

    Exponentiated gradient on the simplex, started at equal weights nudged by 1e-3. The value is convex in alpha (a
    maximum of linear functions), so the ascent ends in a corner: a single reference, whatever the problem.

    Args:
        references: (K, Y) probabilities.
        weights: (K,) where to start, all positive.
        reward: (Y,).
        beta: weight of the divergence.
        steps: number of steps.

    Returns:
        (steps + 1, K) the path of alpha.
    """
    path = [weights]
    for _ in range(steps):
        slope = value_gradients(references, path[-1], reward, beta, 0.0)[1]
        slope = slope - slope.mean()
        path.append(torch.softmax(path[-1].log() + slope / slope.abs().max().clamp(min=1e-12), 0))
    return torch.stack(path)
