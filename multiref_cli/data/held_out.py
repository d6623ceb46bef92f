"""Which prompts are held out: those whose hash comes first in a random order, with all the rows of each."""

import hashlib
from typing import TypeVar

import numpy as np

from multiref_cli.data.shelf import Shelf
from multiref_cli.errors import RequestError

T = TypeVar("T")


def random_place(prompt: str, seed: int) -> bytes:
    """sha256 of a prompt: its place in the random order of a seed."""
    return hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()


def hold_out(rows: Shelf[T], keys: np.ndarray, share: float) -> tuple[Shelf[T], Shelf[T]]:
    """Hold out a random share of the prompts, with all the rows of each.

    Args:
        rows: N usable rows.
        keys: (N,) of their prompts, 32 random bytes each; the smallest ones are held out.
        share: of the prompts, from 0 to below 1.

    Returns:
        (training rows, held-out rows), each in the order given.

    Raises:
        RequestError: the share is negative or leaves nothing to train on.
    """
    prompts = np.unique(keys)
    count = round(share * len(prompts))
    if share < 0 or (len(rows) and count >= len(prompts)):
        raise RequestError(f"data.held_out={share:g} of {len(prompts)} prompts leaves nothing to train on.")
    held_out = keys <= prompts[count - 1] if count else np.zeros(len(rows), dtype=bool)
    return rows.chosen(np.flatnonzero(~held_out)), rows.chosen(np.flatnonzero(held_out))
