"""A plain-torch decoder over the weights of Llama, Qwen2, Qwen3 and Seed-OSS models, for sampling only.

Two things make it fast: nothing but the arithmetic is executed, and the KV of a prompt is kept once for its whole
group: a query attends to two memories, the group's prompt and its own completion, under one softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiref_cli.models.decoder import unwrap
from multiref_cli.models.lora import linear_parts, plain_linear
from multiref_cli.models.precision import product_type
from multiref_cli.types import LanguageModel

_FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SeedOssForCausalLM")
# Below this many parameters the projections are fused by copying them, above it the copy would cost real memory.
_FUSE_BELOW = 100_000_000


def supports(model: LanguageModel) -> bool:
    """Whether this decoder computes exactly what the model computes (its family, rotary type, and attention)."""
    model = unwrap(model)
    if type(model).__name__.removeprefix("FSDP") not in _FAMILIES or not hasattr(model.config, "rope_parameters"):
        return False
    config = model.config
    layer_types = getattr(config, "layer_types", None) or []
    adapted = [m for m in model.modules() if hasattr(m, "base_layer")]
    inside = {id(part) for m in adapted for part in m.modules() if part is not m}
    linears = [m for m in model.modules() if hasattr(m, "in_features") and id(m) not in inside]
    return (
        config.hidden_act == "silu"
        and config.rope_parameters.get("rope_type", "default") in ("default", "linear", "llama3", "yarn")
        and all(kind == "full_attention" for kind in layer_types)
        and type(model.model.embed_tokens) is nn.Embedding
        and type(model.lm_head) is nn.Linear
        and all(plain_linear(m) for m in linears)
    )


class Weights:
    """The model's tensors by name, read once per generation; projections fused where the model is small.

    Under autocast they are copies in its type: every token reads all of them, and half as many bytes are read. LoRA
    adapters are added to float32 projections; bfloat16 would round most of an adapter away, so there they stay apart.
    """

    def __init__(self, model: LanguageModel):
        """Reads a model that `supports` accepts."""
        model = unwrap(model)
        kind = product_type(model.model.embed_tokens.weight)
        config, body = model.config, model.model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.epsilon = config.rms_norm_eps
        self.embedding, self.norm = body.embed_tokens.weight.to(kind), body.norm.weight.to(kind)
        tied = model.lm_head.weight is body.embed_tokens.weight
        self.head = self.embedding if tied else model.lm_head.weight.to(kind)
        self.rotary = body.rotary_emb
        fuse = sum(p.numel() for p in model.parameters()) < _FUSE_BELOW
        self.layers = [_Layer(layer, fuse, kind) for layer in body.layers]

    def rotations(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and signed sin (length, D) of positions 0..length-1; the sign turns rotate-half into a roll."""
        positions = torch.arange(length, device=self.embedding.device)[None]
        cosine, sine = self.rotary(self.embedding[:1], positions)
        half = self.head_dim // 2
        return cosine[0], torch.cat([-sine[0, :, :half], sine[0, :, half:]], -1)


class _Layer:
    def __init__(self, layer: Any, fuse: bool, kind: torch.dtype):
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = layer.input_layernorm.weight.to(kind)
        self.middle_norm = layer.post_attention_layernorm.weight.to(kind)
        self.projections = _group([attention.q_proj, attention.k_proj, attention.v_proj], fuse, kind)
        self.gates = _group([mlp.gate_proj, mlp.up_proj], fuse, kind)
        self.output, self.down = _cast(attention.o_proj, kind), _cast(mlp.down_proj, kind)
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.query_norm, self.key_norm = (None if one is None else one.weight.to(kind) for one in norms)


