"""Log-probabilities of given completions, without a full logits tensor.

The head is applied to completion positions only, a chunk at a time, and reduced in float32; the backward pass computes
each chunk again. So the largest tensor over the vocabulary has one chunk of rows, whatever the batch.
A policy's own log-probabilities, like a reference's, normalize over the ids of the tokenizer: ids beyond `vocabulary`
are padding of the matrix and are cut off before the softmax.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.models.decoder import Head, head_of, hidden_states
from multiref_cli.models.packing import Packed
from multiref_cli.objectives.divergence import kind_of, total, weighted
from multiref_cli.objectives.mixing import mix_factor, power_mean, wide
from multiref_cli.types import LanguageModel

# Elements over the vocabulary that may be alive at once (64 MB on CPU, 1 GB on GPU): fewer rows make the matrix product
# of the head slower (half as fast at 16 rows on CPU), more do not make it faster.
LIVE_ELEMENTS = {"cpu": 2**24, "cuda": 2**28}
# Tensors of a chunk's size that a statistic holds at its peak, counted by tests/models/test_logprobs.py.
SAMPLED_COPIES, ENTROPY_COPIES, REFERENCE_COPIES = 5, 9, 6

# From one chunk of logits (C, V) and its place among the N positions to statistics with C rows each.
Statistics = Callable[[Tensor, slice], tuple[Tensor, ...]]


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
    head = head_of(model, vocabulary)

    def statistics(logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        if not entropy:
            return (-F.cross_entropy(logits, packed.targets[rows], reduction="none"),)
        logps = logits.log_softmax(-1)
        return _pick(logps, packed.targets[rows]), _entropy(logps)

    sizes = _Sizes(
        chunk or _default_chunk(head, packed.targets.device, ENTROPY_COPIES if entropy else SAMPLED_COPIES),
        temperature,
        2,
    )
    results = _apply(hidden_states(model, packed), head, statistics, sizes)
    return TokenLogps(*(_spread(values, packed.mask) for values in results))


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
    head, constants = head_of(model, vocabulary), _reference_heads(references, packed, vocabulary)

    def statistics(logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        """Of some rows, logits (N, V): each result (N,), the references' log-probs (N, K), the terms' log F (N, R)."""
        targets, logps = packed.targets[rows], logits.log_softmax(-1)
        reference_logps = _reference_chunk(constants, rows, temperature)
        found = [_term_divergence(term, reference_logps, logps, normalized) for term in terms]
        divergence = sum((one for one, _ in found[1:]), found[0][0])
        picked = torch.stack([_pick(one, targets) for one in reference_logps], -1)
        entropies = (_entropy(logps),) if entropy else ()
        return _pick(logps, targets), divergence, *entropies, picked, torch.stack([log_f for _, log_f in found], -1)

    sizes = _Sizes(
        _default_chunk(head, packed.targets.device, ENTROPY_COPIES + REFERENCE_COPIES * len(references)),
        temperature,
        3 if entropy else 2,
    )
    logps, divergence, *rest = _apply(hidden_states(model, packed), head, statistics, sizes)
    return TokenDivergence(
        logps=_spread(logps, packed.mask),
        divergence=_spread(divergence, packed.mask),
        entropy=_spread(rest[0], packed.mask) if entropy else None,
        reference_logps=torch.stack([_spread(column, packed.mask) for column in rest[-2].unbind(-1)]),
        log_normalizers=torch.stack([_spread(column, packed.mask) for column in rest[-1].unbind(-1)]),
    )


def _term_divergence(term: Term, reference_logps: Tensor, logps: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:
    """(K, C, V) and (C, V) -> one term's divergence (C,) and the log F (C,) of its mixed reference."""
    mixed, log_normalizers = _mixed(reference_logps, term.mix)
    kind = kind_of(term.score)
    if normalized:
        divergence = mix_factor(term, log_normalizers) * kind.divergence(mixed - log_normalizers[:, None], logps)
    elif term.mix.order == term.score or isinstance(term.score, str):
        pairs = [(weight, one) for weight, one in zip(term.mix.weights, reference_logps) if weight != 0]
        divergence = total(weighted(weight, kind.divergence(one, logps)) for weight, one in pairs)
    else:
        divergence = kind.divergence(mixed, logps)
    return weighted(term.weight, divergence), log_normalizers


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
    constants = _reference_heads(references, packed, vocabulary)
    device = packed.targets.device
    chunk = _default_chunk(constants[0][0], device, SAMPLED_COPIES + 2 * len(references))
    parts = []
    for rows in _slices(len(packed.targets), chunk):
        logps = _reference_chunk(constants, rows, temperature)
        picked = [_pick(one, packed.targets[rows]) for one in logps]
        parts.append(torch.stack([*picked, *(_mixed(logps, mix)[1] for mix in mixes)]))
    results = [_spread(values, packed.mask) for values in torch.cat(parts, 1)]
    return torch.stack(results[: len(references)]), results[len(references) :]


