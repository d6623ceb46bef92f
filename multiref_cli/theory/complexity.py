"""Reward models from n preference pairs: Bradley-Terry maximum likelihood on finite and linear classes, and its gaps.

Two independent responses y1, y2 ~ q are compared, y1 wins with probability sigma(r(y1) - r(y2)). All that matters of a
data set is the matrix of counts (winner, loser), one multinomial draw: a study of any n costs the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory.exact import Solution
from multiref_cli.theory.sensitivity import reward_jacobian

PRIOR = 1e-3  # precision of the Gaussian prior that keeps a linear fit finite when the pairs can be separated


def label_probability(reward: Tensor, flip: float = 0.0) -> Tensor:
    """P(a wins against b) = (1 - 2 p) sigma(r_a - r_b) + p with labels flipped with probability p.

    Args:
        reward: (..., Y).
        flip: p in [0, 1/2).

    Returns:
        (..., Y, Y) probabilities, [a, b] and [b, a] sum to one.
    """
    return (1 - 2 * flip) * torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2)) + flip


def preference_counts(
    rng: np.random.Generator, sampling: Tensor, reward: Tensor, pairs: int, draws: int, flip: float = 0.0
) -> Tensor:
    """Draw data sets of `pairs` labeled pairs, both responses from `sampling`.

    Args:
        rng: source of randomness.
        sampling: (Y,) or (draws, Y) probabilities of a response; (draws, Y) gives each data set its own.
        reward: (Y,) or (draws, Y) true reward.
        pairs: n.
        draws: D, number of data sets.
        flip: probability that a label is turned round.

    Returns:
        (D, Y, Y) float64 counts of (winner, loser); the diagonal is zero: equal responses say nothing.
    """
    joint = 2 * sampling.unsqueeze(-1) * sampling.unsqueeze(-2) * label_probability(reward, flip)
    joint = joint.flatten(-2)
    cells = (joint / joint.sum(-1, keepdim=True)).numpy()
    size = (draws, cells.shape[-1]) if cells.ndim == 1 else cells.shape
    counts = torch.from_numpy(rng.multinomial(pairs, np.broadcast_to(cells, size)).astype(np.float64))
    counts = counts.unflatten(-1, (reward.shape[-1], -1))
    return counts - torch.diag_embed(torch.diagonal(counts, dim1=-2, dim2=-1))


def finite_estimate(counts: Tensor, rewards: Tensor, flip: float = 0.0) -> Tensor:
    """Maximum-likelihood member of a finite class of rewards.

    Args:
        counts: (..., D, Y, Y) pairs won and lost.
        rewards: (..., F, Y) the class.
        flip: known probability of a turned label.

    Returns:
        (..., D) index of the member; the first one if several are equally likely.
    """
    likelihood = label_probability(rewards, flip).log().flatten(-2)
    return (counts.flatten(-2) @ likelihood.transpose(-1, -2)).argmax(-1)


def linear_estimate(counts: Tensor, features: Tensor, flip: float = 0.0, steps: int = 40) -> Tensor:
    """Maximum likelihood of theta in r = features theta, by Fisher scoring for all data sets at once.

    Deviation from plain maximum likelihood: a Gaussian prior of precision 1e-3, so that separable data have a finite
    answer; its weight against n pairs is 1e-3 / n.

    Args:
        counts: (D, Y, Y) pairs won and lost.
        features: (Y, d).
        flip: known probability of a turned label.
        steps: most steps.

    Returns:
        (D, d) theta.
    """
    first, second = torch.triu_indices(len(features), len(features), 1)
    difference = features[first] - features[second]
    won, lost = counts[:, first, second], counts[:, second, first]
    theta = torch.zeros(len(counts), features.shape[1], dtype=counts.dtype)
    prior = PRIOR * torch.eye(features.shape[1], dtype=counts.dtype)
    for _ in range(steps):
        plain = torch.sigmoid(theta @ difference.T)
        p = ((1 - 2 * flip) * plain + flip).clamp(1e-15, 1 - 1e-15)  # separated pairs: 0 / 0 at p = 1
        slope = (1 - 2 * flip) * plain * (1 - plain)
        gradient = ((won / p - lost / (1 - p)) * slope) @ difference - PRIOR * theta
        information = torch.einsum("dp,pi,pj->dij", (won + lost) * slope**2 / (p * (1 - p)), difference, difference)
        step = torch.linalg.solve(information + prior, gradient)
        step = step * (2.0 / step.norm(dim=-1, keepdim=True).clamp(min=2.0))  # a long step is an overshoot
        theta = theta + step
        if float(step.abs().max()) < 1e-10:
            break
    return theta


def pair_information(sampling: Tensor, reward: Tensor, features: Tensor, flip: float = 0.0) -> Tensor:
    """Fisher information about theta in one labeled pair.

    Args:
        sampling: (Y,) probabilities of a response.
        reward: (Y,) true reward.
        features: (Y, d).
        flip: probability of a turned label.

    Returns:
        (d, d).
    """
    p = label_probability(reward, flip)
    plain = label_probability(reward)
    weight = sampling[:, None] * sampling * ((1 - 2 * flip) * plain * (1 - plain)) ** 2 / (p * (1 - p))
    difference = features[:, None] - features
    return torch.einsum("ab,abi,abj->ij", weight, difference, difference)


def predicted_gap(found: Solution, information: Tensor, features: Tensor, beta: float, order: float) -> float:
    """Derived: n times the mean sub-optimality gap tends to trace(I^-1 X' H X) / 2, for every order A.

    H = d pi* / d r is the Hessian of the optimal value, I the information of a pair: the gap is quadratic in the
    error of theta, whose covariance is I^-1 / n. Hence slope -1 for every A, forward KL included.

    Args:
        found: the exact optimum (Y,).
        information: (d, d) I.
        features: (Y, d) X.
        beta: weight of the divergence.
        order: A.

    Returns:
        float, reward units times pairs.
    """
    curvature = features.T @ reward_jacobian(found, beta, order) @ features
    return 0.5 * float(torch.trace(torch.linalg.lstsq(information, curvature).solution))


@dataclass(frozen=True)
class Slope:
    """A log-log slope with a 95 % bootstrap interval, scalars."""

    slope: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.slope:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def log_slope(n: np.ndarray, gaps: np.ndarray, rng: np.random.Generator, resamples: int = 1000) -> Slope:
    """Least-squares slope of log mean gap in log n; data sets are resampled for the interval.

    Args:
        n: (N,) numbers of pairs.
        gaps: (N, D) gap of every data set.
        rng: for the bootstrap.
        resamples: number of bootstrap samples.

    Returns:
        Slope with the 2.5 and 97.5 percentiles, scalars.
    """
    x = np.log(n) - np.log(n).mean()
    shares = rng.multinomial(gaps.shape[1], np.full(gaps.shape[1], 1 / gaps.shape[1]), (resamples, len(n)))
    means = np.einsum("rnd,nd->rn", shares, gaps) / gaps.shape[1]
    slopes = np.log(means) @ x / (x @ x)
    low, high = np.percentile(slopes, [2.5, 97.5])
    return Slope(float(np.log(gaps.mean(1)) @ x / (x @ x)), float(low), float(high))


def multiscale_class(rng: np.random.Generator, reward: Tensor, reward_max: float, size: int, scales: int) -> Tensor:
    """A finite class around the truth with members at geometrically falling distances, the truth first.

    With one distance a finite class is solved exactly after finitely many pairs and the gap falls exponentially; with
    members at every distance the maximum-likelihood error follows n^(-1/2) down to the smallest one.

    Args:
        rng: source of randomness.
        reward: (Y,) true reward in [0, R_max].
        reward_max: R_max.
        size: |R|, the truth included.
        scales: number of halvings.

    Returns:
        (|R|, Y) rewards in [0, R_max].
    """
    direction = torch.from_numpy(rng.uniform(-1, 1, (size - 1, reward.shape[-1])))
    scale = 0.5 ** torch.from_numpy(rng.uniform(0, scales, (size - 1, 1)))
    rivals = (reward + reward_max * scale * direction).clamp(0.0, reward_max)
    return torch.cat([reward[None], rivals])


def two_stage_counts(rng: np.random.Generator, first: Tensor, policies: Tensor, reward: Tensor, pairs: int) -> Tensor:
    """Second stage of two-stage sampling (arXiv 2411.04625): pairs from the policy fitted to the first stage.

    Args:
        rng: source of randomness.
        first: (D, Y, Y) counts of the first stage.
        policies: (D, Y) plug-in policy of every data set.
        reward: (Y,) true reward.
        pairs: n of the second stage.

    Returns:
        (D, Y, Y) counts of both stages together.
    """
    rewards = reward.expand(len(policies), -1)
    return first + preference_counts(rng, policies, rewards, pairs, len(policies))
