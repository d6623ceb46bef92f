"""Token sampling by inverse CDF, driven by counter-based uniforms: common random numbers by construction."""

import numpy as np
import torch
from torch import Tensor

from multiref_cli.objectives.aggregate import widest
from multiref_cli.rollouts.engine import Sampling


def uniforms(seed: int, group_size: int, length: int) -> Tensor:
    """The random numbers of one prompt, a pure function of (seed, sample index, position).

    Philox (Salmon et al., 2011) with the seed as key and the sample index in the high word of the counter, so neither
    the batch, nor the group size, nor the length cap changes any number.

    Args:
        seed: of the prompt, any non-negative integer.
        group_size: G.
        length: positions, T.

    Returns:
        (G, T) float64 in [0, 1).
    """
    key = seed % 2**128
    rows = [
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, g])).random(length) for g in range(group_size)
    ]
    return torch.from_numpy(np.stack(rows))


def truncate(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Sets to zero what top-k, top-p and min-p (in this order) exclude; (S, V) -> (S, V), not renormalized.

    top-p keeps the smallest set of most probable tokens whose mass reaches top_p of what top-k left; min-p keeps
    tokens of at least min_p times the largest probability (arXiv 2407.01082).
    """
    if 0 < sampling.top_k < probabilities.shape[-1]:
        smallest = probabilities.topk(sampling.top_k, -1).values[..., -1:]
        probabilities = torch.where(probabilities < smallest, 0.0, probabilities)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        mass = ordered.cumsum(-1, dtype=widest(ordered.device))
        excluded = mass - ordered >= sampling.top_p * mass[..., -1:]
        probabilities = probabilities.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), 0.0)
    if sampling.min_p > 0:
        smallest = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = torch.where(probabilities < smallest, 0.0, probabilities)
    return probabilities


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability passes `uniform`; never one of probability zero.

    Args:
        probabilities: (S, V) non-negative, not necessarily normalized.
        uniform: (S,) in [0, 1), of the `widest` type of the device.

    Returns:
        (S,) token ids, distributed as `probabilities` normalized.
    """
    cumulative = probabilities.cumsum(-1, dtype=widest(probabilities.device))
    total = cumulative[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token for each row and its log-prob before truncation.

    Args:
        logits: (S, V) of the next token.
        uniform: (S,) in [0, 1), of the `widest` type of the device.
        sampling: temperature and truncations.

    Returns:
        (S,) token ids and (S,) float32 log-probs in nats under softmax(logits / temperature).
    """
    logits = logits.float()
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    logps = torch.log_softmax(logits, -1)
    greedy = sampling.temperature == 0
    tokens = logps.argmax(-1) if greedy else inverse_cdf(truncate(logps.exp(), sampling), uniform)
    return tokens, logps.gather(-1, tokens[:, None])[:, 0]
