"""Token rows for the model: prompts shared by their responses, right-padded, bucketed by length.

A row is `[prompt | response 1 | ... | response G]`. Every response sees the prompt and itself, its positions go on
after the prompt, and its first token is predicted at the last prompt token; the last token of a response is only a
target, so it is not computed at all. A preference pair is G = 2, a rollout group G = 8, a single sequence G = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# Token ids as they come from a tokenizer, or as a slice of a stored array.
Ids = Sequence[int] | np.ndarray

# Attention of a masked row over that of a plain causal row of the same length, whose kernel skips the upper triangle
# (tests/bench/bench_sharing.py compares the rule with measured times on CPU).
MASKED_ATTENTION_COST = 2.0
# Padding that a batch of some size may hold, as a part of its real tokens; a smaller batch costs more than its padding.
PADDING, SMALL_BATCH = 0.15, 512


@dataclass(frozen=True)
class Packed:
    """Rows for one forward pass, and where in them each completion token is predicted.

    Attributes:
        input_ids: (R, L) token ids, right-padded.
        position_ids: (R, L) positions, restarting after the prompt for every response that shares it.
        attention_mask: (R, 1, L, L) bool, true where a position is seen; None where plain causal attention is right.
        predictor: (N,) flat index into (R * L) of the hidden state that predicts each completion token.
        targets: (N,) ids of the completion tokens, sequence by sequence.
        mask: (B, T) bool, true at completion tokens; its N true entries in row-major order are `targets`.
        real_tokens: tokens computed, padding left out.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    predictor: Tensor
    targets: Tensor
    mask: Tensor
    real_tokens: int

    @property
    def padded_tokens(self) -> int:
        """R * L, what the model computes, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> "Packed":
        """The same rows on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            attention_mask=None if self.attention_mask is None else self.attention_mask.to(device),
            predictor=self.predictor.to(device),
            targets=self.targets.to(device),
            mask=self.mask.to(device),
        )


