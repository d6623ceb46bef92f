"""Decoding of any decoder-only transformers model through its own `forward` and a static cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from multiref_cli.errors import RequestError
from multiref_cli.types import LanguageModel

if TYPE_CHECKING:
    from transformers.cache_utils import StaticLayer


class StaticCacheSession:
    """One batch of groups: each prompt computed once, its cache then repeated for the group's rows."""

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], group_size: int, new_tokens: int, pad_id: int
    ):
        """Computes the prompts and sets `logits` (P * group_size, V) of the first new token.

        Args:
            model: a decoder-only transformers model whose layers keep keys and values.
            prompts: P lists of token ids.
            group_size: completions of each prompt.
            new_tokens: the most that will be decoded.
            pad_id: fills the left of shorter prompts; never attended to.

        Raises:
            RequestError: the model keeps a state that cannot be laid out statically.
        """
        from transformers import StaticCache
        from transformers.cache_utils import StaticLayer

        self.model, device = model, next(model.parameters()).device
        longest = max(len(p) for p in prompts)
        ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.length = longest
        self.mask = torch.zeros(len(prompts), longest + new_tokens, dtype=torch.long, device=device)
        self.mask[:, :longest] = torch.arange(longest, device=device) >= longest - lengths[:, None]
        self.cache = StaticCache(config=model.config, max_cache_len=longest + new_tokens)
        if not all(isinstance(layer, StaticLayer) for layer in self.cache.layers):
            raise RequestError(
                f"{type(model).__name__} keeps more than keys and values between tokens, which the transformers "
                "engine does not lay out: use rollout=vllm."
            )
        self.layers = cast("list[StaticLayer]", self.cache.layers)
        positions = (self.mask[:, :longest].cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(ids, positions)
        self.logits = logits.repeat_interleave(group_size, 0)
        self.mask = self.mask.repeat_interleave(group_size, 0)
        self.positions = lengths.repeat_interleave(group_size)
        for layer in self.layers:
            keys, values = _memory(layer)
            layer.keys, layer.values = keys.repeat_interleave(group_size, 0), values.repeat_interleave(group_size, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (S, V) of the token after `tokens` (S,)."""
        self.mask[:, self.length] = 1
        self.length += 1
        logits = self._forward(tokens[:, None], self.positions[:, None])
        self.positions = self.positions + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Leaves only these rows (ascending indices) in the batch."""
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        for layer in self.layers:
            keys, values = _memory(layer)
            layer.keys, layer.values = keys[rows], values[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self.mask[:, : self.length],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def _memory(layer: "StaticLayer") -> tuple[Tensor, Tensor]:
    """Keys and values of a layer, which the first forward pass has laid out."""
    assert layer.keys is not None and layer.values is not None
    return layer.keys, layer.values
