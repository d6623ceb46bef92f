"""Preference losses: DPO and IPO on implicit rewards, towards a mixed reference or one loss a reference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from multiref_cli.objectives.divergence import kind_of
from multiref_cli.objectives.mixing import checked_weights


def implicit_reward(
    policy_logps: Tensor, mixed_logps: Tensor, beta: float, order: float | str, clip: float = 0.0
) -> Tensor:
    """The reward that the policy stands for, beta s(log pi(y) - log M(y)), up to a constant per prompt.

    A policy that is the optimum of E[r] - beta sum_i alpha_i D_A(pi_i || pi) gives back r. Order 0 with a geometric
    reference is Eq. 60 of arXiv 2502.01203, order 1 with an arithmetic reference its Eq. 61.

    Args:
        policy_logps: (...) log pi(y) of whole responses, in nats.
        mixed_logps: (...) or any shape that broadcasts, log M(y) in nats; a leading K for one reward a reference.
        beta: weight of the divergence in units of reward per nat; usual 0.01 to 1.
        order: A of the score; 0 reverse KL, 1 forward KL; or the name of a divergence that has none.
        clip: |A x| in nats beyond which the score goes on linearly, see `score`; usual 10; 0 turns it off.

    Returns:
        (...) implicit reward, in units of reward.
    """
    return beta * kind_of(order).score(policy_logps - mixed_logps, clip)


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    beta: float | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Loss of every pair, given the implicit rewards of its two responses.

    sigmoid: -(1 - eps) log sigmoid(d) - eps log sigmoid(-d), d = chosen - rejected (DPO, arXiv 2305.18290, Eq. 7; eps
    as in its conservative variant). ipo: (h - 1 / (2 beta))^2 with h the difference of chosen / beta and
    rejected / beta (arXiv 2310.12036, Eq. 17), each divided by its number of tokens first, as TRL does on the advice
    of the authors; lengths of 1 give the formula as printed.

    Args:
        chosen: (..., N) implicit rewards of the preferred responses.
        rejected: (..., N) implicit rewards of the others.
        loss: sigmoid or ipo.
        label_smoothing: eps, assumed probability that a label is flipped, 0 to 0.5; sigmoid only.
        beta: the beta that made the implicit rewards, tau of IPO; needed by ipo only.
        lengths: (2, N) completion tokens of chosen and rejected; needed by ipo only.

    Returns:
        (..., N) loss per pair; sigmoid is ln 2 where the two implicit rewards are equal.

    Raises:
        ValueError: an unknown loss, or ipo without beta or lengths, or with label smoothing.
    """
    if loss == "sigmoid":
        difference = chosen - rejected
        return -(1.0 - label_smoothing) * F.logsigmoid(difference) - label_smoothing * F.logsigmoid(-difference)
    if loss == "ipo":
        if beta is None or lengths is None or label_smoothing != 0:
            raise ValueError("ipo needs beta and the lengths of chosen and rejected, and has no label smoothing")
        tokens = lengths.clamp(min=1).to(chosen)
        return ((chosen / tokens[0] - rejected / tokens[1]) / beta - 0.5 / beta) ** 2
    raise ValueError(f"preference loss is {loss!r}; allowed: sigmoid, ipo")


def multi_preference_loss(losses: Tensor, weights: Tensor) -> Tensor:
    """Multi-DPO, sum_i alpha_i L_DPO(reference i): the baseline of arXiv 2405.16388 that mixes losses, not references.

    Args:
        losses: (K, N) `preference_loss` of every pair against each single reference.
        weights: (K,) alpha on the simplex. A reference with weight 0 is dropped, whatever its loss.

    Returns:
        (N,) loss per pair.

    Raises:
        ValueError: weights that do not fit.
    """
    weights = checked_weights(weights, losses)
    return torch.where(weights > 0, weights * losses, torch.zeros_like(losses)).sum(0)
