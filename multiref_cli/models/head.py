"""The output head applied chunk by chunk, and what is taken from a chunk of logits, with gradients written by hand.

Memory traffic over the vocabulary is what a head costs: every operation here that reads or writes a tensor (C, V) is
counted by tests/bench/bench_head.py. Nothing here waits for the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.models.decoder import Head
from multiref_cli.objectives.divergence import kind_of, total, weighted
from multiref_cli.objectives.mixing import mean_of_rows, mix_factor


class Statistics(Protocol):
    """What is wanted of the logits at N positions, some rows at a time."""

    def values(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        """(C, V) logits of some rows -> results of C rows each."""

    def gradient(self, logits: Tensor, rows: slice, given: Mapping[int, Tensor]) -> Tensor:
        """(C, V) gradient in the logits, from gradients (C,) of the results by their number; others have none."""


@dataclass(frozen=True)
class Sizes:
    """Rows per chunk, the temperature, and how many of the results (the first ones) have a gradient."""

    chunk: int
    temperature: float
    differentiable: int


@dataclass(frozen=True)
class Sampled:
    """The log-probability of each target, (N,), and the entropy on request, (N,)."""

    targets: Tensor
    entropy: bool

    def values(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        """Log-probabilities, and the entropies."""
        if not self.entropy:
            return (_logps(logits, self.targets[rows]),)
        logps = logits.log_softmax(-1)
        return pick(logps, self.targets[rows]), _entropy(logps, logps.exp())

    def gradient(self, logits: Tensor, rows: slice, given: Mapping[int, Tensor]) -> Tensor:
        """By autograd, of the results alone that have a gradient."""
        logits = logits.detach().requires_grad_()
        with torch.enable_grad():
            if 1 not in given:
                found = {0: _logps(logits, self.targets[rows])}
            else:
                logps = logits.log_softmax(-1)
                found = {0: pick(logps, self.targets[rows]), 1: -(logps.exp() * logps).sum(-1)}
            (gradient,) = torch.autograd.grad([found[i] for i in given], logits, list(given.values()))
        return gradient


@dataclass(frozen=True)
class Exact:
    """Log-probability, divergence from the mixed references and entropy on request, (N,) each; then without gradient
    the references' log-probabilities (N, K) and the terms' log F (N, R).

    The gradient in the logits z of sum_v D(p || q), q = softmax(z), is w - q sum_v w with w = q s(log q - log p), s the
    divergence's score; the entropy's is that of -q log q in place of w, the log-probability's is one-hot - q.

    Attributes:
        targets: (N,) token ids.
        references: head and hidden states (N, H) of each of K.
        terms: R summands over them.
        temperature: of the references' logits.
        normalized: see `logprobs.token_divergence`.
        entropy: whether it is wanted.
    """

    targets: Tensor
    references: Sequence[tuple[Head, Tensor]]
    terms: tuple[Term, ...]
    temperature: float
    normalized: bool
    entropy: bool

    def values(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        """Every result at some rows."""
        targets, log_q = self.targets[rows], logits.log_softmax(-1)
        del logits
        q, references = log_q.exp(), reference_rows(self.references, rows, self.temperature)
        found = [self._divergence(term, references, q, log_q) for term in self.terms]
        divergence = total(value for value, _ in found)
        entropies = (_entropy(log_q, q),) if self.entropy else ()
        picked = torch.stack([pick(one, targets) for one in references], -1)
        return pick(log_q, targets), divergence, *entropies, picked, torch.stack([log_f for _, log_f in found], -1)

    def gradient(self, logits: Tensor, rows: slice, given: Mapping[int, Tensor]) -> Tensor:
        """By hand; see the class."""
        log_q = logits.log_softmax(-1)
        del logits
        q, pulls = log_q.exp(), []
        if 1 in given:
            references = reference_rows(self.references, rows, self.temperature)
            pulls = [(self._pull(term, references, q, log_q), term.weight * given[1]) for term in self.terms]
            del references
        if 2 in given:
            pulls.append((log_q * q, -given[2]))
        chosen = given[0] if 0 in given else q.new_zeros(q.shape[0])
        if not pulls:
            return q.mul_(-chosen[:, None]).scatter_add_(1, self.targets[rows, None], chosen[:, None])
        (gradient, factor), *others = pulls
        gradient.mul_(factor[:, None])
        for pull, factor in others:
            gradient.addcmul_(pull, factor[:, None])
        gradient.addcmul_(q, -(gradient.sum(-1) + chosen)[:, None])
        return gradient.scatter_add_(1, self.targets[rows, None], chosen[:, None])

    def _divergence(self, term: Term, references: Sequence[Tensor], q: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """One term's divergence (C,) and the log F (C,) of its mixed reference."""
        mix, kind = term.mix, kind_of(term.score)
        mixed = mean_of_rows(references, mix.weights, mix.order)
        if normalized_already(mix):
            found, log_f = mixed, q.new_zeros(q.shape[0])
        else:
            found = mixed.log_softmax(-1)
            largest, place = mixed.max(-1)
            log_f = largest - pick(found, place)
        if self.normalized:
            value = mix_factor(term, log_f) * kind.of_rows(q, log_q, found)
        elif term.score == 0:
            value = kind.of_rows(q, log_q, found) - log_f
        elif mix.order == term.score or isinstance(term.score, str):
            pairs = [(weight, one) for weight, one in zip(mix.weights, references) if weight != 0]
            value = total(weighted(weight, kind.of_rows(q, log_q, one)) for weight, one in pairs)
        else:
            value = kind.of_rows(q, log_q, mixed)
        return weighted(term.weight, value), log_f

    def _pull(self, term: Term, references: Sequence[Tensor], q: Tensor, log_q: Tensor) -> Tensor:
        """(C, V) q s(log q - log M), up to a multiple of q.

        Dividing M by F moves s_0 by a constant, and F^A s_A(log q - log M / F) is s_A(log q - log M) and a constant:
        only where the orders of mean and score differ is it to be done.
        """
        mixed = mean_of_rows(references, term.mix.weights, term.mix.order)
        indifferent = term.score in (0, term.mix.order) or normalized_already(term.mix)
        if self.normalized and not indifferent:
            mixed = mixed.log_softmax(-1)
        return kind_of(term.score).weighted_score(q, log_q, mixed)


