"""Rollouts from the very model in training: prompt computed once a group, static KV memory, own sampler."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from multiref_cli.errors import RequestError
from multiref_cli.models.precision import product_type
from multiref_cli.objectives.aggregate import widest
from multiref_cli.rollouts import lean, static_cache
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.rollouts.sampling import draw, uniforms
from multiref_cli.sharding import whole
from multiref_cli.types import LanguageModel

# Rows leave the batch together, once this share of them is left: copying KV memory for every single one costs more.
_KEEP_SHARE = 0.75
# On a GPU, asking whether rows have finished waits for the device, so it is asked only every so many tokens.
_GPU_CHECK_EVERY = 8


class Session(Protocol):
    """A batch of groups being decoded."""

    logits: Tensor

    def step(self, tokens: Tensor) -> Tensor:
        """Takes in the newest token (S,) of each row, returns the logits (S, V) of the next one."""

    def keep(self, rows: Tensor) -> None:
        """Leaves only these rows (ascending indices) in the batch."""


# Prompts, group size, new tokens -> their groups, ready to be decoded.
Opener = Callable[[Sequence[Sequence[int]], int, int], Session]


class TransformersEngine:
    """Samples from a transformers model in place.

    Llama, Qwen2, Qwen3 and Seed-OSS models are decoded by a lean plain-torch decoder over the same weights; other
    decoders go through their own `forward` with a static cache. Float rounding aside, a completion does not depend on
    what else is in the batch.
    """

    def __init__(
        self,
        model: LanguageModel,
        pad_id: int,
        batch_size: int = 256,
        vocabulary: int | None = None,
        lean_decoder: bool = True,
        cuda_graphs: bool = False,
    ):
        """Wraps a model; nothing is copied.

        Args:
            model: a decoder-only transformers model; its weights are read anew at every `generate`.
            pad_id: any valid token id, used where nothing is read.
            batch_size: most sequences decoded at once.
            vocabulary: ids of the tokenizer, where the head is padded beyond them; the rest is never sampled.
            lean_decoder: use the plain-torch decoder where it fits.
            cuda_graphs: replay each decoding step as a CUDA graph (lean decoder on an NVIDIA GPU only).

        Raises:
            RequestError: `cuda_graphs` without the lean decoder or without an NVIDIA GPU.
        """
        self.model, self.pad_id, self.batch_size, self.vocabulary = model, pad_id, batch_size, vocabulary
        self.lean = lean_decoder and lean.supports(model)
        self.cuda_graphs = cuda_graphs
        if cuda_graphs and not (self.lean and next(model.parameters()).is_cuda):
            raise RequestError(
                "rollout.options.cuda_graphs=true needs an NVIDIA GPU and a Llama, Qwen2 or Qwen3 policy without an "
                "adapter: set it to false."
            )

    @property
    def exact_logps(self) -> bool:
        """Whether a completion's log-probs are the trainer's own, rounding of float32 aside."""
        return product_type(next(self.model.parameters())) in (torch.float32, torch.float64)

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, seeds: list[int]
    ) -> list[list[Completion]]:
        """Draws `group_size` completions of each prompt; see `Engine.generate`.

        Where the model is sharded, every process of the run calls this, with no prompts if it has none.

        Raises:
            RequestError: an empty prompt, or one that leaves no room below the model's position limit.
        """
        self.check(prompts, sampling)
        training = self.model.training
        self.model.eval()
        try:
            with whole(self.model), torch.inference_mode():
                chunks, opener = self.chunks(prompts, group_size), self.opener()
                with self._own_types():
                    return decode_chunks(chunks, prompts, group_size, sampling, seeds, opener, self.vocabulary)
        finally:
            self.model.train(training)

    def _own_types(self) -> AbstractContextManager[None]:
        """Without autocast for the lean decoder, whose weights are in its type already."""
        kind = next(self.model.parameters()).device.type
        return torch.autocast(kind, enabled=False) if self.lean else nullcontext()

    def opener(self) -> Opener:
        """A function (prompts, group size, new tokens) -> session, over the weights as they are now."""
        if self.lean:
            weights = lean.Weights(self.model)
            return lambda prompts, group_size, new_tokens: lean.LeanSession(
                weights, prompts, group_size, new_tokens, self.pad_id, self.cuda_graphs
            )
        return lambda prompts, group_size, new_tokens: static_cache.StaticCacheSession(
            self.model, prompts, group_size, new_tokens, self.pad_id
        )

    def chunks(self, prompts: Sequence[Sequence[int]], group_size: int) -> list[list[int]]:
        """Prompts of similar length together, so that little is padded."""
        order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
        size = max(1, self.batch_size // group_size)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Refuse prompts that the model has no room for, with a RequestError."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise RequestError(f"Prompt {index} has no tokens: check the chat template and the data's columns.")
            if limit and len(prompt) + sampling.max_new_tokens > limit:
                raise RequestError(
                    f"A prompt of {len(prompt)} tokens and {sampling.max_new_tokens} new ones pass the model's limit "
                    f"of {limit} positions: lower rollout.max_new_tokens or data.max_prompt_tokens."
                )


def decode_chunks(
    chunks: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    group_size: int,
    sampling: Sampling,
    seeds: Sequence[int],
    open_session: Opener,
    vocabulary: int | None,
) -> list[list[Completion]]:
    """`group_size` completions of each prompt, chunk after chunk of prompts; [P][G] in the order of `prompts`."""
    results: list[list[Completion]] = [[] for _ in prompts]
    for chunk in chunks:
        session = open_session([prompts[p] for p in chunk], group_size, sampling.max_new_tokens)
        numbers = torch.cat([uniforms(seeds[p], group_size, sampling.max_new_tokens) for p in chunk])
        completions = decode(session, numbers, sampling, vocabulary)
        for position, p in enumerate(chunk):
            results[p] = completions[position * group_size : (position + 1) * group_size]
    return results


def decode(session: Session, numbers: Tensor, sampling: Sampling, vocabulary: int | None) -> list[Completion]:
    """Runs a session to its end; `numbers` (S, T) are the uniforms of its rows."""
    device = session.logits.device
    rows_total, length = numbers.shape
    numbers = numbers.to(device, widest(device))
    is_end = torch.zeros(session.logits.shape[-1], dtype=torch.bool, device=device)
    is_end[[i for i in sampling.end_ids if i < len(is_end)]] = True
    ids = torch.zeros(rows_total, length, dtype=torch.long, device=device)
    logps = torch.zeros(rows_total, length, device=device)
    lengths = torch.full((rows_total,), length, device=device)
    finished = torch.zeros(rows_total, dtype=torch.bool, device=device)
    # Which rows are in the batch: all of them, as a slice (cheap to index with), until some have left.
    rows: slice | Tensor = slice(None)
    check_every = 1 if device.type == "cpu" else _GPU_CHECK_EVERY
    logits = session.logits
    for t in range(length):
        tokens, logps[rows, t] = draw(logits[:, :vocabulary], numbers[rows, t], sampling)
        ids[rows, t] = tokens
        ending = is_end[tokens] & ~finished[rows]
        lengths[rows] = torch.where(ending, t + 1, lengths[rows])
        finished[rows] |= ending
        if t + 1 == length:
            break
        if (t + 1) % check_every == 0:
            alive = torch.nonzero(~finished[rows])[:, 0]
            if not len(alive):
                break
            if len(alive) <= _KEEP_SHARE * len(tokens):
                session.keep(alive)
                rows = alive if isinstance(rows, slice) else rows[alive]
                tokens = tokens[alive]
        logits = session.step(tokens)
    fields = zip(ids.tolist(), logps.tolist(), lengths.tolist(), finished.tolist())
    return [Completion(i[:n], p[:n], f) for i, p, n, f in fields]