@dataclass(frozen=True)
class _Map:
    """A linear map x W + b, and what adapters add to it: pairs (A, B) with x A B."""

    weight: Tensor
    bias: Tensor | None
    low: tuple[tuple[Tensor, Tensor], ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        for a, b in self.low:
            y = y + F.linear(F.linear(x, a), b)
        return y


def _cast(module: nn.Module, kind: torch.dtype) -> _Map:
    """A linear map in a type; its adapters added to float32 weights, else beside them."""
    linear, adapters = linear_parts(module)
    bias = None if linear.bias is None else linear.bias.to(kind)
    low = [(a.to(kind), (scale * b).to(kind)) for a, b, scale in adapters]
    if not low or kind not in (torch.float32, torch.float64):
        return _Map(linear.weight.to(kind), bias, tuple(low))
    whole = linear.weight.to(kind)
    for a, b in low:
        whole = torch.addmm(whole, b, a)
    return _Map(whole, bias)


def _group(modules: list[nn.Module], fuse: bool, kind: torch.dtype) -> list[_Map]:
    maps = [_cast(module, kind) for module in modules]
    if not fuse or any(one.low for one in maps):
        return maps
    bias = None if maps[0].bias is None else torch.cat([one.bias for one in maps if one.bias is not None])
    return [_Map(torch.cat([one.weight for one in maps]), bias)]


def _project(x: Tensor, group: list[_Map]) -> Tensor:
    parts = [one(x) for one in group]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class LeanSession:
    """One batch of groups: the prompts' KV (P, ...) shared, the completions' KV (S, ...) in static memory."""

    def __init__(
        self,
        weights: Weights,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        new_tokens: int,
        pad_id: int,
        cuda_graphs: bool = False,
    ):
        """Computes the prompts and sets `logits` (P * group_size, V) of the first new token.

        Args:
            weights: of the model.
            prompts: P lists of token ids.
            group_size: completions of each prompt.
            new_tokens: the most that will be decoded.
            pad_id: fills the right of shorter prompts; never attended to.
            cuda_graphs: capture the decoding step and replay it.
        """
        self.weights, self.pad_id = weights, pad_id
        device = weights.embedding.device
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        longest = int(max(len(p) for p in prompts))
        self.cosine, self.sine = weights.rotations(longest + new_tokens)
        # (P, 1, 1, L) additive; None when nothing is padded.
        padded = torch.arange(longest, device=device) >= lengths[:, None]
        bias = torch.zeros_like(padded, dtype=weights.embedding.dtype).masked_fill(padded, float("-inf"))
        self.prompt_bias = bias[:, None, None] if bool(padded.any()) else None
        self.step_index = 0
        self.cuda_graphs = cuda_graphs
        self._graph: torch.cuda.CUDAGraph | None = None
        hidden = self._prefill(prompts, longest)[torch.arange(len(prompts), device=device), lengths - 1]
        self.logits = self._head(hidden).repeat_interleave(group_size, 0)
        self.group = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
        self.positions = lengths[self.group]
        self._grid(len(prompts), group_size)
        shape = (len(weights.layers), len(self.group), weights.kv_heads, new_tokens, weights.head_dim)
        self.keys = torch.zeros(shape, dtype=weights.embedding.dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def _prefill(self, prompts: Sequence[Sequence[int]], longest: int) -> Tensor:
        """Hidden states (P, L, hidden). Prompts are padded on the right, so causality alone hides the padding."""
        w = self.weights
        rows = [list(p) + [self.pad_id] * (longest - len(p)) for p in prompts]
        x = F.embedding(torch.tensor(rows, device=w.embedding.device), w.embedding)
        self.prompt_keys, self.prompt_values = [], []
        cosine, sine = self.cosine[:longest, None], self.sine[:longest, None]
        for layer in w.layers:
            query, key, value = self._attention_inputs(layer, x, cosine, sine)
            query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            self.prompt_keys.append(key.contiguous())
            self.prompt_values.append(value.contiguous())
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=w.heads != w.kv_heads)
            x = self._after_attention(layer, x, mixed.transpose(1, 2).flatten(2))
        return x

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (S, V) of the token after `tokens` (S,)."""
        logits = self._replay(tokens) if self.cuda_graphs else self._forward(tokens, self.positions)
        self.positions = self.positions + 1
        self.step_index += 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Leaves only these rows (ascending indices) in the batch; prompts without rows leave as well."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.positions = self.positions[rows]
        prompts, self.group, counts = torch.unique_consecutive(
            self.group[rows], return_inverse=True, return_counts=True
        )
        if len(prompts) < len(self.prompt_keys[0]):
            self.prompt_keys = [k[prompts] for k in self.prompt_keys]
            self.prompt_values = [v[prompts] for v in self.prompt_values]
            self.prompt_bias = None if self.prompt_bias is None else self.prompt_bias[prompts]
        self._grid(len(prompts), int(counts.max()), counts)
        self._graph = None

    def _grid(self, prompts: int, width: int, counts: Tensor | None = None) -> None:
        """Where each row sits in a (prompts, width) grid; no slots to look up while every group is complete."""
        self.grid = (prompts, width)
        self.slots = None
        if counts is not None and bool((counts < width).any()):
            first = counts.cumsum(0) - counts
            offset = torch.arange(len(self.group), device=self.group.device) - first[self.group]
            self.slots = self.group * width + offset

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        w = self.weights
        x = F.embedding(tokens, w.embedding)
        cosine, sine = self.cosine[positions][:, None], self.sine[positions][:, None]
        for index, layer in enumerate(w.layers):
            query, key, value = self._attention_inputs(layer, x, cosine, sine)
            keys, values, bias = self._remember(index, key, value)
            x = self._after_attention(layer, x, self._attend(index, query, keys, values, bias))
        return self._head(x)

    def _attention_inputs(self, layer: _Layer, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
        """(..., hidden) -> rotated queries (..., H, D), rotated keys and values (..., KV, D)."""
        w = self.weights
        mixed = _project(_norm(x, layer.input_norm, w.epsilon), layer.projections)
        mixed = mixed.unflatten(-1, (-1, w.head_dim))
        both, value = mixed[..., : w.heads + w.kv_heads, :], mixed[..., w.heads + w.kv_heads :, :]
        if layer.query_norm is not None and layer.key_norm is not None:
            query = _norm(both[..., : w.heads, :], layer.query_norm, w.epsilon)
            both = torch.cat([query, _norm(both[..., w.heads :, :], layer.key_norm, w.epsilon)], -2)
        both = both * cosine + both.roll(w.head_dim // 2, -1) * sine
        return both[..., : w.heads, :], both[..., w.heads :, :], value

    def _remember(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Writes this step's KV (S, KV, D), returns what a query may attend to and a bias that hides the rest."""
        keys, values = self.keys[index], self.values[index]
        if self.cuda_graphs:
            keys.index_copy_(2, self._column, key[:, :, None])
            values.index_copy_(2, self._column, value[:, :, None])
            return keys, values, self._future
        keys[:, :, self.step_index], values[:, :, self.step_index] = key, value
        end = self.step_index + 1
        return keys[:, :, :end], values[:, :, :end], None

    def _attend(self, index: int, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention (S, H * D) of (S, H, D) over the group's prompt and the own completion, under one softmax."""
        w = self.weights
        rows, repeats = query.shape[0], w.heads // w.kv_heads
        query = (query * w.head_dim**-0.5).reshape(rows, w.kv_heads, repeats, w.head_dim)
        shared_keys, shared_values = self.prompt_keys[index], self.prompt_values[index]
        shared = self._to_grid(query) @ shared_keys.transpose(-1, -2)
        shared = self._from_grid(shared if self.prompt_bias is None else shared + self.prompt_bias, repeats)
        own = query @ keys.transpose(-1, -2)
        own = own if bias is None else own + bias
        weights = torch.cat([shared, own], -1).softmax(-1, dtype=torch.float32).to(values.dtype)
        length = shared_keys.shape[2]
        mixed = self._from_grid(self._to_grid(weights[..., :length]) @ shared_values, repeats)
        return (mixed + weights[..., length:] @ values).reshape(rows, -1)

    def _to_grid(self, x: Tensor) -> Tensor:
        """(S, KV, R, N) -> (P, KV, width * R, N), zeros where a group has fewer rows than the widest."""
        prompts, width = self.grid
        if self.slots is not None:
            x = x.new_zeros(prompts * width, *x.shape[1:]).index_copy_(0, self.slots, x)
        heads, repeats, n = x.shape[1:]
        return x.view(prompts, width, heads, repeats, n).transpose(1, 2).reshape(prompts, heads, width * repeats, n)

    def _from_grid(self, x: Tensor, repeats: int) -> Tensor:
        """(P, KV, width * R, N) -> (S, KV, R, N)."""
        width = self.grid[1]
        x = x.unflatten(2, (width, repeats)).transpose(1, 2).flatten(0, 1)
        return x if self.slots is None else x[self.slots]

    def _after_attention(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + layer.output(mixed)
        gate, up = _project(_norm(x, layer.middle_norm, self.weights.epsilon), layer.gates).chunk(2, -1)
        return x + layer.down(F.silu(gate) * up)

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(_norm(x, self.weights.norm, self.weights.epsilon), self.weights.head)

    def _replay(self, tokens: Tensor) -> Tensor:
        """The step as a CUDA graph, captured anew whenever rows have left; every address in it is static."""
        graph = self._graph or self._capture(tokens)
        self._column.fill_(self.step_index)
        self._future[: self.step_index + 1] = 0
        self._tokens.copy_(tokens)
        self._positions.copy_(self.positions)
        graph.replay()
        return self._logits

    def _capture(self, tokens: Tensor) -> torch.cuda.CUDAGraph:
        self._static_inputs(tokens)
        # Capture needs a warm run on a side stream; its KV lands in the column that the real step overwrites.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(self._tokens, self._positions)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._forward(self._tokens, self._positions)
        return self._graph

    def _static_inputs(self, tokens: Tensor) -> None:
        self._tokens, self._positions = tokens.clone(), self.positions.clone()
        self._column = torch.tensor([self.step_index], device=tokens.device)
        self._future = torch.full((self.keys.shape[3],), float("-inf"), dtype=self.keys.dtype, device=tokens.device)
        self._future[: self.step_index + 1] = 0


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon)
