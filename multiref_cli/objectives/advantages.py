"""Advantages of a group's responses: reward minus a baseline, over a scale."""

import torch
from torch import Tensor

BASELINES = ("group_mean", "leave_one_out", "none")
SCALES = ("group", "batch", "none")

# Added to the standard deviation, as in GRPO's common implementations; rewards of order one are assumed.
_EPSILON = 1e-4


def advantages(rewards: Tensor, baseline: str = "group_mean", scale: str = "none") -> Tensor:
    """Reward minus baseline, over scale, for every response of every group.

    group_mean     r - mean of the group (GRPO, arXiv 2402.03300); its gradient is (G - 1) / G times the unbiased one
    leave_one_out  r - mean of the others (RLOO, arXiv 2402.14740); unbiased
    none           r

    scaled by the standard deviation (with G - 1) of the group or of the whole batch, or not at all. A penalty that is
    part of the reward is divided along with it: reward and penalty keep their proportion, and the policy rests where it
    would without a scale. A penalty that is a loss term is not divided: beside it the reward counts 1 / sigma, so that
    beta acts as beta sigma(prompt), which vanishes as a prompt is solved; for a reward of 0 or 1 the objective is then
    2 arcsin sqrt(p) - beta D, p the success rate. With a scale equal rewards get zeros.

    Args:
        rewards: (P, G) of P prompts, penalty included where the estimator puts it there.
        baseline: one of the three.
        scale: group, batch or none.

    Returns:
        (P, G) advantages.

    Raises:
        ValueError: an unknown name, or `leave_one_out` with a single response.
    """
    if baseline not in BASELINES or scale not in SCALES:
        raise ValueError(f"baseline is {baseline!r} of {BASELINES}, scale is {scale!r} of {SCALES}")
    groups, size = rewards.shape
    if baseline == "leave_one_out" and size < 2:
        raise ValueError("a leave-one-out baseline needs at least two responses a prompt")
    mean = rewards.mean(1, keepdim=True)
    centered = rewards if baseline == "none" else rewards - mean
    if baseline == "leave_one_out":
        centered = centered * (size / (size - 1))
    if scale == "none" or (size if scale == "group" else groups * size) < 2:
        return centered
    spread = rewards.std(1, keepdim=True) if scale == "group" else rewards.std()
    equal = zero_spread(rewards if scale == "group" else rewards.reshape(1, -1))
    # Without a baseline equal rewards would be divided by next to nothing.
    return torch.where(equal[:, None], 0.0, centered / (spread + _EPSILON))


def zero_spread(rewards: Tensor) -> Tensor:
    """Which groups have equal rewards and so teach nothing; (P, G) -> (P,) bool."""
    return (rewards.amax(1) - rewards.amin(1)) <= 1e-8 * torch.clamp(rewards.abs().amax(1), min=1.0)
