"""Label privacy by randomized response (arXiv 2510.13512): what flipped labels cost, ignoring them, and pessimism."""

import math

import torch
from torch import Tensor

from multiref_cli.theory.complexity import PRIOR, label_probability


def flip_probability(epsilon: float) -> float:
    """Randomized response that is epsilon-differentially private turns a label with probability 1 / (1 + e^epsilon).

    Args:
        epsilon: privacy budget, > 0; usual 0.5 to 5; a scalar.

    Returns:
        float in (0, 1/2).
    """
    return 1.0 / (1.0 + math.exp(epsilon))


def inflation(epsilon: float) -> float:
    """Derived, for labels near coin flips: the gap grows by ((e^eps + 1) / (e^eps - 1))^2, as if n were that smaller.

    The order 1 / (e^eps - 1)^2 for small epsilon is the rate of arXiv 2510.13512.

    Args:
        epsilon: privacy budget, > 0, a scalar.

    Returns:
        float >= 1.
    """
    return 1.0 / math.tanh(epsilon / 2) ** 2


def standard_errors(counts: Tensor, estimate: Tensor, behavior: Tensor, flip: float) -> Tensor:
    """Standard errors of fitted rewards, one free reward a response, against their mean where the data come from.

    The bonus of pessimism: sqrt((e_y - q)' I^-1 (e_y - q)) with I the Fisher information in flipped labels.

    Args:
        counts: (D, Y, Y) pairs won and lost.
        estimate: (D, Y) fitted rewards.
        behavior: (Y,) q, probabilities of a response in the data.
        flip: probability of a turned label.

    Returns:
        (D, Y).
    """
    plain, seen = label_probability(estimate), label_probability(estimate, flip)
    weight = (counts + counts.mT) * ((1 - 2 * flip) * plain * (1 - plain)) ** 2 / (seen * (1 - seen))
    identity = torch.eye(len(behavior), dtype=counts.dtype)
    covariance = torch.linalg.inv(torch.diag_embed(weight.sum(-1)) - weight + PRIOR * identity)
    difference = identity - behavior
    return torch.einsum("yi,dij,yj->dy", difference, covariance, difference).sqrt()
