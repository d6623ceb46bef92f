"""Responses as flat arrays, grouped by prompt, and one pass of models over all of them."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from multiref_cli.models.decoder import Adapted, sharing_width
from multiref_cli.models.packing import Packed, micro_batches, pack, row_length, sharing_pays

# Responses that share one row at most: attention grows with the square of the row.
_GROUP = 8
_ARRAYS = ("prompts", "prompt_offsets", "prompt_of", "completions", "offsets")


@dataclass(frozen=True)
class ScoredRows:
    """N responses of P different prompts.

    Attributes:
        prompts: flat ids of the prompts, in the order of their first appearance.
        prompt_offsets: (P + 1,) where each begins.
        prompt_of: (N,) number of the prompt of each response.
        completions: flat ids of the responses.
        offsets: (N + 1,) where each begins.
    """

    prompts: np.ndarray
    prompt_offsets: np.ndarray
    prompt_of: np.ndarray
    completions: np.ndarray
    offsets: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The same as named arrays, to be stored."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @cached_property
    def sha256(self) -> str:
        """Of all ids, in order."""
        digest = hashlib.sha256()
        for values in self.arrays().values():
            digest.update(values.tobytes())
        return digest.hexdigest()

    def prompt(self, number: int) -> np.ndarray:
        """Ids of the prompt of one response."""
        start, stop = self.prompt_offsets[self.prompt_of[number] :][:2]
        return self.prompts[start:stop]

    def completion(self, number: int) -> np.ndarray:
        """Ids of one response."""
        return self.completions[self.offsets[number] : self.offsets[number + 1]]

    @torch.no_grad()
    def compute(
        self,
        models: Sequence[Any],
        compute: Callable[[Packed], Sequence[torch.Tensor]],
        micro_tokens: int,
        report: Callable[[int, int, float], None],
        numbers: Sequence[int] | None = None,
    ) -> list[np.ndarray]:
        """One pass over the responses, prompts shared where that pays, batches of similar length.

        Args:
            models: the models that `compute` asks; all must take shared prompts for prompts to be shared.
            compute: rows -> (B, T) tensors.
            micro_tokens: padded tokens per pass.
            report: told tokens done, tokens in all, tokens per second.
            numbers: responses to do; None is all.

        Returns:
            For each tensor of `compute` one flat float32 array at the places of `completions`, 0 where not done.
        """
        groups = self._groups(range(len(self.prompt_of)) if numbers is None else numbers)
        inner = [model.model if isinstance(model, Adapted) else model for model in models]
        widths = [sharing_width(model) for model in inner]
        if None in widths or not sharing_pays(*self._lengths(groups), widths[0]):
            groups = [[i] for group in groups for i in group]
        rows = [row_length(prompt, responses, True) for prompt, responses in zip(*self._lengths(groups))]
        device, done, start = next(inner[0].parameters()).device, 0, time.monotonic()
        results: list[np.ndarray] = []
        for batch in micro_batches(rows, micro_tokens):
            chosen = [groups[i] for i in batch]
            packed = pack(
                [self.prompt(group[0]) for group in chosen], [[self.completion(i) for i in g] for g in chosen], 0, True
            )
            tensors = compute(packed.to(device))
            results = results or [np.zeros(len(self.completions), np.float32) for _ in tensors]
            places = np.concatenate([np.arange(*self.offsets[i : i + 2]) for group in chosen for i in group])
            for result, tensor in zip(results, tensors):
                result[places] = tensor.float().cpu()[packed.mask].numpy()
            done += packed.real_tokens
            report(done, sum(rows), done / max(time.monotonic() - start, 1e-9))
        return results

    def _lengths(self, groups: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
        """Tokens of the prompt of every group, and of its responses."""
        prompts = [len(self.prompt(group[0])) for group in groups]
        return prompts, [[len(self.completion(i)) for i in group] for group in groups]

    def _groups(self, numbers: Iterable[int]) -> list[list[int]]:
        by_prompt: dict[int, list[list[int]]] = {}
        for number in numbers:
            groups = by_prompt.setdefault(int(self.prompt_of[number]), [[]])
            if len(groups[-1]) == _GROUP:
                groups.append([])
            groups[-1].append(number)
        return [group for groups in by_prompt.values() for group in groups]


def scored_rows(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> ScoredRows:
    """ScoredRows of (prompt ids, completion ids) pairs."""
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt, _ in sequences]
    return ScoredRows(
        prompts=np.array([i for prompt in numbers for i in prompt], dtype=np.int32),
        prompt_offsets=np.cumsum([0, *map(len, numbers)]).astype(np.int64),
        prompt_of=np.array(prompt_of, dtype=np.int32),
        completions=np.array([i for _, completion in sequences for i in completion], dtype=np.int32),
        offsets=np.cumsum([0, *(len(completion) for _, completion in sequences)]).astype(np.int64),
    )


def stored_rows(arrays: Mapping[str, np.ndarray]) -> ScoredRows:
    """ScoredRows as an entry keeps them, in memory."""
    return ScoredRows(**{name: np.array(arrays[name]) for name in _ARRAYS})
