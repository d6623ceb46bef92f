"""Masked sums and means: the only place where values of a padded batch are added up."""

from dataclasses import dataclass

import torch
from torch import Tensor

REDUCTIONS = ("grpo", "bnpo", "dr_grpo", "dapo")


@dataclass(frozen=True)
class StepSize:
    """What a whole optimizer step holds, so that the losses of its micro-batches add up to the loss of the step.

    Attributes:
        sequences: number of sequences.
        tokens: number of completion tokens.
        length: constant length of `dr_grpo` in tokens, usually the most tokens a completion may have.
    """

    sequences: int
    tokens: int
    length: float

    @classmethod
    def of(cls, mask: Tensor, length: int | None = None) -> "StepSize":
        """The size of a step that is this one batch, mask (B, T); `length` None takes the padded width."""
        return cls(mask.shape[0], int(mask.sum()), length or mask.shape[1])


def widest(device: torch.device) -> torch.dtype:
    """The type that long sums are made in on a device: float64, float32 where it has no such numbers (Apple's GPUs)."""
    return torch.float32 if device.type == "mps" else torch.float64


def widened(values: Tensor) -> Tensor:
    """Values (...) in the `widest` type of their device; nothing else changes."""
    return values.to(widest(values.device))


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the values whose mask is true; whatever stands elsewhere, nan included, changes nothing.

    Args:
        values: (B, T), or any shape that broadcasts to the mask's.
        mask: (B, T) bool.
        dim: the axis to sum over; None sums everything.

    Returns:
        A scalar, or the shape without `dim`; float32 or better.
    """
    kept = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
    kept = kept if kept.dtype == torch.float64 else kept.float()
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the (B, T) values whose mask is true, 0 where there is none; see `masked_sum`."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def reduce(
    values: Tensor, mask: Tensor, how: str, step: StepSize | None = None, weights: Tensor | None = None
) -> Tensor:
    """One loss from per-token losses; the shares of a step's micro-batches add up to the loss of the step.

    grpo     mean over sequences of the mean over each sequence's tokens (arXiv 2402.03300)
    bnpo     mean over the tokens of the batch
    dapo     mean over the tokens of the whole step, all processes included (arXiv 2503.14476)
    dr_grpo  sum over tokens / (sequences * constant length), so that long responses are not favored (arXiv 2503.20783)

    Micro-batches never change the result here, so bnpo and dapo agree on one process; TRL's bnpo averages over each
    micro-batch.

    Args:
        values: (B, T) per-token losses, or (B, 1) per sequence.
        mask: (B, T) bool, true at completion tokens.
        how: one of the four.
        step: size of the whole step; None: this batch is the step.
        weights: (B,) factor of each sequence; None: 1.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: an unknown reduction.
    """
    if how not in REDUCTIONS:
        raise ValueError(f"loss reduction is {how!r}; allowed: {', '.join(REDUCTIONS)}")
    step = step or StepSize.of(mask)
    rows = masked_sum(values, mask, 1)
    if how == "grpo":
        rows = rows / mask.sum(1).clamp(min=1)
    if weights is not None:
        rows = rows * weights
    divisor = {
        "grpo": step.sequences,
        "bnpo": step.tokens,
        "dapo": step.tokens,
        "dr_grpo": step.sequences * step.length,
    }
    return rows.sum() / max(divisor[how], 1)
