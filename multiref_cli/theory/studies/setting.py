"""The small preference problem that the sampling studies share: two bells of references and a linear reward."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multiref_cli.theory import bounds, exact
from multiref_cli.theory.bandit import generator, pushed_apart
from multiref_cli.theory.complexity import pair_information, predicted_gap
from multiref_cli.theory.settings import Laboratory


@dataclass(frozen=True)
class Setting:
    """references (K, Y), weights (K,), features (Y, d), theta (d,), reward (Y,) = features theta, beta, R_max."""

    references: Tensor
    weights: Tensor
    features: Tensor
    theta: Tensor
    reward: Tensor
    beta: float
    reward_max: float

    def sampling(self, order: float) -> Tensor:
        """Law of one response of a pair, the normalized mixed reference; (Y,)."""
        return bounds.normalized(exact.log_mixed(self.references, self.weights, order))

    def policy(self, reward: Tensor, order: float) -> Tensor:
        """Plug-in policies for estimated rewards; (..., Y) -> (..., Y)."""
        references = self.references.expand(*reward.shape[:-1], *self.references.shape)
        return exact.optimal_policy(references, self.weights, reward, self.beta, order)

    def gap(self, policy: Tensor, order: float) -> Tensor:
        """Sub-optimality gap in the regularized objective; (..., Y) -> (...)."""
        args = (self.references, self.weights, self.reward, self.beta, order)
        return exact.value(*args) - exact.objectives(policy, *args)

    def coverage(self, order: float) -> float:
        """Coverage constant over all rewards in [0, R_max], as a float."""
        mixed = exact.log_mixed(self.references, self.weights, order)
        return float(mixed.exp().sum() * bounds.box_ratio(mixed, self.beta, order, self.reward_max))

    def predicted(self, order: float, flip: float = 0.0) -> float:
        """Derived limit of n times the mean gap for the linear class, as a float."""
        found = exact.solution(self.references, self.weights, self.reward, self.beta, order)
        information = pair_information(self.sampling(order), self.reward, self.features, flip)
        return predicted_gap(found, information, self.features, self.beta, order)


def simplex(alpha: float | list[float]) -> Tensor:
    """alpha as weights: one number a is [a, 1 - a]; (K,) float64."""
    values = [float(alpha), 1.0 - float(alpha)] if isinstance(alpha, (int, float)) else [float(a) for a in alpha]
    return torch.tensor(values, dtype=torch.float64)


def bells(count: int, distance: float, responses: int, width: float = 0.2) -> Tensor:
    """K bell-shaped references with centers evenly spread over `distance` around the middle; (K, Y)."""
    if count == 2:
        return pushed_apart(distance, responses, width=width)
    centers = torch.linspace(0.5 - distance / 2, 0.5 + distance / 2, count, dtype=torch.float64)
    return torch.cat([pushed_apart(0.0, responses, float(c), width)[:1] for c in (centers if count > 1 else [0.5])])


def linear_setting(lab: Laboratory, references: Tensor | None = None, weights: Tensor | None = None) -> Setting:
    """The common problem of a study: features and theta from the seed, rewards scaled to span [0, R_max].

    Args:
        lab: the laboratory's settings.
        references: (K, Y) instead of the two bells.
        weights: (K,) instead of alpha.

    Returns:
        Setting; the reward is centered, which changes neither preferences nor policies: its span is R_max.
    """
    weights = simplex(lab.alpha) if weights is None else weights
    references = bells(len(weights), lab.distance, lab.responses) if references is None else references
    rng = generator(lab.seed, "setting", references.shape[-1], lab.dimension)
    features = torch.from_numpy(rng.standard_normal((references.shape[-1], lab.dimension)))
    features = features - features.mean(0)
    theta = torch.from_numpy(rng.standard_normal(lab.dimension))
    reward = features @ theta
    scale = lab.reward_max / float(reward.max() - reward.min())
    return Setting(references, weights, features, scale * theta, scale * reward, lab.beta, lab.reward_max)


def tabular(setting: Setting, mass: float) -> Setting:
    """The same rewards with one free parameter a response, and `mass` on the best one; features (Y, Y - 1)."""
    responses = len(setting.reward)
    best = torch.nn.functional.one_hot(setting.reward.argmax(), responses).double()
    rest = setting.references * (1 - best)
    features = torch.eye(responses, dtype=torch.float64)[:, 1:]
    reward = setting.reward - setting.reward[0]
    rare = mass * best + (1 - mass) * rest / rest.sum(-1, keepdim=True)
    return replace(setting, references=rare, features=features, theta=reward[1:], reward=reward)
