"""The online penalty as a part of the reward of whole responses (`estimator=reward` and `clipped`)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from multiref_cli.config.schema import Estimator, Experiment, Term
from multiref_cli.objectives.divergence import is_clipped, total_score
from multiref_cli.objectives.penalty import calibrated_threshold, clipped_penalty


def reward_penalty(
    experiment: Experiment,
    passes: Iterable[tuple[tuple[Term, ...], Tensor]],
    policy: Tensor,
    mixed: Tensor,
    metrics: dict[str, float],
) -> Tensor:
    """Penalties that go into the reward; says in the metrics how large and how often clipped they are.

    Args:
        experiment: says how they are estimated.
        passes: the summands and the places among the B responses of every pass.
        policy: (B,) log pi of whole responses in nats.
        mixed: (R, B) log M of every summand.
        metrics: written into.

    Returns:
        (B,) the penalties.
    """
    routes: dict[tuple[Term, ...], list[Tensor]] = {}
    for terms, places in passes:
        routes.setdefault(terms, []).append(places)
    parts = [(terms, places := torch.cat(found), mixed[: len(terms), places]) for terms, found in routes.items()]
    penalty, far = torch.zeros_like(policy), torch.zeros_like(policy)
    if experiment.estimator is Estimator.clipped:
        ratios = [policy[places] - own for _, places, own in parts]
        every = torch.cat([one.flatten() for one in ratios])
        threshold = experiment.penalty.ratio_clip or calibrated_threshold(every)
        for terms, places, own in parts:
            penalty[places] = clipped_penalty(terms, policy[places], own, threshold)
        metrics["ratio_clip"] = threshold
        metrics["ratio_clip_fraction"] = float((every.abs() > threshold).double().mean())
    else:
        clip = experiment.penalty.score_clip
        for terms, places, own in parts:
            penalty[places] = total_score(terms, policy[places], own, clip)
            far[places] = is_clipped(terms, policy[places], own, clip).to(far)
        metrics["score_clip_fraction"] = float(far.mean())
    metrics["penalty"] = float(penalty.mean())
    return penalty
