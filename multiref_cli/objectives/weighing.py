"""Weights of references by a function of what they say of the data: `alpha={by: dotted.path}`, offline.

A function takes the training pairs and the held-out ones, each as `PairLogps`, and its options, and gives (K,) weights
for all pairs or (N, K), one row of weights a pair. Weights of the second kind read the pair: every pair then stands
against a mixed reference of its own, and the loss is the likelihood of no reward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """What K references say of N preference pairs.

    Attributes:
        names: K names.
        chosen: (K, N) log pi_i of the preferred responses in nats, float64.
        rejected: (K, N) of the others.
        lengths: (2, N) tokens of both.
        columns: N mappings, the other columns of each row.
    """

    names: Sequence[str]
    chosen: Tensor
    rejected: Tensor
    lengths: Tensor
    columns: Sequence[Mapping[str, Any]]


def validation(rows: PairLogps, held_out: PairLogps, temperature: float = 1.0) -> Tensor:
    """Weights by how likely each reference finds the preferred held-out responses; the same for all pairs.

    alpha_i is the softmax of the mean log pi_i over held-out responses, over a temperature: with the sum in place of
    the mean, the posterior of K models after these data. It reads no training pair, so the loss stays the likelihood
    of the mix with these weights; accuracy on the held-out pairs is then no longer blind to them.

    Args:
        rows: training pairs, not read.
        held_out: at least one pair.
        temperature: above 0, in nats a response; small ones choose the best reference alone.

    Returns:
        (K,) weights.
    """
    return torch.softmax(held_out.chosen.mean(1) / temperature, 0)


def confidence(rows: PairLogps, held_out: PairLogps, temperature: float = 1.0) -> Tensor:
    """Weights by how sure each reference is of the two responses: of a pair's tokens, whichever was preferred.

    alpha_i is the softmax of the mean log-probability a token over both responses, over a temperature: minus that mean
    estimates the cross-entropy of the reference on them. It reads the pair (not which of the two was preferred).

    Args:
        rows: N pairs.
        held_out: not read.
        temperature: above 0, in nats a token.

    Returns:
        (N, K) weights.
    """
    per_token = (rows.chosen + rows.rejected) / rows.lengths.sum(0).clamp(min=1)
    return torch.softmax(per_token / temperature, 0).T
