"""Coverage constants in closed form, bounds that hold, and the places where the paper's constants do not."""

import math

import pytest
import torch

from multiref_cli.theory import bounds, checks, complexity, exact
from multiref_cli.theory.bandit import generator, random_bandit, random_references

EVEN = torch.tensor([0.5, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 1.0])
def test_no_reward_of_the_box_exceeds_the_box_ratio_and_one_attains_it(order):
    rng = generator(0, "box")
    references, weights = random_references(rng, (1, 2, 5), 1.0)[0], torch.tensor([0.4, 0.6], dtype=torch.float64)
    mixed = exact.log_mixed(references, weights, order)
    limit = float(bounds.box_ratio(mixed, 0.3, order, 1.5))
    rewards = torch.from_numpy(rng.choice([0.0, 1.5], (400, 5)) * rng.choice([1.0, rng.random()], (400, 5)))
    largest = exact.solve(mixed.expand(400, 5), rewards, 0.3, order).log_ratio.amax(-1).exp()
    assert largest.max() <= limit * (1 + 1e-12)
    corners = exact.solve(mixed.expand(5, 5), 1.5 * torch.eye(5, dtype=torch.float64), 0.3, order).log_ratio
    assert float(corners.amax().exp()) == pytest.approx(limit)


@pytest.mark.parametrize("forward", [False, True])
def test_ball_coverage_is_attained_by_a_policy_on_the_sphere(forward):
    q = torch.tensor([0.05, 0.25, 0.7], dtype=torch.float64)
    limit = float(bounds.ball_coverage(q, 0.2, forward))
    p = limit * 0.05
    policy = torch.cat([torch.tensor([p], dtype=torch.float64), q[1:] * (1 - p) / 0.95])
    one, two = (q, policy) if forward else (policy, q)
    assert float((one * (one / two).log()).sum()) == pytest.approx(0.2, abs=1e-9)
    assert float(bounds.ball_coverage(q, 0.0, forward)) == pytest.approx(1.0)


def test_lemma_b1_without_rewards_of_one_or_more_is_not_free_of_scale_and_the_derived_constant_holds():
    # n R^2 << 1: the labels are coin flips, the fit is the mirrored reward half of the time, with E = 2 R^2.
    r, n, delta = 0.001, 10_000, 0.05
    rivals = torch.tensor([[0.0, r], [r, 0.0]], dtype=torch.float64)
    counts = complexity.preference_counts(generator(0, "B.1"), EVEN, rivals[0], n, 2000)
    chosen = rivals[complexity.finite_estimate(counts, rivals)]
    squared = bounds.squared_difference(EVEN, chosen - rivals[0])
    wrong = chosen[:, 0] > 0
    assert 0.4 < float(wrong.double().mean()) < 0.55
    torch.testing.assert_close(squared[wrong], torch.full_like(squared[wrong], 2 * r**2))
    assert float((squared > bounds.pairs_error_paper(n, r, 2, delta)).double().mean()) > 8 * delta
    assert (squared <= bounds.pairs_error_derived(n, r, 2, delta)).all()


def test_theorem_5_2_rests_on_it_and_the_derived_bound_holds():
    r, n, delta, beta = 0.001, 10_000, 0.05, 0.001
    references, weights = EVEN[None], torch.ones(1, dtype=torch.float64)
    truth, mirrored = (torch.tensor(x, dtype=torch.float64) for x in ([0.0, r], [r, 0.0]))
    policy = exact.optimal_policy(references, weights, mirrored, beta, 0.0)
    gap = float(exact.regret(policy, references, weights, truth, beta, 0.0))
    largest = torch.tensor(2.0)  # no policy on two even responses has a larger coverage constant
    assert gap > float(bounds.rkl_gap(largest, bounds.pairs_error_paper(n, r, 2, delta), beta))
    assert gap < float(bounds.rkl_gap(torch.tensor(1.0), bounds.pairs_error_derived(n, r, 2, delta), beta, 0.25))


