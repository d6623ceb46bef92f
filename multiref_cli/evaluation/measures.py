"""Measures of a policy's samples: pass@k, avg@k, and a win rate that length cannot buy (numpy only)."""

import math
from collections.abc import Collection

import numpy as np


def scorers_among(metrics: Collection[str]) -> list[str]:
    """Of measured metrics those that say how good a policy is: what scored responses, the gold reward last; without
    any, how held-out pairs rank."""
    names = sorted(name.removeprefix("objective/") for name in metrics if name.startswith("objective/"))
    names = names or [name for name in ("reward", "gold", "accuracy", "ranking_accuracy") if name in metrics]
    return sorted(names, key=lambda name: ("gold" in name, name))


def pass_at_k(correct: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Return the unbiased estimate of the chance that one of k samples is right, for every prompt.

    Equation: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    Args:
        correct: (P,) right samples c of each prompt, 0 to n.
        samples: n, drawn for each prompt.
        k: 1 to n.

    Returns:
        (P,) estimates.

    Raises:
        ValueError: k or a count out of range.
    """
    counts = np.asarray(correct, dtype=int)
    if not 1 <= k <= samples or counts.min(initial=0) < 0 or counts.max(initial=0) > samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= {samples} samples and between 0 and {samples} right ones")
    return np.array([1 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in counts])


def avg_at_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the unbiased estimate of the mean score of k samples, for every prompt: the mean of all n of them.

    Args:
        scores: (P, n) one score a sample.
        k: 1 to n.

    Returns:
        (P,) estimates; they do not depend on k.

    Raises:
        ValueError: k out of range.
    """
    table = np.asarray(scores, dtype=np.float64)
    if not 1 <= k <= table.shape[1]:
        raise ValueError(f"avg@{k} needs 1 <= k <= {table.shape[1]} samples")
    return table.mean(1)


def bits_per_byte(logps: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
    """Return the bits that a model needs for a byte of some texts, as one value a text with that mean.

    Equation: -sum_i log p_i / (ln 2 sum_i bytes_i); a model's tokens play no part in it. Each text's value is the ratio
    plus its influence on it, (bits_i - ratio bytes_i) / mean bytes, so that the values' spread gives the ratio's
    standard error (delta method).

    Args:
        logps: (N,) log-probabilities of whole texts, nats, end tokens included.
        sizes: (N,) their bytes in UTF-8.

    Returns:
        (N,) values; None where the texts have no byte.
    """
    bits, counts = -np.asarray(logps, dtype=np.float64) / math.log(2), np.asarray(sizes, dtype=np.float64)
    if counts.sum() == 0:
        return None
    ratio = bits.sum() / counts.sum()
    return ratio + (bits - ratio * counts) / counts.mean()


def length_controlled_wins(preferences: np.ndarray, length_differences: np.ndarray) -> np.ndarray | None:
    """Return the win rate that is left when both responses are equally long, as one value a prompt with that mean.

    Equation: P(win) = sigmoid(a + b tanh(d / sd(d))), a and b by maximum likelihood; the rate is sigmoid(a)
    (Dubois et al. 2024, arXiv 2404.04475, without their terms for the prompt's difficulty; d is not centered, so
    that 0 means equal length). Each prompt's value is the rate plus P times its influence on it, so that the values'
    spread gives the rate's standard error (the sandwich estimate, prompts as the unit). At equal lengths they are the
    plain preferences.

    Args:
        preferences: (P, S) probability that the policy's response is preferred, sigmoid of the difference of a
            Bradley-Terry reward, or 0 and 1.
        length_differences: (P, S) length of the policy's response minus the other's, in tokens.

    Returns:
        (P,) values; None where there is no finite maximum: length or the constant tells wins from losses without an
        error.
    """
    wins, differences = (np.asarray(x, dtype=np.float64) for x in (preferences, length_differences))
    spread = float(differences.std())
    columns = [np.ones_like(wins)] + ([np.tanh(differences / spread)] if spread > 0 else [])
    rows = np.stack(columns, -1)
    design, target, coefficients = rows.reshape(-1, len(columns)), wins.reshape(-1), np.zeros(len(columns))
    for _ in range(100):
        chance = 1 / (1 + np.exp(-design @ coefficients))
        curvature = design.T @ (design * (chance * (1 - chance))[:, None])
        if np.linalg.cond(curvature) > 1e12 or np.abs(coefficients).max() > 30:
            return None
        step = np.linalg.solve(curvature, design.T @ (target - chance))
        # Newton overshoots where the chances are near 0 or 1.
        coefficients = coefficients + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < 1e-10:
            rate = 1 / (1 + math.exp(-coefficients[0]))
            pulls = (rows * (target - chance).reshape(wins.shape)[..., None]).sum(1)
            return rate + rate * (1 - rate) * len(wins) * np.linalg.solve(curvature, pulls.T)[0]
    return None
