"""Random finite problems: K references over Y responses, a reward, and the seeds that make them repeatable."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multiref_cli.seeding import derive


@dataclass(frozen=True)
class Bandit:
    """A batch of problems that share K, Y, alpha and beta.

    references (B, K, Y) probabilities; weights (K,) alpha; reward (B, Y) in [0, reward_max]; beta > 0.
    """

    references: Tensor
    weights: Tensor
    reward: Tensor
    beta: float
    reward_max: float


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A stream of random numbers that depends on the seed and on what it is for, never on what ran before.

    Args:
        seed: the study's seed.
        names: what the numbers are for.

    Returns:
        numpy Generator; scalar or array draws.
    """
    return np.random.default_rng(derive(seed, *names))


def random_references(
    rng: np.random.Generator, shape: tuple[int, int, int], concentration: float, absent: float = 0.0
) -> Tensor:
    """Dirichlet references, optionally with responses outside of their support; every row shares response 0.

    Args:
        rng: source of randomness.
        shape: (B, K, Y).
        concentration: of the Dirichlet law; below 1 the references are far apart, above they are alike.
        absent: share of responses that a reference gives no probability at all, in [0, 1).

    Returns:
        (B, K, Y) float64 probabilities.
    """
    # exp-normalize of log-gamma draws never underflows to an all-zero row; the floor keeps accidental zeros out.
    draws = np.maximum(rng.gamma(concentration, size=shape), 1e-30)
    gone = rng.random(shape) < absent
    gone[..., 0] = False
    draws = np.where(gone, 0.0, draws)
    return torch.from_numpy(draws / draws.sum(-1, keepdims=True))


def random_bandit(rng: np.random.Generator, problems: int, reward_max: float | None = None) -> Bandit:
    """Draw a batch of problems of one random shape: K, Y, alpha, beta, spread and R_max are drawn as well.

    Args:
        rng: source of randomness.
        problems: B, the size of the batch (B, ...).
        reward_max: R_max, a scalar; drawn from 0.25 to 4 if not given.

    Returns:
        Bandit with 2 to 5 references, 3 to 24 responses, beta from 0.03 to 3; at times one alpha is exactly zero.
    """
    count, responses = int(rng.integers(2, 6)), int(rng.integers(3, 25))
    weights = rng.dirichlet(np.ones(count))
    if rng.random() < 0.2:
        weights[int(rng.integers(count))] = 0.0
        weights /= weights.sum()
    largest = reward_max if reward_max is not None else float(4.0 ** rng.uniform(-1, 1))
    references = random_references(rng, (problems, count, responses), float(10.0 ** rng.uniform(-0.5, 1)))
    reward = torch.from_numpy(rng.random((problems, responses)) * largest)
    return Bandit(references, torch.from_numpy(weights), reward, float(10.0 ** rng.uniform(-1.5, 0.5)), largest)


def pushed_apart(distance: float, responses: int, center: float = 0.5, width: float = 0.12) -> Tensor:
    """Two bell-shaped references on a line of responses, `distance` apart: the picture-book problem.

    Args:
        distance: between the two centers, as a share of the line, 0 to 1.
        responses: Y.
        center: of the pair, 0 to 1.
        width: standard deviation of each bell, as a share of the line.

    Returns:
        (2, Y) float64 probabilities.
    """
    line = torch.linspace(0.0, 1.0, responses, dtype=torch.float64)
    centers = torch.tensor([center - distance / 2, center + distance / 2], dtype=torch.float64)
    return torch.softmax(-0.5 * ((line - centers[:, None]) / width) ** 2, -1)
