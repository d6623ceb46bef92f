"""A reference whose weights this process opens itself."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from multiref_cli.config import schema
from multiref_cli.data.template import Rendering
from multiref_cli.models.decoder import Adapted, Head, head_of
from multiref_cli.models.files import fingerprint
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import Packed
from multiref_cli.models.precision import Precision, parameter_type
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.sharding import whole
from multiref_cli.types import Device


class LocalReference:
    """A causal language model in a folder or on the Hub, frozen; see `references.base.Reference`."""

    def __init__(
        self,
        spec: schema.ReferenceSpec,
        device: Device = "cpu",
        dtype: str = "float32",
        opener: Callable[[], Any] | None = None,
        rendering: Rendering | None = None,
        divide: Callable[[Any], None] | None = None,
    ) -> None:
        """Takes note; nothing is opened.

        Args:
            spec: of the config.
            device: torch device.
            dtype: parameter type where the spec names none.
            opener: opens the model; None: from its own folder.
            rendering: what its chat template is told.
            divide: divides an opened model among the processes of a run. What moves or is quantized, and adapters on
                one base, stay whole on every process.
        """
        kind = spec.dtype or dtype
        self.spec, self.name, self.device = spec, spec.name, device
        # What it computes in is part of what the store knows its results by.
        self.dtype = kind if spec.quantization is None else f"{kind}+{spec.quantization}"
        self.precision = Precision(kind, str(device))
        self._rendering = rendering
        self._divide = divide if spec.update is None and spec.quantization is None else None
        place = device if self._divide is None else "cpu"  # its parts alone go where it computes
        self._opener = opener or (lambda: load_causal_lm(spec, place, kind))
        self._model: Any = None

    def fingerprint(self) -> str:
        """sha256 of weights, config and adapter."""
        return fingerprint(self.spec)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of its folder, or the one that the spec names."""
        return load_tokenizer(self.spec, self._rendering)

    @property
    def model(self) -> Any:
        """The transformers model, or an adapter's view of a shared one; opened now if it was not.

        Raises:
            RequestError: see `load_causal_lm`.
        """
        if self._model is None:
            self._model = self._opener()
            if self._divide is not None and not isinstance(self._model, Adapted):
                self._divide(self._model)
        return self._model

    def alone(self) -> "LocalReference":
        """The same one with weights of its own, an adapter merged into its base; nothing is opened."""
        return LocalReference(self.spec, self.device, self.precision.name, None, self._rendering, self._divide)

    @property
    def product_type(self) -> torch.dtype:
        """The type of its hidden states."""
        mixed = self.precision.name == "bf16_mixed"
        found: torch.dtype = getattr(torch, "bfloat16" if mixed else parameter_type(self.precision.name))
        return found

    def head(self, vocabulary: int | None = None) -> Head:
        """Its output head, on its device, an adapter merged; its files are opened, nothing is run."""
        # Fewer bits are made of the weights where they lie; everything else is kept from the device.
        device = "cpu" if self.spec.quantization is None else self.device
        head = head_of(load_causal_lm(self.spec, device, self.precision.name, probe=False), vocabulary)
        bias = None if head.bias is None else head.bias.detach().to(self.device)
        return replace(head, weight=head.weight.detach().to(self.device), bias=bias)

    @property
    def module(self) -> Any:
        """The module that holds the weights."""
        return self.model.model if isinstance(self.model, Adapted) else self.model

    def expect(self, rows: Packed) -> None:
        """Nothing is done ahead: it computes when it is asked."""

    def confirm(self) -> None:
        """It is in memory since it was opened."""

    @torch.no_grad()
    def token_logps(self, rows: Packed, temperature: float = 1.0, vocabulary: int | None = None) -> Tensor:
        """(B, T) log-probabilities of the completion tokens, on the model's device."""
        device = next(self.module.parameters()).device
        with self.precision.autocast():
            return token_logps(self.model, rows.to(device), temperature, vocabulary=vocabulary).logps

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        sampling: Sampling,
        seeds: list[int],
        batch_size: int,
        vocabulary: int | None = None,
    ) -> list[list[Completion]]:
        """[P][G] responses, drawn by the engine that policies are sampled with."""
        engine = TransformersEngine(self.model, 0, batch_size, vocabulary)
        with self.precision.autocast(), whole(self.module):
            return engine.generate(prompts, group_size, sampling, seeds)

    @contextmanager
    def visiting(self, device: Device) -> Iterator[None]:
        """While the weights are on another device."""
        self.module.to(device)
        try:
            yield
        finally:
            self.module.to(self.device)

    def release(self) -> None:
        """Drop the model."""
        self._model = None
