"""Every inequality of the laboratory as left <= right over a batch of random problems; a violation is a finding."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import bounds, exact
from multiref_cli.theory.bandit import Bandit

ORDERS = (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0)
TOLERANCE = 1e-12  # rounding allowed, relative to the larger side and to one reward unit


@dataclass(frozen=True)
class Check:
    """One inequality left <= right on every problem of a batch; left and right (B,), `source` names the theorem."""

    name: str
    source: str
    left: Tensor
    right: Tensor

    def violations(self) -> int:
        """Number of problems on which left exceeds right by more than rounding, as an int scalar."""
        scale = torch.maximum(self.left.abs(), self.right.abs()).clamp(min=1.0)
        return int((self.left - self.right > TOLERANCE * scale).sum())


def exact_checks(bandit: Bandit, rng: np.random.Generator) -> Iterator[Check]:
    """Inequalities on exact solutions: ordering of the means, optimality, Hoelder, convexity in alpha, lambda.

    Args:
        bandit: a batch of B problems.
        rng: for competitors and second points.

    Yields:
        Check with sides of shape (B,).
    """
    means = [exact.log_mixed(bandit.references, bandit.weights, a) for a in sorted(ORDERS)]
    for low, high, a, b in zip(means, means[1:], sorted(ORDERS), sorted(ORDERS)[1:]):
        yield Check(f"M_{a:g} ≤ M_{b:g} pointwise", "power means", (low - high).amax(-1).exp(), torch.ones(len(low)))
    yield Check("F = sum M_0 ≤ 1", "Definition 3.1", means[2].logsumexp(-1).exp(), torch.ones(len(means[2])))
    rivals = torch.from_numpy(rng.dirichlet(np.ones(bandit.reward.shape[-1]), len(bandit.reward)))
    other = torch.from_numpy(rng.dirichlet(np.ones(len(bandit.weights))))
    corners = torch.eye(len(bandit.weights), dtype=torch.float64)
    for a in ORDERS:
        args = (bandit.reward, bandit.beta, a)
        best = exact.value(bandit.references, bandit.weights, *args)
        source = {0.0: "Theorem 5.1", 1.0: "Theorem 6.1"}.get(a, "derived")
        rival = exact.objectives(rivals, bandit.references, bandit.weights, *args)
        yield Check(f"no policy beats the optimum, A = {a:g}", source, rival, best)
        near = exact.optimal_policy(bandit.references, bandit.weights, bandit.reward * 1.05, *args[1:])
        near = exact.objectives(near, bandit.references, bandit.weights, *args)
        yield Check(f"no near policy beats the optimum, A = {a:g}", source, near, best)
        singles = torch.stack([exact.value(bandit.references, corner, *args) for corner in corners], -1)
        source = {0.0: "Appendix D.3", 1.0: "Appendix E.2"}.get(a, "derived")
        yield Check(f"value ≤ mean of single values, A = {a:g}", source, best, (singles * bandit.weights).sum(-1))
        second = exact.value(bandit.references, other, *args)
        middle = exact.value(bandit.references, 0.5 * (bandit.weights + other), *args)
        yield Check(f"value convex in alpha, A = {a:g}", "derived (Remark D.4)", middle, 0.5 * (best + second))


def forward_checks(bandit: Bandit) -> Iterator[Check]:
    """The forward-KL multiplier and bias: max r < lambda <= max r + beta, E[r] = lambda - beta, bias <= min(beta, R).

    Args:
        bandit: a batch of B problems.

    Yields:
        Check with sides of shape (B,).
    """
    found = exact.solution(bandit.references, bandit.weights, bandit.reward, bandit.beta, 1.0)
    reachable = exact.support(bandit.references, bandit.weights, 1.0)
    best = bandit.reward.masked_fill(~reachable, -torch.inf).amax(-1)
    multiplier, mixed = found.normalizer + bandit.beta, exact.log_mixed(bandit.references, bandit.weights, 1.0).exp()
    yield Check("max r < λ", "Theorem 6.1", best, multiplier)
    yield Check("λ ≤ max r + β", "Theorem 6.1", multiplier, best + bandit.beta)
    expected = (found.policy * bandit.reward).sum(-1)
    yield Check("E[r] = λ - β", "derived", (expected - found.normalizer).abs(), torch.zeros(len(best)))
    apart = torch.xlogy(mixed, mixed / found.policy.clamp(min=1e-300)).sum(-1)
    regularized = torch.full_like(best, bounds.fkl_bias_paper(bandit.beta, bandit.reward_max))
    yield Check("β KL(M‖π) ≤ β log(1 + R/β)", "Eq. (5), bias", bandit.beta * apart, regularized)
    limit = bounds.fkl_bias_derived(bandit.beta, bandit.reward_max)
    yield Check("forward-KL bias ≤ min(beta, R)", "derived", best - expected, torch.full_like(best, limit))


def surrogate_checks(bandit: Bandit) -> Iterator[Check]:
    """MRPO's surrogate: a lower bound of the reverse-KL objective, and how far its policy can be from the optimum.

    Args:
        bandit: a batch of B problems.

    Yields:
        Check with sides of shape (B,).
    """
    args = (bandit.references, bandit.weights, bandit.reward, bandit.beta)
    policy = exact.surrogate_policy(*args, mean_order=-1.0, score_order=0.0)
    harmonic, geometric = (exact.log_mixed(*args[:2], order) for order in (-1.0, 0.0))
    surrogate = (policy * (bandit.reward - bandit.beta * (policy.log() - harmonic))).sum(-1)
    truth = exact.objectives(policy, *args, 0.0)
    yield Check("MRPO's surrogate ≤ objective", "2405.16388, Eq. 13", surrogate, truth)
    spread = (geometric - harmonic).amax(-1) - (geometric - harmonic).amin(-1)
    yield Check("MRPO's regret ≤ β range(log M_0/M_-1)", "derived", exact.regret(policy, *args, 0.0),
                bandit.beta * spread)  # fmt: skip


def error_checks(bandit: Bandit, rng: np.random.Generator) -> Iterator[Check]:
    """What a reward error costs: the deterministic cores of Theorems 5.2, 5.3, 6.2 and the derived rate for each A.

    Args:
        bandit: a batch of B problems.
        rng: for the wrong reward.

    Yields:
        Check with sides of shape (B,).
    """
    args = (bandit.references, bandit.weights, bandit.reward, bandit.beta)
    noise = torch.from_numpy(rng.random(bandit.reward.shape)) * bandit.reward_max
    near = float(rng.uniform(0, 1))
    wrong = (1 - near) * bandit.reward + near * noise
    error = wrong - bandit.reward
    for a in (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0):
        mixed = exact.log_mixed(*args[:2], a)
        sampling = bounds.normalized(mixed)
        squared = bounds.squared_difference(sampling, error)
        plug_in = exact.optimal_policy(*args[:2], wrong, bandit.beta, a)
        gap = exact.regret(plug_in, *args, a)
        limit = bounds.quadratic_regret_bound(mixed, squared, bandit.beta, a, bandit.reward_max)
        yield Check(f"regret ≤ F U^(1+A) E / 4β, A = {a:g}", "derived", gap, limit)
        coverage = torch.logsumexp(mixed, -1).exp() * bounds.box_ratio(mixed, bandit.beta, a, bandit.reward_max)
        moved = (exact.value(*args, a) - exact.value(*args[:2], wrong, bandit.beta, a)).abs()
        yield Check(f"value moves ≤ max error, A = {a:g}", "derived (D.5, E)", moved, error.abs().amax(-1))
        if a == 0:
            yield Check("gap ≤ γ C E", "Theorem 5.2, core", gap, bounds.rkl_gap(coverage, squared, bandit.beta))
            best = exact.optimal_policy(*args, a)
            lost = ((best - plug_in) * bandit.reward).sum(-1).abs()
            limit = bounds.rkl_reward_gap(coverage, squared, bandit.beta, bandit.reward_max)
            yield Check("reward gap ≤ γ R √(C E / 8)", "Theorem 5.3, core", lost, limit)
            swing = (error.amax(-1) - error.amin(-1)) / (2 * bandit.beta)
            yield Check("policy moves ≤ range / 2β", "derived (D.5)", (best - plug_in).abs().sum(-1), swing)
        if a == 1:
            yield Check("gap ≤ √(2 C E)", "Theorem 6.2, core", gap, bounds.fkl_gap(coverage, squared))


def coverage_checks(bandit: Bandit, rng: np.random.Generator) -> Iterator[Check]:
    """Coverage constants (65, 66): no policy of the KL ball exceeds them, and the box lies inside its own ball.

    Args:
        bandit: a batch of B problems.
        rng: for policies inside the ball.

    Yields:
        Check with sides of shape (B,).
    """
    for order, number in ((0.0, "65"), (1.0, "66")):
        sampling = bounds.normalized(exact.log_mixed(bandit.references, bandit.weights, order))
        policy = torch.softmax(sampling.log() + torch.from_numpy(rng.normal(0, 2, sampling.shape)), -1)
        one, two = (policy, sampling) if order == 0 else (sampling, policy)
        radius = torch.xlogy(one, one / two.clamp(min=1e-300)).sum(-1)
        ratio = (policy / sampling.clamp(min=1e-300)).amax(-1)
        limit = bounds.ball_coverage(sampling, radius, forward=order == 1)
        yield Check(f"pi / q ≤ C({number})", f"Eq. {number}, closed form derived", ratio, limit)
