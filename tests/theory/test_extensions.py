"""Clipped log-ratios and Nash equilibria."""

import pytest
import torch

from multiref_cli.theory import clipping, exact, nash
from multiref_cli.theory.bandit import generator, pushed_apart, random_references

WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)


def clipped_problem():
    references = pushed_apart(0.5, 30)
    return references, torch.from_numpy(generator(0, "clip").random(30))


def test_clipped_moments_are_those_of_samples():
    policy = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    log_ratio = torch.tensor([-3.0, 0.5, 4.0, -torch.inf], dtype=torch.float64)
    bias, variance = clipping.clipped_moments(policy, log_ratio, torch.tensor([1.0, 10.0], dtype=torch.float64))
    clipped = torch.tensor([-1.0, 0.5, 1.0], dtype=torch.float64)
    mean = 0.5 * -1 + 0.15 + 0.2
    assert float(bias[0]) == pytest.approx(mean - (-1.5 + 0.15 + 0.8)) and float(bias[1]) == pytest.approx(0.0)
    assert float(variance[0]) == pytest.approx(float((policy[:3] * clipped**2).sum()) - mean**2)


def test_bias_stays_below_its_bound_and_the_best_threshold_grows_with_rollouts():
    references, reward = clipped_problem()
    reference = exact.generalized_escort(references, WEIGHTS)
    policy = 0.97 * reference + 0.03 * exact.optimal_policy(references, WEIGHTS, reward, 0.05, 1.0)
    log_ratio, thresholds = (policy / reference).log(), torch.linspace(0.1, 12, 60, dtype=torch.float64)
    bias, _ = clipping.clipped_moments(policy, log_ratio, thresholds)
    assert (bias.abs() <= clipping.clip_bias_bound(policy, log_ratio, thresholds) + 1e-15).all()
    best = [clipping.best_threshold(policy, log_ratio, thresholds, n)[0] for n in (4, 64, 4096)]
    assert best[0] < best[1] <= best[2] and best[0] < best[2]


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 1.0])
def test_a_clamp_wide_enough_changes_nothing_and_a_narrow_one_costs(order):
    references, reward = clipped_problem()
    mixed = exact.log_mixed(references, WEIGHTS, order)
    wide, narrow = (clipping.clamped_policy(mixed, reward, 0.1, order, c) for c in (40.0, 1.0))
    best = exact.optimal_policy(references, WEIGHTS, reward, 0.1, order)
    torch.testing.assert_close(wide, best, atol=1e-9, rtol=0)
    assert float(narrow.sum()) == pytest.approx(1.0)
    assert float(exact.regret(narrow, references, WEIGHTS, reward, 0.1, order)) > 1e-3


def test_the_clamped_policy_is_at_rest():
    references, reward = clipped_problem()
    mixed = exact.log_mixed(references, WEIGHTS, 0.0)
    policy = clipping.clamped_policy(mixed, reward, 0.1, 0.0, 2.0)
    gain = reward - 0.1 * (policy.log() - mixed).clamp(-2.0, 2.0)
    kept = policy > 0
    spread = gain[kept].max() - gain[kept].min()
    assert spread < 1e-9 and (gain[~kept] <= gain[kept].min() + 1e-9).all()


@pytest.mark.parametrize("order", [-1.0, 0.5, 1.0])
def test_linear_continuation_is_exact_once_the_threshold_covers_the_optimum(order):
    references, reward = clipped_problem()
    mixed = exact.log_mixed(references, WEIGHTS, order)
    found = exact.solution(references, WEIGHTS, reward, 0.1, order)
    reach = -found.log_ratio.min() if order > 0 else found.log_ratio.max()
    covered = clipping.continued_policy(mixed, reward, 0.1, order, float(reach) + 0.01)
    torch.testing.assert_close(covered, found.policy, atol=1e-9, rtol=0)
    short = clipping.continued_policy(mixed, reward, 0.1, order, 0.5 * float(reach))
    assert (short - found.policy).abs().max() > 1e-5 and float(short.sum()) == pytest.approx(1.0)


def random_game(seed, responses=7):
    rng = generator(seed, "game")
    skew = torch.triu(torch.from_numpy(rng.uniform(-0.5, 0.5, (responses, responses))), 1)
    return 0.5 + skew - skew.T, random_references(rng, (1, 2, responses), 1.0)[0], rng


@pytest.mark.parametrize("order", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.03, 0.3])
def test_the_equilibrium_is_the_optimum_for_its_own_win_rates(order, beta):
    preferences, references, _ = random_game(1)
    policy = nash.nash_equilibrium(preferences, references, WEIGHTS, beta, order).policy
    answer = exact.optimal_policy(references, WEIGHTS, preferences @ policy, beta, order)
    torch.testing.assert_close(answer, policy, atol=1e-10, rtol=0)
    assert abs(float(nash.dual_gap(policy, preferences, references, WEIGHTS, beta, order))) < 1e-11


def test_dual_gap_is_what_two_best_responses_gain():
    preferences, references, rng = random_game(2)
    policy = torch.from_numpy(rng.dirichlet([1.0] * 7))
    args, beta = (references, WEIGHTS), 0.3
    penalty = (exact.divergences(policy, references, 0.0) * WEIGHTS).sum()
    # Against `policy`: the maximizing player answers P pi, the minimizing one P pi as well since P + P^T = 1.
    best = exact.value(*args, preferences @ policy, beta, 0.0) + beta * penalty
    worst = 1 - beta * penalty - exact.value(*args, preferences @ policy, beta, 0.0)
    torch.testing.assert_close(nash.dual_gap(policy, preferences, *args, beta, 0.0), best - worst)
    assert float(best - worst) > 1e-3


def test_transitive_preferences_give_the_order_of_the_rewards():
    reward = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    references = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    preferences = torch.sigmoid(reward[:, None] - reward)
    policy = nash.nash_equilibrium(preferences, references, WEIGHTS, 0.1, 0.0).policy
    assert policy[0] > policy[1] > policy[2]


def test_rock_paper_scissors_stays_at_the_even_reference():
    preferences = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)
    references = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    for order in (-1.0, 0.0, 1.0):
        policy = nash.nash_equilibrium(preferences, references, WEIGHTS, 0.01, order).policy
        torch.testing.assert_close(policy, references[0])


@pytest.mark.parametrize("order", [-1.0, 0.0, 1.0])
def test_errors_in_the_preferences_cost_their_square(order):
    preferences, references, _ = random_game(3)
    error = random_game(4)[0] - 0.5
    mixed, gaps = exact.log_mixed(references, WEIGHTS, order), []
    for size in (0.01, 0.02):
        policy = nash.nash_equilibrium(preferences + size * error, references, WEIGHTS, 0.3, order).policy
        gaps.append(float(nash.dual_gap(policy, preferences, references, WEIGHTS, 0.3, order)))
        bound = float(nash.dual_gap_bound(policy, size * error, mixed, 0.3, order))
        assert gaps[-1] <= bound + 1e-13  # an equality for A = -1 while nothing is cut off
    assert 3.5 < gaps[1] / gaps[0] < 4.5
