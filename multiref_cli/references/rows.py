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
from multiref_cli.parallel import ALONE, Parallel
from multiref_cli.references.parts import Parts
from multiref_cli.sharding import gathered

# Responses that share one row at most: attention grows with the square of the row.
_GROUP = 8
# Tokens of a pass that are kept together: what a kill costs, a second on a GPU, a minute on a CPU.
PART_TOKENS = 2**16
_ARRAYS = ("prompts", "prompt_offsets", "prompt_of", "completions", "offsets")


def _nothing(rows: Packed) -> None:
    """Nothing is done ahead."""


@dataclass(frozen=True)
class Work:
    """What a pass computes of rows, and who is asked.

    Attributes:
        models: that are asked, on one device; all must take shared prompts for prompts to be shared. Empty: a server.
        compute: rows, and the (n,) places of their tokens in `completions` -> (B, T) tensors.
        expect: told of rows some time before `compute` gets them.
        confirm: called by the main process before a part is kept; raises where it must not be.
        widths: `sharing_width` of models that are not at hand, where batches are to be as if they were.
    """

    models: Sequence[Any]
    compute: Callable[[Packed, np.ndarray], Sequence[torch.Tensor]]
    expect: Callable[[Packed], None] = _nothing
    confirm: Callable[[], None] = lambda: None
    widths: Sequence[int | None] = ()


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
        work: Work,
        micro_tokens: int,
        report: Callable[[int, int, float], None],
        numbers: Sequence[int] | None = None,
        kept: Callable[[str], Parts] | None = None,
        parallel: Parallel = ALONE,
    ) -> list[np.ndarray]:
        """One pass over the responses, prompts shared where that pays, batches of similar length.

        Args:
            work: what is computed, and who is asked.
            micro_tokens: padded tokens per pass.
            report: told tokens done, tokens in all, tokens per second.
            numbers: responses to do; None is all.
            kept: how the pass is divided, by sha256 -> its finished parts, which are not computed again and to which
                those of a long pass are added; None keeps nothing.
            parallel: the processes that share the pass; all of them have the whole result.

        Returns:
            For each tensor of `work.compute` one flat float32 array at the places of `completions`, 0 where not done.
        """
        groups = self._groups(range(len(self.prompt_of)) if numbers is None else numbers)
        inner = [model.model if isinstance(model, Adapted) else model for model in work.models]
        widths = list(work.widths) or [sharing_width(model) for model in inner] or [None]
        if None in widths or not sharing_pays(*self._lengths(groups), widths[0]):
            groups = [[i] for group in groups for i in group]
        rows = [row_length(prompt, responses, True) for prompt, responses in zip(*self._lengths(groups))]
        batches = micro_batches(rows, micro_tokens)
        pieces = _pieces(batches, rows)
        parts = kept(hashlib.sha256(str([pieces, groups]).encode()).hexdigest()) if kept and len(pieces) > 1 else None
        found = list(parts.finished())[: len(pieces)] if parts and parallel.main else []
        first = parallel.once(lambda: len(found))
        device, done = next(inner[0].parameters()).device if inner else torch.device("cpu"), 0
        start, asked = time.monotonic(), first
        total, before, results = sum(rows), 0, np.zeros((0, 0), np.float32)
        for number, piece in enumerate(pieces):
            end, own = done + sum(rows[i] for batch in piece for i in batch), []
            if number < first:
                values, before = found[number] if parallel.main else None, end
            else:
                while (
                    not inner and not work.widths and asked < min(number + 2, len(pieces))
                ):  # a server goes on while the next piece is waited for
                    for batch in parallel.share(pieces[asked]):
                        work.expect(self._packed([groups[i] for i in batch]))
                    asked += 1
                for batch, counts in parallel.in_step(piece):
                    with gathered(*inner):
                        computed = self._computed([groups[i] for i in batch], work.compute, device)
                    own += [computed] if counts else []
                    done = min(end, done + parallel.size * sum(rows[i] for i in batch))  # the others are as far
                    report(done, total, (done - before) / max(time.monotonic() - start, 1e-9))
                values = np.concatenate(parallel.woven(own), 1)
                parallel.once(work.confirm)
                if parts and parallel.main and number + 1 < len(pieces):
                    parts.write(number, values)
            if values is not None:
                results = results if len(results) else np.zeros((len(values), len(self.completions)), np.float32)
                results[:, self._places([[groups[i] for i in batch] for batch in piece])] = values
            done = end
        return list(results)

    def _computed(
        self,
        groups: Sequence[Sequence[int]],
        compute: Callable[[Packed, np.ndarray], Sequence[torch.Tensor]],
        device: torch.device,
    ) -> np.ndarray:
        """(R, n) what `compute` says of the n tokens of some responses, group by group."""
        packed = self._packed(groups)
        tensors = compute(packed.to(device), self._places([groups]))
        return np.stack([tensor.float().cpu()[packed.mask].numpy() for tensor in tensors])

    def _packed(self, groups: Sequence[Sequence[int]]) -> Packed:
        completions = [[self.completion(i) for i in group] for group in groups]
        return pack([self.prompt(group[0]) for group in groups], completions, 0, True)

    def _places(self, batches: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
        """Where the tokens of some responses lie in the flat arrays."""
        numbers = [i for groups in batches for group in groups for i in group]
        return np.concatenate([np.arange(*self.offsets[i : i + 2]) for i in numbers])

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


def _pieces(batches: Sequence[Sequence[int]], rows: Sequence[int]) -> list[list[Sequence[int]]]:
    """Consecutive batches together, of at least PART_TOKENS tokens each but for the last."""
    pieces: list[list[Sequence[int]]] = []
    size = PART_TOKENS
    for batch in batches:
        if size >= PART_TOKENS:
            pieces.append([])
            size = 0
        pieces[-1].append(batch)
        size += sum(rows[i] for i in batch)
    return pieces


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
