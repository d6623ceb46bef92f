"""Log-probabilities of given completions, without a full logits tensor.

The head is applied to completion positions only, a chunk at a time, and reduced in float32; the backward pass computes
each chunk again. So the largest tensor over the vocabulary has one chunk of rows, whatever the batch.
A policy's own log-probabilities, like a reference's, normalize over the ids of the tokenizer: ids beyond `vocabulary`
are padding of the matrix and are cut off before the softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.models.decoder import Head, head_of, hidden_states
from multiref_cli.models.head import (
    Exact,
    Sampled,
    Sizes,
    normalized_already,
    over_chunks,
    reference_rows,
    slices,
)
from multiref_cli.models.packing import Packed
from multiref_cli.objectives.mixing import mean_of_rows
from multiref_cli.types import LanguageModel

# Elements over the vocabulary that may be alive at once (64 MB on CPU, 1 GB on GPU): fewer rows make the matrix product
# of the head slower (half as fast at 16 rows on CPU), more do not make it faster.
LIVE_ELEMENTS = {"cpu": 2**24, "cuda": 2**28}
# Tensors of a chunk's size that a statistic holds at its peak, counted by tests/models/test_logprobs.py.
SAMPLED_COPIES, ENTROPY_COPIES, EXACT_COPIES, REFERENCE_COPIES = 5, 9, 5, 4


@dataclass(frozen=True)
class TokenLogps:
    """Per-token results, 0 where masked.

    Attributes:
        logps: (B, T) log-probability of each completion token in nats, float32 or better, differentiable.
        entropy: (B, T) entropy of the distribution it was taken from, in nats, differentiable; None unless asked for.
    """

    logps: Tensor
    entropy: Tensor | None = None


@dataclass(frozen=True)
class TokenDivergence:
    """Per-token results of a policy beside K references, 0 where masked.

    Attributes:
        logps: (B, T) policy log-probabilities of the completion tokens, differentiable.
        divergence: (B, T) exact divergence over the whole vocabulary, in nats, differentiable.
        entropy: (B, T) of the policy, differentiable; None unless asked for.
        reference_logps: (K, B, T) log-probabilities of the same tokens under each reference.
        log_normalizers: (R, B, T) log F_t of the token-level mixed reference of every term.
    """

    logps: Tensor
    divergence: Tensor
    entropy: Tensor | None
    reference_logps: Tensor
    log_normalizers: Tensor


def token_logps(
    model: LanguageModel,
    packed: Packed,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = False,
    vocabulary: int | None = None,
) -> TokenLogps:
    """Log-probabilities of the completion tokens, and the entropy on request, in one pass.

    Args:
        model: a causal language model (transformers, peft, or an adapter of one).
        packed: rows from `packing.pack`, on the model's device.
        temperature: logits are divided by it; 1 is the model itself.
        chunk: completion positions per application of the head; None chooses by device.
        entropy: also the entropy of each distribution.
        vocabulary: ids of the tokenizer, where the head is padded beyond them.

    Returns:
        Results of shape (B, T).
    """
    return logps_of(hidden_states(model, packed), head_of(model, vocabulary), packed, temperature, chunk, entropy)


def logps_of(
    hidden: Tensor,
    head: Head,
    packed: Packed,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = False,
) -> TokenLogps:
    """`token_logps`, given the (N, H) hidden states that predict the completion tokens."""
    sizes = Sizes(
        chunk or default_chunk(head, packed.targets.device, ENTROPY_COPIES if entropy else SAMPLED_COPIES),
        temperature,
        2 if entropy else 1,
    )
    results = over_chunks(hidden, head, Sampled(packed.targets, entropy), sizes)
    return TokenLogps(*(spread(values, packed.mask) for values in results))


def token_divergence(
    model: LanguageModel,
    references: Sequence[Any],
    terms: Sequence[Term],
    packed: Packed,
    temperature: float = 1.0,
    entropy: bool = False,
    vocabulary: int | None = None,
    normalized: bool = True,
) -> TokenDivergence:
    """The exact per-token divergence from K references, summed over the whole vocabulary, in one pass.

    Where mean and score have the same order A a term adds its weight times sum_i alpha_i D_A(pi_i(.|s) || pi(.|s)),
    which is F^A D_A(M / F || pi) and a rest that depends on the state alone. The rest moves no token at s, but a token
    that leads to s pays for it: `normalized` leaves it out (M / F is the reference, as sampled estimators have it),
    else it is charged, and at A = 0 the sum over tokens is that of Theorem 5.1 of arXiv 2502.01203. Where the orders
    differ it is D_A(M / F || pi), or D_A(M || pi). Gradient: that of this sum, states taken as given.

    Args:
        model: the policy.
        references: K frozen models over the same ids; one whose weight is 0 in every term must not be among them.
        terms: R summands over the K references.
        packed: rows on the models' device.
        temperature: logits of policy and references are divided by it.
        entropy: also the policy's entropy.
        vocabulary: ids of the tokenizer, shared by all.
        normalized: whether the mixed reference is divided by its sum over the vocabulary.

    Returns:
        Results of shape (B, T), references or terms first where there are several of them.
    """
    head, constants = head_of(model, vocabulary), reference_heads(references, packed, vocabulary)

    exact = Exact(packed.targets, constants, tuple(terms), temperature, normalized, entropy)
    sizes = Sizes(
        default_chunk(head, packed.targets.device, EXACT_COPIES + REFERENCE_COPIES * len(references)),
        temperature,
        3 if entropy else 2,
    )
    logps, divergence, *rest = over_chunks(hidden_states(model, packed), head, exact, sizes)
    return TokenDivergence(
        logps=spread(logps, packed.mask),
        divergence=spread(divergence, packed.mask),
        entropy=spread(rest[0], packed.mask) if entropy else None,
        reference_logps=torch.stack([spread(column, packed.mask) for column in rest[-2].unbind(-1)]),
        log_normalizers=torch.stack([spread(column, packed.mask) for column in rest[-1].unbind(-1)]),
    )


@torch.no_grad()
def score_references(
    references: Sequence[Any],
    packed: Packed,
    mixes: Sequence[Mix],
    temperature: float = 1.0,
    vocabulary: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the completion tokens under K references, and log F_t of every mix, in one pass.

    log F_t = log sum_v M_A(v | y_<t), at most 0 for A <= 0 and exactly 0 for A = 1.

    Args:
        references: K models over the same ids.
        packed: rows on the models' device.
        mixes: the (order, K weights) wanted; weights of 0 are allowed here, and negative ones for order 0.
        temperature: logits are divided by it.
        vocabulary: ids of the tokenizer, shared by all.

    Returns:
        (K, B, T) log-probabilities and for each mix (B, T) log F_t, in nats, 0 where masked.
    """
    heads = reference_heads(references, packed, vocabulary)
    picked, log_f = reference_columns(heads, packed.targets[:, None], mixes, temperature)
    return torch.stack([spread(one, packed.mask) for one in picked[..., 0]]), [
        spread(one, packed.mask) for one in log_f
    ]


