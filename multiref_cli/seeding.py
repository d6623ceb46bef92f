"""Randomness as a pure function of names: a resumed run, and another point of a sweep, draw the same numbers."""

import hashlib
import random

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed from a root seed and names; different names give independent streams.

    Args:
        seed: root seed of the run.
        names: what the numbers are for, say `"order", epoch`.
    """
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded with `derive(seed, *names)`."""
    return torch.Generator().manual_seed(derive(seed, *names))


def seed_everything(seed: int) -> None:
    """Seed the global generators, for what libraries draw by themselves (initialization, dropout)."""
    random.seed(seed)
    torch.manual_seed(derive(seed, "torch"))


def permutation(count: int, seed: int, *names: str | int) -> list[int]:
    """A random order of range(count)."""
    return torch.randperm(count, generator=generator(seed, *names)).tolist()


def epoch_batch(count: int, size: int, step: int, seed: int) -> list[int]:
    """Indices of the rows of optimizer step `step` (from 0) when every epoch is one random order of all rows.

    Args:
        count: rows.
        size: rows per step; the last step of an epoch takes what is left.
        step: steps done before this one.
        seed: root seed of the run.
    """
    per_epoch = -(-count // size)
    epoch, position = divmod(step, per_epoch)
    return permutation(count, seed, "order", epoch)[position * size : (position + 1) * size]
