"""Autoregressive trees: small vocabularies and lengths where sequence-level and token-level answers can be enumerated.

A model is a list of T tensors; the t-th holds the conditionals of all V^t prefixes in base-V order. Sequence s_1..s_T
has index sum_t s_t V^(T - t), so the children of prefix p at depth t are p V + v at depth t + 1.
"""

import numpy as np
import torch
from torch import Tensor

from multiref_cli.objectives.mixing import power_mean, token_power_mean
from multiref_cli.theory.exact import solve

Tree = list[Tensor]


def random_trees(rng: np.random.Generator, count: int, vocabulary: int, length: int, distance: float) -> Tree:
    """K random autoregressive models around a common one.

    Args:
        rng: source of randomness.
        count: K.
        vocabulary: V.
        length: T.
        distance: standard deviation of the logits around the common model, in nats; 0 makes all models equal.

    Returns:
        T tensors (K, V^t, V) of log-probabilities.
    """
    tree = []
    for depth in range(length):
        shape = (vocabulary**depth, vocabulary)
        common, own = rng.standard_normal(shape), rng.standard_normal((count, *shape))
        tree.append(torch.log_softmax(torch.from_numpy(common + distance * own), -1))
    return tree


def sequence_logps(tree: Tree) -> Tensor:
    """Log-probability of every sequence; tree of (..., V^t, V) -> (..., V^T)."""
    total = torch.zeros_like(tree[0][..., 0, :1])
    for level in tree:
        total = (total.unsqueeze(-1) + level).flatten(-2)
    return total


def conditionals(log_mass: Tensor, vocabulary: int) -> Tree:
    """Autoregressive form of any distribution over sequences, by looking ahead: p(v | s) = W(s v) / W(s).

    W(s) is the mass of all sequences that start with s, a backward sum: what a step-by-step sampler must know about
    the future. For M_0 it is the look-ahead of the escort, for M_0 exp(r / beta) the soft value of the optimum.

    Args:
        log_mass: (..., V^T) log of unnormalized masses.
        vocabulary: V.

    Returns:
        T tensors (..., V^t, V) of log-probabilities.
    """
    tree: Tree = []
    while log_mass.shape[-1] > 1:
        level = log_mass.unflatten(-1, (-1, vocabulary))
        log_mass = torch.logsumexp(level, -1)
        tree.insert(0, level - log_mass.unsqueeze(-1))
    return tree


def sequence_mixed(tree: Tree, weights: Tensor, order: float) -> Tensor:
    """Unnormalized log M_A of whole sequences, what the theorems speak of; tree of (K, V^t, V) -> (V^T,)."""
    return power_mean(sequence_logps(tree), weights, order)


def token_mixed(tree: Tree, weights: Tensor, order: float) -> tuple[Tensor, Tree]:
    """Token-level mixed reference: the mean of the conditionals, normalized at every state.

    Args:
        tree: T tensors (K, V^t, V).
        weights: (K,) alpha.
        order: A of the mean.

    Returns:
        (V^T,) normalized log-probabilities of sequences, and T tensors (V^t,) of log F_t.
    """
    normalizers = [torch.logsumexp(power_mean(level, weights, order), -1) for level in tree]
    mixed = [token_power_mean(level, f.unsqueeze(-1), weights, order) for level, f in zip(tree, normalizers)]
    return sequence_logps(mixed), normalizers


def posterior_mixture(tree: Tree, weights: Tensor) -> Tree:
    """Conditionals of the arithmetic mixture: sum_i w_i(s) pi_i(. | s), w_i(s) ~ alpha_i pi_i(s) a running posterior.

    Args:
        tree: T tensors (K, V^t, V).
        weights: (K,) alpha, all positive.

    Returns:
        T tensors (V^t, V) of log-probabilities, equal to `conditionals(sequence_mixed(tree, weights, 1), V)`.
    """
    posterior = weights.log().unsqueeze(-1)
    mixed = []
    for level in tree:
        share = posterior - torch.logsumexp(posterior, 0)
        mixed.append(torch.logsumexp(share.unsqueeze(-1) + level, 0))
        posterior = (posterior.unsqueeze(-1) + level).flatten(-2)
    return mixed


def token_level_policy(tree: Tree, weights: Tensor, reward: Tensor, beta: float, order: float) -> Tensor:
    """The optimum towards the token-normalized mean: what a runner that mixes per token converges to.

    Args:
        tree: T tensors (K, V^t, V).
        weights: (K,) alpha.
        reward: (V^T,) of whole sequences.
        beta: weight of the divergence.
        order: A of mean and divergence.

    Returns:
        (V^T,) probabilities.
    """
    return solve(token_mixed(tree, weights, order)[0], reward, beta, order).policy


def disagreement(tree: Tree, weights: Tensor, policy: Tensor) -> float:
    """Mean over sequences of -sum_t log F_t, the reference disagreement of the geometric mean along a sequence.

    Args:
        tree: T tensors (K, V^t, V).
        weights: (K,) alpha.
        policy: (V^T,) probabilities of the sequences.

    Returns:
        float >= 0, in nats per sequence; 0 exactly where the references agree.
    """
    mixed, _ = token_mixed(tree, weights, 0.0)
    return float((policy * (mixed - sequence_mixed(tree, weights, 0.0))).sum())