def normalized_already(mix: Mix) -> bool:
    """Whether the mean is a distribution as it is: of one reference, or arithmetic."""
    return mix.only is not None or mix.order == 1


@torch.no_grad()
def reference_rows(references: Sequence[tuple[Head, Tensor]], rows: slice, temperature: float) -> list[Tensor]:
    """K tensors (C, V) of normalized log-probabilities of the references."""
    return [head.finish(head.linear(hidden[rows]), temperature).log_softmax(-1) for head, hidden in references]


def pick(logps: Tensor, targets: Tensor) -> Tensor:
    """(C, V) -> (C,) at the targets."""
    return logps.gather(-1, targets[:, None])[:, 0]


def slices(count: int, chunk: int) -> list[slice]:
    """`count` rows in pieces of `chunk`, at least one piece."""
    return [slice(start, min(start + chunk, count)) for start in range(0, max(count, 1), chunk)]


def over_chunks(hidden: Tensor, head: Head, statistics: Statistics, sizes: Sizes) -> tuple[Tensor, ...]:
    """Statistics of the logits of all positions.

    Args:
        hidden: (N, H) hidden states, differentiable.
        head: its weights and bias get gradients too.
        statistics: what is wanted.
        sizes: of the chunks.

    Returns:
        Results of N rows each, the first `sizes.differentiable` of them differentiable.
    """
    return _ChunkedHead.apply(hidden, head.weight, head.bias, head, statistics, sizes)


def _logps(logits: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(logits, targets, reduction="none")


def _entropy(log_q: Tensor, q: Tensor) -> Tensor:
    return -(q * log_q).sum(-1)


class _ChunkedHead(torch.autograd.Function):
    """Statistics chunk by chunk; the backward pass computes each chunk's logits again and drops them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, statistics: Statistics, sizes: Sizes
    ) -> tuple[Tensor, ...]:
        """Statistics of all positions, (N,) or (N, K) each; `weight` and `bias` are those of `head`."""
        ctx.save_for_backward(hidden, weight, bias)  # refuses a backward pass after the weights have changed
        ctx.head, ctx.statistics, ctx.sizes = head, statistics, sizes
        ctx.set_materialize_grads(False)
        with torch.autocast(hidden.device.type, enabled=False):
            parts = [
                statistics.values(head.finish(head.linear(hidden[rows]), sizes.temperature), rows)
                for rows in slices(len(hidden), sizes.chunk)
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
        for rows in slices(len(hidden), ctx.sizes.chunk):
            with torch.autocast(hidden.device.type, enabled=False):
                to_product = _to_product(ctx, hidden[rows], rows, {i: one[rows] for i, one in given.items()})
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


def _to_product(ctx: Any, hidden: Tensor, rows: slice, given: dict[int, Tensor]) -> Tensor:
    """(C, V) gradient in the head's matrix product, of its type."""
    if ctx.head.plain(hidden.dtype, ctx.sizes.temperature):
        return ctx.statistics.gradient(ctx.head.linear(hidden), rows, given)
    product = ctx.head.linear(hidden).requires_grad_()
    with torch.enable_grad():
        logits = ctx.head.finish(product, ctx.sizes.temperature)
    gradient = ctx.statistics.gradient(logits.detach(), rows, given)
    (found,) = torch.autograd.grad(logits, product, gradient)
    return found
