"""General preferences that are learned while playing (arXiv 2602.23116): greedy sampling, and explore-then-commit.

Preferences P[a, b] = sigma(phi_a' Theta phi_b) with Theta skew of rank 2r: the logit is linear in the entries of Theta
above the diagonal, so maximum likelihood is a logistic regression.
"""

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import nash
from multiref_cli.theory.complexity import PRIOR


def skew_features(features: Tensor) -> Tensor:
    """What the logit of a preference is linear in: phi_ai phi_bj - phi_aj phi_bi for i < j.

    Args:
        features: (Y, d) phi.

    Returns:
        (Y, Y, d (d - 1) / 2), turned round in sign with a and b.
    """
    first, second = torch.triu_indices(features.shape[1], features.shape[1], 1)
    one, other = features[:, None], features[None]
    return one[..., first] * other[..., second] - one[..., second] * other[..., first]


def game_counts(rng: np.random.Generator, policies: Tensor, preferences: Tensor, pairs: int, draws: int) -> Tensor:
    """Draw data sets of pairs of responses of one policy, labeled by the preferences.

    Args:
        rng: source of randomness.
        policies: (Y,) or (D, Y) probabilities.
        preferences: (Y, Y) P.
        pairs: n of each data set.
        draws: D.

    Returns:
        (D, Y, Y) counts of (winner, loser), without pairs of equal responses, which say nothing.
    """
    policies = policies.expand(draws, -1)
    cells = (2 * policies.unsqueeze(-1) * policies.unsqueeze(-2) * preferences).flatten(1)
    counts = torch.from_numpy(rng.multinomial(pairs, (cells / cells.sum(-1, keepdim=True)).numpy()).astype(np.float64))
    counts = counts.unflatten(-1, preferences.shape)
    return counts - torch.diag_embed(torch.diagonal(counts, dim1=-2, dim2=-1))


def fitted_preferences(counts: Tensor, features: Tensor, steps: int = 40) -> Tensor:
    """Maximum likelihood of the preferences by Newton's method, for all data sets at once.

    Deviation from plain maximum likelihood: a Gaussian prior of precision 1e-3, as for rewards.

    Args:
        counts: (D, Y, Y) pairs won and lost.
        features: (Y, Y, m) of `skew_features`.
        steps: most steps.

    Returns:
        (D, Y, Y) P.
    """
    first, second = torch.triu_indices(len(features), len(features), 1)
    design = features[first, second]
    won, lost = counts[:, first, second], counts[:, second, first]
    weights = torch.zeros(len(counts), design.shape[1], dtype=counts.dtype)
    prior = PRIOR * torch.eye(design.shape[1], dtype=counts.dtype)
    for _ in range(steps):
        chance = torch.sigmoid(weights @ design.T)
        gradient = (won - (won + lost) * chance) @ design - PRIOR * weights
        curvature = torch.einsum("dp,pi,pj->dij", (won + lost) * chance * (1 - chance), design, design)
        step = torch.linalg.solve(curvature + prior, gradient)
        step = step * (2.0 / step.norm(dim=-1, keepdim=True).clamp(min=2.0))  # a long step is an overshoot
        weights = weights + step
        if float(step.abs().max()) < 1e-10:
            break
    return torch.sigmoid(torch.einsum("abm,dm->dab", features, weights))


def equilibria(preferences: Tensor, references: Tensor, weights: Tensor, beta: float, order: float) -> Tensor:
    """Equilibrium of every game; (D, Y, Y) -> (D, Y)."""
    return torch.stack([nash.nash_equilibrium(p, references, weights, beta, order).policy for p in preferences])


def gaps(
    policies: Tensor, preferences: Tensor, references: Tensor, weights: Tensor, beta: float, order: float
) -> Tensor:
    """Dual gap of every policy in the true game; (D, Y) -> (D,), at least 0."""
    found = [nash.dual_gap(policy, preferences, references, weights, beta, order) for policy in policies]
    return torch.stack(found).clamp(min=0.0)


def greedy_regret(
    rng: np.random.Generator, preferences: Tensor, features: Tensor, start: Tensor, horizons: list[int], draws: int,
    references: Tensor, weights: Tensor, beta: float, order: float,
) -> Tensor:  # fmt: skip
    """Cumulative regret, the sum over rounds of the dual gap of what is played, of greedy sampling.

    Each round plays a pair of responses of the equilibrium of the preferences fitted to all rounds before; here it is
    computed anew whenever the rounds have doubled, so that a policy is played as long as all before it together.

    Args:
        rng: source of randomness.
        preferences: (Y, Y) true P.
        features: (Y, Y, m) of `skew_features`.
        start: (Y,) what the first rounds play.
        horizons: T, each twice the one before; the first is the number of rounds that `start` is played.
        draws: D runs.
        references: (K, Y) probabilities.
        weights: (K,) alpha.
        beta: weight of the divergence.
        order: A.

    Returns:
        (H, D) regret at every horizon.
    """
    args = (references, weights, beta, order)
    policies, regret, found = start.expand(draws, -1), torch.zeros(draws, dtype=start.dtype), []
    counts = torch.zeros(draws, *preferences.shape, dtype=start.dtype)
    for before, horizon in zip([0, *horizons], horizons):
        regret = regret + (horizon - before) * gaps(policies, preferences, *args)
        found.append(regret)
        counts = counts + game_counts(rng, policies, preferences, horizon - before, draws)
        policies = equilibria(fitted_preferences(counts, features), *args)
    return torch.stack(found)


def committed_regret(
    rng: np.random.Generator, preferences: Tensor, features: Tensor, start: Tensor, horizons: list[int], draws: int,
    references: Tensor, weights: Tensor, beta: float, order: float,
) -> Tensor:  # fmt: skip
    """Cumulative regret of explore-then-commit: `start` for sqrt(T) rounds, then the equilibrium of what they say.

    Args and Returns: as in `greedy_regret`; every horizon is a run of its own.
    """
    args, found = (references, weights, beta, order), []
    for horizon in horizons:
        explored = max(1, round(horizon**0.5))
        counts = game_counts(rng, start, preferences, explored, draws)
        policies = equilibria(fitted_preferences(counts, features), *args)
        before = explored * gaps(start[None], preferences, *args)
        found.append(before + (horizon - explored) * gaps(policies, preferences, *args))
    return torch.stack(found)
