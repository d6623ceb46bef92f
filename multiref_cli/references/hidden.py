"""Final hidden states of frozen references, kept on request: the output head alone then gives log F_t of any mix.

They are what `hidden_states` gives, the final norm included, in the type that the reference computes in. A pass that
keeps them writes each response's as it is computed; a checksum a token stands beside the log-probabilities in the parts
of the pass, so that a pass which was killed goes on, and what the disk lost in between is noticed.
"""

import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiref_cli.config.regularizer import Mix
from multiref_cli.errors import RunError
from multiref_cli.files import writing
from multiref_cli.models.decoder import Head, head_of, hidden_states, sharing_width
from multiref_cli.models.inspect import text_config
from multiref_cli.models.logprobs import logps_of, reference_columns, spread
from multiref_cli.models.packing import Packed
from multiref_cli.references.base import Reference
from multiref_cli.references.local import LocalReference
from multiref_cli.references.rows import ScoredRows, Work

_CHECK_BITS = 24  # what a float32, as parts of a pass hold them, says exactly
# What an entry has beside the rows and the states.
_WIDTH = "sharing_width"


def not_kept(reference: Reference, foreign: bool) -> str | None:
    """Why hidden states of a reference are not kept, where they are not; `foreign`: it has another tokenizer."""
    if not isinstance(reference, LocalReference):
        return "a server does not tell them"
    return "it has another tokenizer, so no token-level mix has a part of it" if foreign else None


def size_said(reference: Reference, tokens: int) -> str:
    """What keeping hidden states takes on disk, by the config of the model: nothing is loaded."""
    size, kind = int(text_config(reference.spec)["hidden_size"]), _local(reference).product_type
    total = tokens * size * kind.itemsize / 2**20
    return f"{tokens:,} tokens x {size} numbers x {kind.itemsize} bytes = {total:,.1f} MiB"


def _local(reference: Reference) -> LocalReference:
    if not isinstance(reference, LocalReference):
        raise TypeError(f"{reference.name} has no hidden states here")
    return reference


class Keeping:
    """A pass of one reference that keeps its hidden states beside its log-probabilities."""

    def __init__(self, reference: Reference, rows: ScoredRows, vocabulary: int, folder: Path) -> None:
        """Makes room.

        Args:
            reference: opened now.
            rows: N responses.
            vocabulary: ids that log-probabilities normalize over.
            folder: where states lie while the pass is under way; those of a killed one are gone on with.

        Raises:
            RunError: there is no room, or nothing can be written.
        """
        self.reference, self.rows, self.vocabulary, self.folder = _local(reference), rows, vocabulary, folder
        self.kind = self.reference.product_type
        self.width = head_of(reference.model).weight.shape[1] * self.kind.itemsize
        self.path, size = folder / "states", len(rows.completions) * self.width
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            there = self.path.stat().st_blocks * 512
            free = shutil.disk_usage(folder).free
            if free < 2 * size - there:  # once while they are computed, once as an entry
                raise RunError(
                    f"hidden states of {reference.name} take {size / 2**20:,.1f} MiB and twice that while they are "
                    f"written, {folder.parent} has {free / 2**20:,.1f} MiB: make room, or set "
                    "hardware.keep_hidden=false."
                )
            self._file = self.path.open("r+b")

    def work(self) -> Work:
        """For `ScoredRows.compute`: log-probabilities, and a checksum of each token's state."""
        return Work([self.reference.model], self._compute, confirm=self._settle)

    def arrays(self, checks: np.ndarray) -> dict[str, np.ndarray]:
        """The entry's arrays, once the pass is over.

        Args:
            checks: what it gave beside the log-probabilities.

        Raises:
            RunError: the disk lost something of it.
        """
        self._settle()
        self._file.close()
        states = np.zeros((0, self.width), np.uint8)
        if len(checks):
            states = np.memmap(self.path, np.uint8, "r").reshape(-1, self.width)
        if len(states) != len(checks) or not np.array_equal(_checks(states), checks):
            for part in self.folder.parent.glob(f"{self.folder.name.rpartition('-')[0]}-*"):
                shutil.rmtree(part, ignore_errors=True)
            raise RunError(
                f"hidden states of {self.reference.name} were damaged on disk while they were computed: run it again."
            )
        width = np.array([sharing_width(self.reference.module) or 0], np.int64)
        return {**self.rows.arrays(), "states": states, _WIDTH: width}

    def _compute(self, packed: Packed, places: np.ndarray) -> Sequence[Tensor]:
        with self.reference.precision.autocast():
            states = hidden_states(self.reference.model, packed)
            logps = logps_of(states, head_of(self.reference.model, self.vocabulary), packed).logps
        raw = states.to(self.kind).cpu().contiguous().view(torch.uint8).numpy()
        with writing(self.path):
            for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
                if len(run):
                    _write_whole(
                        self._file.fileno(), raw[run[0] : run[-1] + 1].tobytes(), int(places[run[0]]) * self.width
                    )
        return [logps, spread(torch.from_numpy(_checks(raw)).to(logps.device), packed.mask)]

    def _settle(self) -> None:
        """Before a part is noted as done its states are on disk, whichever process wrote them."""
        with writing(self.path):
            os.fsync(self._file.fileno())
            os.utime(self.folder)  # `prune` goes by it


@dataclass(frozen=True)
class Kept:
    """A reference of which only hidden states and the output head are at hand.

    Attributes:
        reference: whose they are.
        states: (N, bytes) of every token, as stored.
        width: of the model, where its prompts may be shared (`sharing_width`): batches are then those of a live pass.
        head: of the model, on its device.
    """

    reference: LocalReference
    states: np.ndarray
    width: int | None
    head: Head

    def at(self, places: np.ndarray) -> tuple[Head, Tensor]:
        """Head and states (n, H) of some tokens, on the reference's device."""
        raw = torch.from_numpy(np.array(self.states[places])).view(self.reference.product_type)
        return self.head, raw.to(self.head.weight.device)


def kept_of(reference: Reference, arrays: Mapping[str, np.ndarray], vocabulary: int) -> Kept:
    """What an entry keeps of a reference; opens the model's files for its output head, and runs nothing."""
    own = _local(reference)
    return Kept(own, arrays["states"], int(arrays[_WIDTH][0]) or None, own.head(vocabulary))


def normalizing(kept: Sequence[Kept], mixes: Sequence[Mix]) -> Work:
    """For `ScoredRows.compute`: log F_t of each mix, from what is kept of its references."""

    def compute(packed: Packed, places: np.ndarray) -> list[Any]:
        rows = packed.to(kept[0].head.weight.device)
        _, log_f = reference_columns([one.at(places) for one in kept], rows.targets[:, None], mixes)
        return [spread(one, rows.mask) for one in log_f]

    return Work([], compute, widths=[one.width for one in kept])


def _checks(raw: np.ndarray) -> np.ndarray:
    """(n, bytes) -> (n,) float32, a checksum of each."""
    return np.array([zlib.crc32(one.data) % 2**_CHECK_BITS for one in raw], np.float32)


def _write_whole(file: int, content: bytes, place: int) -> None:
    while content:  # the system may write less than it is given
        count = os.pwrite(file, content, place)
        content, place = content[count:], place + count
