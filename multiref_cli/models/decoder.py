"""What is inside a causal language model: its decoder, its output head, and an adapter that may be switched on."""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiref_cli.errors import RequestError
from multiref_cli.models.packing import Packed, pack
from multiref_cli.models.precision import own_autocast
from multiref_cli.types import LanguageModel, PretrainedConfig

_PROBE_PROMPT = [1, 2, 3, 4, 2]
_PROBE_RESPONSES = [[3, 1, 4, 1], [2, 2], [4, 3, 1, 2, 3, 4]]
_honours_masks: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Adapted:
    """A base model seen through one of the adapters it holds, or bare; several of these share the base's memory.

    Attributes:
        model: a peft model.
        adapter: the name of the adapter to switch on, None for the base alone.
    """

    model: Any
    adapter: str | None

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The model while this adapter, or none, is switched on."""
        if self.adapter is None:
            with self.model.disable_adapter():
                yield self.model
            return
        before = self.model.active_adapter
        self.model.set_adapter(self.adapter, inference_mode=True)
        try:
            yield self.model
        finally:
            self.model.set_adapter(before, inference_mode=True)


@contextmanager
def active(model: "LanguageModel | Adapted") -> Iterator[Any]:
    """The transformers model itself, without peft's wrapper, with the right adapter switched on."""
    if isinstance(model, Adapted):
        with model.active() as wrapped:
            yield unwrap(wrapped)
    else:
        yield unwrap(model)


def unwrap(model: LanguageModel) -> Any:
    """The transformers model inside a peft wrapper (its adapter layers stay in place), or the model as it is."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


@dataclass(frozen=True)
class Head:
    """The output head: logits = softcap(scale * (hidden @ weight.T + bias)), cut to the ids of the tokenizer.

    Attributes:
        weight: (V, H); the embedding matrix itself where the two are tied.
        bias: (V,) or None.
        scale: Cohere's logit_scale, or 1 / Granite's logits_scaling.
        softcap: Gemma's final_logit_softcapping, in logits; None for most models.
        vocabulary: ids from here on are padding of the matrix and are left out of every softmax.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    softcap: float | None = None
    vocabulary: int | None = None

    @property
    def size(self) -> int:
        """Number of ids that share the probability."""
        return min(self.weight.shape[0], self.vocabulary or self.weight.shape[0])

    def linear(self, hidden: Tensor) -> Tensor:
        """(C, H) -> (C, V) the matrix product, in the model's precision."""
        bias = None if self.bias is None else self.bias[: self.size].to(hidden.dtype)
        return F.linear(hidden, self.weight[: self.size].to(hidden.dtype), bias)

    def plain(self, dtype: torch.dtype, temperature: float) -> bool:
        """Whether the matrix product, of this type, is what `finish` makes of it."""
        return dtype.itemsize >= 4 and self.scale == temperature == 1.0 and self.softcap is None

    def finish(self, product: Tensor, temperature: float) -> Tensor:
        """(C, V) -> (C, V) logits over the temperature, in float32 or better."""
        logits = product if product.dtype == torch.float64 else product.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits if temperature == 1.0 else logits / temperature


def head_of(model: "LanguageModel | Adapted", vocabulary: int | None = None) -> Head:
    """The output head of a causal language model.

    Raises:
        RequestError: a head that is not one linear map.
    """
    inner = unwrap(model.model if isinstance(model, Adapted) else model)
    linear, config = inner.get_output_embeddings(), inner.config.get_text_config()
    if not isinstance(linear, nn.Linear):
        raise RequestError(
            f"{type(inner).__name__} has an output head of class {type(linear).__name__}, allowed is Linear"
        )
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight, linear.bias, scale, getattr(config, "final_logit_softcapping", None), vocabulary)


def hidden_states(model: "LanguageModel | Adapted", packed: Packed) -> Tensor:
    """The hidden states that predict the completion tokens; (N, H), differentiable.

    Raises:
        RequestError: prompts that are shared, and a model that does not honor the mask which that takes.
    """
    with active(model) as inner:
        if packed.attention_mask is not None and not honours_shared_prompts(inner):
            kind = type(inner).__name__
            raise RequestError(f"{kind} cannot share a prompt between responses: set algorithm.share_prompt=false")
        return _decode(inner, packed)


def _decode(inner: LanguageModel, packed: Packed) -> Tensor:
    extra = {}
    if packed.attention_mask is not None:
        extra = {"attention_mask": packed.attention_mask, "position_ids": packed.position_ids}
    with own_autocast(inner):
        hidden = inner.get_decoder()(input_ids=packed.input_ids, use_cache=False, **extra).last_hidden_state
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
    return hidden.flatten(0, 1).index_select(0, packed.predictor)


@torch.no_grad()
def check_head(model: LanguageModel) -> None:
    """Compares the head applied to hidden states with the model's own logits on a probe of a few tokens.

    Raises:
        RequestError: a model that does something else between its hidden states and its logits.
    """
    ids = torch.tensor([_PROBE_PROMPT], device=next(model.parameters()).device)
    with _evaluating(model):
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        inner = unwrap(model)
        head = head_of(model)
        hidden = inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        given = head.finish(head.linear(hidden), 1.0).float()
    difference = float((given - expected).abs().max())
    if not difference <= _tolerance(hidden) * max(1.0, float(expected.abs().max())):
        raise RequestError(
            f"{type(inner).__name__} transforms its logits in a way that is not known here (they differ by "
            f"{difference:.3g} from head times hidden state); allowed are a plain head, logit_scale, logits_scaling "
            "and final_logit_softcapping: use another model"
        )


@torch.no_grad()
def honours_shared_prompts(model: LanguageModel) -> bool:
    """Whether the model gives the same hidden states when responses share their prompt's row (probed once a model).

    Models whose layers do not all attend to everything (sliding windows, state spaces) do not: their window is lost
    under a mask of one's own.
    """
    inner = unwrap(model)
    if inner not in _honours_masks:
        _honours_masks[inner] = _attends_fully(inner.config) and _probe_agrees(inner)
        if not _honours_masks[inner]:
            logging.getLogger(__name__).info("%s computes every prompt once per response", type(inner).__name__)
    return _honours_masks[inner]


def sharing_width(model: LanguageModel) -> int | None:
    """The hidden size, by which `sharing_pays` weighs tokens; None for a model whose prompts cannot be shared."""
    return unwrap(model).config.get_text_config().hidden_size if honours_shared_prompts(model) else None


def _attends_fully(config: PretrainedConfig) -> bool:
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def _probe_agrees(inner: LanguageModel) -> bool:
    device = next(inner.parameters()).device
    rows = [pack([_PROBE_PROMPT], [_PROBE_RESPONSES], 0, share).to(device) for share in (True, False)]
    with _evaluating(inner):
        try:
            shared, separate = (_decode(inner, packed) for packed in rows)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return False  # the architecture takes no four-dimensional mask
    return bool((shared - separate).abs().max() <= _tolerance(shared) * separate.abs().max().clamp(min=1.0))


def _tolerance(hidden: Tensor) -> float:
    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(hidden.dtype, 5e-2)


@contextmanager
def _evaluating(model: LanguageModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