def normalizers(
    references: Sequence[Any], packed: Packed, mixes: Sequence[Mix], vocabulary: int | None = None
) -> list[Tensor]:
    """log F_t alone, (B, T) for each mix; see `score_references`."""
    return score_references(references, packed, mixes, vocabulary=vocabulary)[1]


@torch.no_grad()
def reference_columns(
    heads: Sequence[tuple[Head, Tensor]], columns: Tensor, mixes: Sequence[Mix], temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What K references say of some tokens at each position, and log F of every mix there.

    Args:
        heads: head and hidden states (N, H) of each reference.
        columns: (N, c) token ids wanted at each position.
        mixes: R mixed references, each with K weights.
        temperature: logits are divided by it.

    Returns:
        (K, N, c) log-probabilities and (R, N) log F, in nats.
    """
    chunk, count = default_chunk(heads[0][0], columns.device, SAMPLED_COPIES + 2 * len(heads)), len(heads)
    parts = []
    for rows in slices(len(columns), chunk):
        logps = reference_rows(heads, rows, temperature)
        picked = [one.gather(-1, columns[rows]) for one in logps]
        parts.append(torch.cat([*picked, *(log_normalizer(logps, mix)[:, None] for mix in mixes)], -1))
    whole, width = torch.cat(parts), columns.shape[1]
    return torch.stack(whole[:, : count * width].split(width, -1)), whole[:, count * width :].T


def log_normalizer(logps: Sequence[Tensor], mix: Mix) -> Tensor:
    """K times (C, V) -> (C,) log F of their mean."""
    if normalized_already(mix):  # no rounding where the answer is 0
        return logps[0].new_zeros(logps[0].shape[0])
    return mean_of_rows(logps, mix.weights, mix.order).logsumexp(-1)


@torch.no_grad()
def reference_heads(references: Sequence[Any], packed: Packed, vocabulary: int | None) -> list[tuple[Head, Tensor]]:
    """Head and final hidden states (N, H) of every reference at the positions that are scored."""
    return [(head_of(model, vocabulary), hidden_states(model, packed)) for model in references]


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) -> (B, T), zero outside the mask."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def default_chunk(head: Head, device: torch.device, copies: int) -> int:
    """Rows of a chunk, given how many tensors of its size are alive at the peak."""
    return max(4, LIVE_ELEMENTS.get(device.type, LIVE_ELEMENTS["cuda"]) // (head.size * copies))
