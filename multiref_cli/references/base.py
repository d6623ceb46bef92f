"""A frozen reference: what the store, live use, evaluation and samples ask of one, whatever it is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from multiref_cli.config import schema
from multiref_cli.data.template import Rendering
from multiref_cli.models.packing import Packed
from multiref_cli.references.adapters import Opener, shared_openers
from multiref_cli.references.local import LocalReference
from multiref_cli.references.served import ServedReference, Serving
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.types import Device


class Reference(Protocol):
    """One of the K references. Nothing is loaded before it is needed, and `release` lets go of what was.

    Attributes:
        name: in metrics, tables and figures.
        spec: its part of the config.
        dtype: parameter type that it is read in; `served` where that is a server's affair.
    """

    name: str
    spec: schema.ReferenceSpec
    dtype: str

    def fingerprint(self) -> str:
        """sha256 of what it computes, wherever it lies."""

    @property
    def tokenizer(self) -> Any:
        """Its own tokenizer."""

    @property
    def model(self) -> Any:
        """What full-vocabulary work asks (`token_divergence`, `score_references`); None for one that only scores."""

    def expect(self, rows: Packed) -> None:
        """Told of rows that `token_logps` will be asked for: a server can begin."""

    def confirm(self) -> None:
        """Whether it still is what it was when `fingerprint` was asked first; raises RunError where it is not."""

    def token_logps(self, rows: Packed, temperature: float = 1.0, vocabulary: int | None = None) -> Tensor:
        """(B, T) log-probabilities in nats of the completion tokens of rows on any device, 0 where masked."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        sampling: Sampling,
        seeds: list[int],
        batch_size: int,
        vocabulary: int | None = None,
    ) -> list[list[Completion]]:
        """[P][G] responses to P prompts; one seed a prompt."""

    def visiting(self, device: Device) -> AbstractContextManager[None]:
        """While it is on another device than its own."""

    def release(self) -> None:
        """Let go of whatever was loaded."""


def references_of(
    specs: Sequence[schema.ReferenceSpec],
    device: Device = "cpu",
    dtype: str = "float32",
    together: bool = False,
    rendering: Rendering | None = None,
    serving: Serving | None = None,
    divide: Callable[[Any], None] | None = None,
) -> list[Reference]:
    """K references in the order of their specs.

    Args:
        specs: of the config.
        device: torch device of all.
        dtype: parameter type of those that name none.
        together: they will be in memory side by side: adapters of one base then share it. One by one, an adapter is
            merged into its base.
        rendering: what their chat templates are told.
        serving: what those that a server answers for need; None where there are none.
        divide: see `LocalReference`.
    """
    openers: list[Opener | None] = [None] * len(specs)
    if together:  # one that moves has weights of its own
        still = [index for index, spec in enumerate(specs) if spec.update is None]
        for index, opener in zip(still, shared_openers([specs[index] for index in still], device, dtype)):
            openers[index] = opener
    found: list[Reference] = []
    for spec, opener in zip(specs, openers):
        if spec.server is not None and serving is not None:
            found.append(ServedReference(spec, serving, rendering))
        else:
            found.append(LocalReference(spec, device, dtype, opener, rendering, divide))
    return found
