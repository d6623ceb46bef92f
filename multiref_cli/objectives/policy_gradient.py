"""The clipped policy-gradient surrogate with importance ratios per token or per sequence."""

import torch
from torch import Tensor

from multiref_cli.objectives.aggregate import masked_mean

LEVELS = ("token", "sequence")


def importance_ratios(logps: Tensor, old_logps: Tensor, mask: Tensor, level: str = "token") -> Tensor:
    """How much more likely the policy now finds what it sampled then.

    token     rho_t = exp(log pi - log pi_old), one for each token
    sequence  exp(mean over the response's tokens of log pi - log pi_old), one value a response, whose gradient each
              token has for itself (GSPO-token, arXiv 2507.18071, Eq. 14): the same gradient as GSPO's where a response
              has one advantage, and a meaning where its tokens have their own

    Args:
        logps: (B, T) of the policy now, differentiable.
        old_logps: (B, T) of the policy that sampled.
        mask: (B, T) bool.
        level: token or sequence.

    Returns:
        (B, T), differentiable; at level token 1 where masked.

    Raises:
        ValueError: an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"importance is {level!r}; allowed: {', '.join(LEVELS)}")
    difference = torch.where(mask, logps - old_logps, torch.zeros_like(logps))
    if level == "sequence":
        difference = masked_mean(difference, mask, 1)[:, None].detach() + (difference - difference.detach())
    return torch.exp(difference)


def sampler_weights(trainer: Tensor, sampler: Tensor, mask: Tensor, level: str = "token", cap: float = 2.0) -> Tensor:
    """min(pi_trainer / pi_sampler, cap), what a sample of another engine counts for (truncated importance sampling).

    The engine that samples computes in other kernels, or in bfloat16, and so draws from a slightly different policy.

    token     one weight for each token, biased by what it leaves out: how often earlier tokens were drawn
    sequence  one a response, of the product of its ratios: unbiased but for the cap

    Args:
        trainer: (B, T) log-probs of the sampled tokens as the trainer computes them, for the policy that sampled.
        sampler: (B, T) as the engine gave them.
        mask: (B, T) bool.
        level: token or sequence.
        cap: largest weight; the usual 2 leaves ratios below it as they are.

    Returns:
        (B, T), no gradient; at level token 1 where masked.

    Raises:
        ValueError: an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"a correction is {level!r}; allowed: {', '.join(LEVELS)}")
    difference = torch.where(mask, trainer - sampler, torch.zeros_like(trainer)).detach()
    if level == "sequence":
        difference = difference.sum(1, keepdim=True).expand_as(difference)
    return torch.exp(difference).clamp(max=cap)


def clipped_surrogate(
    ratios: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> tuple[Tensor, Tensor]:
    """-min( rho A, clip(rho, 1 - low, 1 + high) A ) (PPO, arXiv 1707.06347; unequal sides: DAPO, arXiv 2503.14476).

    On the policy that sampled (rho = 1) the gradient is -A grad log pi, the policy gradient.

    Args:
        ratios: (B, T) importance ratios, differentiable.
        advantages: (B,), or (B, T) where tokens of a response have their own.
        clip_low: how far below 1 a ratio still counts; usual 0.2.
        clip_high: how far above 1; usual 0.2 to 0.28.

    Returns:
        (B, T) the loss, and (B, T) bool: where the clip stops the gradient.
    """
    advantages = advantages if advantages.ndim == 2 else advantages[:, None]
    clipped = ratios.clamp(1.0 - clip_low, 1.0 + clip_high)
    stopped = ((ratios < 1.0 - clip_low) & (advantages < 0)) | ((ratios > 1.0 + clip_high) & (advantages > 0))
    return -torch.minimum(ratios * advantages, clipped * advantages), stopped.detach()
