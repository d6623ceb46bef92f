"""The divergence at the policy's likeliest tokens: k columns of the vocabulary in place of all of it.

The logits of a chunk are reduced to their logsumexp and k + 1 columns, and only these are kept. References are asked
once, in the forward pass; what the backward pass computes again is the policy's own head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multiref_cli.config.regularizer import Term
from multiref_cli.models.decoder import head_of, hidden_states
from multiref_cli.models.head import Sizes, over_chunks
from multiref_cli.models.logprobs import TokenDivergence, default_chunk, reference_columns, reference_heads, spread
from multiref_cli.models.packing import Packed
from multiref_cli.objectives.divergence import amari_excess, total, weighted
from multiref_cli.objectives.mixing import log_mixed, mix_factor
from multiref_cli.objectives.penalty import topk_divergence
from multiref_cli.types import LanguageModel

# Tensors of a chunk's size that are alive at the peak, counted by tests/models/test_columns.py.
COPIES = 5


@dataclass(frozen=True)
class Likeliest:
    """Log-probabilities (N, k + 1) of the k likeliest tokens and of each target; then without gradient their ids, and
    the entropy (N,) on request.

    The gradient in the logits of sum_c g_c log q_c is the g_c at their columns, less q sum_c g_c.

    Attributes:
        targets: (N,) token ids.
        count: k, at most the vocabulary's size.
        entropy: whether it is wanted.
        chosen: first row of a chunk -> its columns, which the backward pass needs again.
    """

    targets: Tensor
    count: int
    entropy: bool
    chosen: dict[int, Tensor] = field(default_factory=dict)

    def values(self, logits: Tensor, rows: slice) -> tuple[Tensor, ...]:
        """Every result at some rows."""
        columns = torch.cat([logits.topk(self.count, -1).indices, self.targets[rows, None]], -1)
        self.chosen[rows.start] = columns
        log_sums = logits.logsumexp(-1, keepdim=True)
        picked = logits.gather(-1, columns) - log_sums
        if not self.entropy:
            return picked, columns
        mean = ((logits - log_sums).exp_() * logits).sum(-1)
        return picked, columns, log_sums[:, 0] - mean

    def gradient(self, logits: Tensor, rows: slice, given: Mapping[int, Tensor]) -> Tensor:
        """By hand; see the class."""
        pull = logits.softmax(-1).mul_(-given[0].sum(-1, keepdim=True))
        return pull.scatter_add_(1, self.chosen[rows.start], given[0])


def topk_token_divergence(
    model: LanguageModel,
    references: Sequence[Any],
    terms: Sequence[Term],
    packed: Packed,
    count: int,
    old_logps: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    vocabulary: int | None = None,
    normalized: bool = True,
) -> TokenDivergence:
    """An unbiased estimate of `logprobs.token_divergence`, in value and gradient, for completions that pi sampled.

    Exact over the policy's `count` likeliest tokens of each state, the sampled token where it is none of them.

    Args:
        model: the policy.
        references: K frozen models over the same ids; one whose weight is 0 in every term must not be among them.
        terms: R summands over the K references.
        packed: rows on the models' device.
        count: k, 0 or more; from the vocabulary's size on nothing is sampled.
        old_logps: (B, T) of the policy that sampled; None: this one.
        temperature: logits of policy and references are divided by it.
        entropy: also the policy's entropy, without a gradient.
        vocabulary: ids of the tokenizer, shared by all.
        normalized: whether the mixed reference is divided by its sum over the vocabulary.

    Returns:
        Results of shape (B, T), references or terms first where there are several of them.
    """
    head = head_of(model, vocabulary)
    likeliest = Likeliest(packed.targets, min(count, head.size), entropy)
    sizes = Sizes(default_chunk(head, packed.targets.device, COPIES), temperature, 1)
    logps, columns, *entropies = over_chunks(hidden_states(model, packed), head, likeliest, sizes)
    heads = reference_heads(references, packed, vocabulary)
    reference_logps, log_f = reference_columns(heads, columns, [term.mix for term in terms], temperature)
    picked = logps[:, -1]
    old = picked.detach() if old_logps is None else old_logps[packed.mask].to(picked)
    ratios = torch.exp(picked - old)
    inside = (columns[:, :-1] == packed.targets[:, None]).any(-1)
    parts = [_term(term, reference_logps, one, logps, inside, ratios, normalized) for term, one in zip(terms, log_f)]
    return TokenDivergence(
        logps=spread(picked, packed.mask),
        divergence=spread(total(parts), packed.mask),
        entropy=spread(entropies[0], packed.mask) if entropy else None,
        reference_logps=torch.stack([spread(one, packed.mask) for one in reference_logps[..., -1]]),
        log_normalizers=torch.stack([spread(one, packed.mask) for one in log_f]),
    )


def _term(
    term: Term,
    reference_logps: Tensor,
    log_f: Tensor,
    logps: Tensor,
    inside: Tensor,
    ratios: Tensor,
    normalized: bool,
) -> Tensor:
    """(K, N, k + 1), (N,), (N, k + 1) -> (N,) one term's estimate, as `token_divergence` has it."""
    if not normalized and term.mix.order == term.score:
        pairs = [(weight, one) for weight, one in zip(term.mix.weights, reference_logps) if weight != 0]
        found = [weighted(weight, topk_divergence(term.score, one, logps, inside, ratios)) for weight, one in pairs]
        return weighted(term.weight, total(found))
    mixed = log_mixed([term], reference_logps)[0]
    if normalized or isinstance(term.score, str):
        value = topk_divergence(term.score, mixed - log_f[:, None], logps, inside, ratios)
        return weighted(term.weight, mix_factor(term, log_f) * value)
    value = topk_divergence(term.score, mixed, logps, inside, ratios) + amari_excess(log_f, term.score)
    return weighted(term.weight, value)