def normalizers(
    references: Sequence[Any], packed: Packed, mixes: Sequence[Mix], vocabulary: int | None = None
) -> list[Tensor]:
    """log F_t alone, (B, T) for each mix; see `score_references`."""
    return score_references(references, packed, mixes, vocabulary=vocabulary)[1]


def _mixed(logps: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """(K, C, V) -> the mixed reference (C, V), unnormalized, and its log-normalizer (C,)."""
    if mix.only is not None:
        alone = wide(logps[mix.only])
        return alone, alone.new_zeros(alone.shape[0])
    mixed = power_mean(logps, torch.tensor(mix.weights, device=logps.device), mix.order, mix.signed)
    if mix.order == 1:
        return mixed, mixed.new_zeros(mixed.shape[0])  # a distribution already: no rounding where the answer is 0
    return mixed, mixed.logsumexp(-1)


@torch.no_grad()
def _reference_heads(references: Sequence[Any], packed: Packed, vocabulary: int | None) -> list[tuple[Head, Tensor]]:
    return [(head_of(model, vocabulary), hidden_states(model, packed)) for model in references]


@torch.no_grad()
def _reference_chunk(constants: list[tuple[Head, Tensor]], rows: slice, temperature: float) -> Tensor:
    """(K, C, V) normalized log-probabilities of the references."""
    logits = [head.finish(head.linear(hidden[rows]), temperature) for head, hidden in constants]
    return torch.stack([one.log_softmax(-1) for one in logits])


def _pick(logps: Tensor, targets: Tensor) -> Tensor:
    return logps.gather(-1, targets[:, None])[:, 0]


def _entropy(logps: Tensor) -> Tensor:
    return -(logps.exp() * logps).sum(-1)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) -> (B, T), zero outside the mask."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _default_chunk(head: Head, device: torch.device, copies: int) -> int:
    """Rows of a chunk, given how many tensors of its size are alive at the peak."""
    return max(4, LIVE_ELEMENTS.get(device.type, LIVE_ELEMENTS["cuda"]) // (head.size * copies))


def _slices(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, max(count, 1), chunk)]


@dataclass(frozen=True)
class _Sizes:
    """Rows per chunk, the temperature, and how many of the statistics (the first ones) have a gradient."""

    chunk: int
    temperature: float
    differentiable: int


def _apply(hidden: Tensor, head: Head, statistics: Statistics, sizes: _Sizes) -> tuple[Tensor, ...]:
    return _ChunkedHead.apply(hidden, head.weight, head.bias, head, statistics, sizes)


class _ChunkedHead(torch.autograd.Function):
    """Statistics of the logits, chunk by chunk; the backward pass builds each chunk's graph anew and drops it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, statistics: Statistics, sizes: _Sizes
    ) -> tuple[Tensor, ...]:
        """Statistics of all positions, (N,) or (N, K) each; `weight` and `bias` are those of `head`."""
        ctx.save_for_backward(hidden, weight, bias)  # refuses a backward pass after the weights have changed
        ctx.head, ctx.statistics, ctx.sizes = head, statistics, sizes
        ctx.set_materialize_grads(False)
        with torch.autocast(hidden.device.type, enabled=False):
            parts = [
                statistics(head.finish(head.linear(hidden[rows]), sizes.temperature), rows)
                for rows in _slices(len(hidden), sizes.chunk)
            ]
        results = tuple(torch.cat(column) for column in zip(*parts))
        ctx.mark_non_differentiable(*results[sizes.differentiable :])
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients for hidden states, weight and bias from those of the statistics."""
        hidden, weight, bias = ctx.saved_tensors
        head: Head = ctx.head
        given = {i: gradient for i, gradient in enumerate(gradients) if gradient is not None}
        # Chunks add up in float32 even where the weights are bf16.
        wide = torch.promote_types(weight.dtype, torch.float32)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None
        for rows in _slices(len(hidden), ctx.sizes.chunk):
            with torch.autocast(hidden.device.type, enabled=False):
                product = head.linear(hidden[rows]).requires_grad_()
                with torch.enable_grad():
                    results = ctx.statistics(head.finish(product, ctx.sizes.temperature), rows)
                    (to_product,) = torch.autograd.grad(
                        [results[i] for i in given], product, [gradient[rows] for gradient in given.values()]
                    )
                if to_hidden is not None:
                    torch.mm(to_product, head.weight[: head.size].to(hidden.dtype), out=to_hidden[rows])
                if to_weight is not None:
                    if to_product.dtype == wide:
                        to_weight[: head.size].addmm_(to_product.T, hidden[rows])
                    else:
                        to_weight[: head.size] += to_product.T @ hidden[rows]
                if to_bias is not None:
                    to_bias[: head.size] += to_product.sum(0)
        cast = [None if t is None else t.to(weight.dtype) for t in (to_weight, to_bias)]
        return to_hidden, *cast, None, None, None