def pack(
    prompts: Sequence[Ids],
    completions: Sequence[Sequence[Ids]],
    pad_id: int,
    share_prompt: bool,
) -> Packed:
    """Lays out prompts and their completions for one forward pass.

    Args:
        prompts: P prompts of token ids, none of them empty.
        completions: for each prompt its responses' token ids; sequences are numbered prompt-major.
        pad_id: any valid id; padding is found by length, never by this id.
        share_prompt: one row per prompt with all its responses, else one row per sequence.

    Returns:
        The rows and the places of the completion tokens in them.

    Raises:
        ValueError: an empty prompt, which has no position to predict a first token from.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: its first completion token has no position to be predicted from")
    if share_prompt:
        rows = list(zip(prompts, completions, strict=True))
    else:
        rows = [(prompt, [one]) for prompt, group in zip(prompts, completions, strict=True) for one in group]
    lengths = [row_length(len(prompt), [len(one) for one in group], True) for prompt, group in rows]
    width = max(lengths)
    # numpy: a micro-batch has hundreds of short pieces, and torch takes several times as long over each.
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    position_ids = np.tile(np.arange(width), (len(rows), 1))
    segment = np.full((len(rows), width), -1, dtype=np.int64)
    predictor, targets, sizes = [], [], []
    for index, (prompt, group) in enumerate(rows):
        start = len(prompt)
        input_ids[index, :start] = prompt
        segment[index, :start] = 0
        for number, one in enumerate(group, 1):
            ids = np.asarray(one, dtype=np.int64)
            stop = start + max(len(ids) - 1, 0)
            input_ids[index, start:stop] = ids[:-1]
            position_ids[index, start:stop] = np.arange(len(prompt), len(prompt) + stop - start)
            segment[index, start:stop] = number
            places = np.arange(start - 1, stop)
            places[0] = len(prompt) - 1
            predictor.append(places[: len(ids)] + index * width)
            targets.append(ids)
            sizes.append(len(ids))
            start = stop
        # Padding at a position that no sequence has would be beyond a model's last one, or change the frequencies of
        # rotary embeddings that follow from the largest position.
        position_ids[index, start:] = 0
    plain = all(len(group) <= 1 for _, group in rows)
    counts = torch.tensor(sizes)
    return Packed(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=None if plain else _shared_prefix_mask(torch.from_numpy(segment)),
        predictor=torch.from_numpy(np.concatenate(predictor)),
        targets=torch.from_numpy(np.concatenate(targets)),
        mask=torch.arange(int(counts.max()))[None, :] < counts[:, None],
        real_tokens=sum(lengths),
    )


def sequences_of(rows: Packed) -> list[tuple[list[int], list[int]]]:
    """What `pack` laid out: prompt and completion of each of the B sequences; both empty for an empty completion."""
    found, start, width = [], 0, rows.input_ids.shape[1]
    for count in rows.mask.sum(1).tolist():
        if count:
            row, last = divmod(int(rows.predictor[start]), width)
            found.append((rows.input_ids[row, : last + 1].tolist(), rows.targets[start : start + count].tolist()))
        else:
            found.append(([], []))
        start += count
    return found


def _shared_prefix_mask(segment: Tensor) -> Tensor:
    """(R, L) segment numbers (0 prompt, 1.. responses, -1 padding) -> (R, 1, L, L) bool; no row is empty."""
    same = segment[:, :, None] == segment[:, None, :]
    prompt = (segment == 0)[:, None, :]
    return ((same | prompt).tril())[:, None]


def row_length(prompt_length: int, completion_lengths: Sequence[int], share_prompt: bool) -> int:
    """Tokens in the row of one prompt (shared), or in the longest of its rows (one row per response)."""
    inputs = [max(length - 1, 0) for length in completion_lengths]
    return prompt_length + (sum(inputs) if share_prompt else max(inputs, default=0))


def sharing_pays(
    prompt_lengths: Sequence[int], completion_lengths: Sequence[Sequence[int]], hidden_size: int | None
) -> bool:
    """Whether one row per prompt costs less than one row per sequence.

    Per layer, a token costs about 24 H^2 operations in the linear maps and 4 H for every position it attends to: 6 H
    positions weigh as much as one token. Sharing saves prompt tokens; it pays with attention over the whole row, where
    the other responses are masked but still computed.

    Args:
        prompt_lengths: (P,) tokens.
        completion_lengths: for each prompt the tokens of its responses.
        hidden_size: H of the model; None for one that cannot share prompts (`decoder.sharing_width`).
    """
    if hidden_size is None:
        return False
    shared = unshared = 0.0
    for prompt, group in zip(prompt_lengths, completion_lengths, strict=True):
        row = row_length(prompt, group, True)
        shared += row * 6 * hidden_size + (MASKED_ATTENTION_COST if len(group) > 1 else 1.0) * row * row / 2
        for length in group:
            row = row_length(prompt, [length], True)
            unshared += row * 6 * hidden_size + row * row / 2
    return shared < unshared


def micro_batches(lengths: Sequence[int], max_tokens: int, rows: int = 1, processes: int = 1) -> list[list[int]]:
    """Splits items into batches of similar length, so that little is spent on padding; deterministic.

    Args:
        lengths: tokens in the longest row of each item (a prompt with its responses).
        max_tokens: padded tokens that one batch may hold; an item larger than that has a batch of its own.
        rows: rows per item: 1 where responses share their prompt's row, else the group size.
        processes: that share the batches; none of these is larger than one process's part of all tokens.

    Returns:
        Lists of item numbers, longest first; every item is in exactly one of them.
    """
    if processes > 1:
        max_tokens = min(max_tokens, -(-rows * sum(lengths) // processes))
    batches: list[list[int]] = []
    real = 0
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        real += rows * lengths[item]
        # The first item of a batch is its longest, so it fixes the padded width.
        padded = (len(batches[-1]) + 1) * rows * lengths[batches[-1][0]] if batches else 0
        if batches and padded <= max_tokens and padded <= max(SMALL_BATCH, (1 + PADDING) * real):
            batches[-1].append(item)
        else:
            batches.append([item])
            real = rows * lengths[item]
    return batches