def test_the_derived_lemma_is_sharper_than_the_papers_for_usual_rewards_only():
    ratio = [
        bounds.pairs_error_paper(1, r, 2, 0.05) / bounds.pairs_error_derived(1, r, 2, 0.05) for r in (0.25, 0.3, 1)
    ]
    assert ratio[0] < 1 < ratio[1] and ratio[2] > 100


def test_the_bias_of_eq_5_is_between_regularized_optima_and_the_distance_to_the_best_reward_is_another():
    references = torch.tensor([[1e-6, 1 - 1e-6]], dtype=torch.float64)
    reward, weights = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    policy = exact.optimal_policy(references, weights, reward, 1.0, 1.0)
    bias = 1 - float(policy @ reward)
    apart = float((references[0] * (references[0] / policy).log()).sum())
    assert apart <= bounds.fkl_bias_paper(1.0, 1.0) < bias
    assert 0.99 * bounds.fkl_bias_derived(1.0, 1.0) < bias <= bounds.fkl_bias_derived(1.0, 1.0)


def test_theorem_5_3_is_about_the_regularized_optimum_not_the_best_response():
    # With infinite data the fit is exact, the bound zero, and the best response still better by the bias.
    reward = torch.tensor([0.0, 1.0], dtype=torch.float64)
    policy = exact.optimal_policy(EVEN[None], torch.ones(1, dtype=torch.float64), reward, 1.0, 0.0)
    assert 1 - float(policy @ reward) > 0.2


def test_the_chi_square_bound_is_an_equality_while_nothing_is_cut_off():
    references = torch.tensor([[0.3, 0.3, 0.4], [0.4, 0.3, 0.3]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    reward, wrong = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.2, 0.1], [0.3, 0.4, 0.0]))
    mixed = exact.log_mixed(references, weights, -1.0)
    policy = exact.optimal_policy(references, weights, wrong, 2.0, -1.0)
    gap = float(exact.regret(policy, references, weights, reward, 2.0, -1.0))
    squared = bounds.squared_difference(bounds.normalized(mixed), wrong - reward)
    assert gap == pytest.approx(float(bounds.quadratic_regret_bound(mixed, squared, 2.0, -1.0, 1.0)))


def test_the_paper_s_factors_follow_from_the_squared_error():
    error, c = torch.tensor(bounds.pairs_error_paper(1000, 0.8, 64, 0.1)), torch.tensor(3.0)
    log_term = math.log(64 / 0.1) / 1000
    assert float(bounds.rkl_gap(c, error, 0.5)) == pytest.approx(128 * 3 * math.exp(3.2) * 0.64 * log_term / 0.5)
    expected = 4 * 0.64 * math.exp(1.6) * math.sqrt(3 * log_term) / 0.5
    assert float(bounds.rkl_reward_gap(c, error, 0.5, 0.8)) == pytest.approx(expected)
    expected = 16 * math.sqrt(3) * math.exp(1.6) * 0.8 * math.sqrt(log_term)
    assert float(bounds.fkl_gap(c, error)) == pytest.approx(expected)


def test_a_violation_is_counted_and_rounding_is_not():
    left, right = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.0 - 1e-14, 1.0, 4.0]).double()
    assert checks.Check("x", "y", left, right).violations() == 1


@pytest.mark.parametrize("seed", range(3))
def test_no_inequality_is_violated(seed):
    rng = generator(seed, "checks")
    bandit = random_bandit(rng, 25)
    every = [
        *checks.exact_checks(bandit, rng),
        *checks.forward_checks(bandit),
        *checks.surrogate_checks(bandit),
        *checks.error_checks(bandit, rng),
        *checks.coverage_checks(bandit, rng),
    ]
    assert len(every) > 50
    assert [(c.name, c.violations()) for c in every if c.violations()] == []
    assert all(c.left.shape == c.right.shape == (25,) for c in every)
