"""Exact optima: closed forms, an independent optimizer, supports, extremes, batches."""

import math

import pytest
import torch

from multiref_cli.theory import exact
from multiref_cli.theory.bandit import generator, random_references

ORDERS = [-2.0, -1.0, -0.5, 0.0, 1e-7, 0.25, 0.5, 1.0, 2.0]


def problem(seed=0, batch=6, references=3, responses=7):
    rng = generator(seed, "exact")
    weights = torch.from_numpy(rng.dirichlet([1.0] * references))
    reward = torch.from_numpy(rng.random((batch, responses)))
    return random_references(rng, (batch, references, responses), 0.7), weights, reward


def test_reverse_kl_is_the_generalized_escort_tilted_by_the_reward():
    references, weights, reward = problem()
    tilted = (references.log() * weights[:, None]).sum(-2) + reward / 0.3
    torch.testing.assert_close(exact.optimal_policy(references, weights, reward, 0.3, 0.0), tilted.softmax(-1))


def test_forward_kl_is_beta_times_the_mixture_over_lambda_minus_reward():
    references, weights, reward = problem()
    found = exact.solution(references, weights, reward, 0.3, 1.0)
    multiplier = found.normalizer + 0.3
    mixture = (references * weights[:, None]).sum(-2)
    torch.testing.assert_close(found.policy, 0.3 * mixture / (multiplier[:, None] - reward))
    assert (multiplier > reward.amax(-1)).all() and (multiplier <= reward.amax(-1) + 0.3).all()
    torch.testing.assert_close((found.policy * reward).sum(-1), multiplier - 0.3)


def test_chi_square_is_a_cut_off_line_in_the_reward():
    references, weights, reward = problem()
    found = exact.solution(references, weights, reward, 0.3, -1.0)
    threshold = found.normalizer - 0.3
    harmonic = 1 / (weights[:, None] / references).sum(-2)
    torch.testing.assert_close(found.policy, harmonic * (reward - threshold[:, None]).clamp(min=0) / 0.3)


def test_chi_square_cuts_bad_responses_off_where_beta_is_small():
    references, weights, reward = problem(batch=40)
    policy = exact.optimal_policy(references, weights, reward, 0.02, -1.0)
    assert (policy == 0).any() and torch.isfinite(policy).all()
    assert (exact.regret(policy * 0.99 + 0.01 / 7, references, weights, reward, 0.02, -1.0) > 0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("beta", [1e-3, 0.2, 10.0])
def test_masses_sum_to_one_before_any_normalization(order, beta):
    references, weights, reward = problem(batch=60)
    found = exact.solution(references, weights, reward, beta, order)
    total = (exact.log_mixed(references, weights, order) + found.log_ratio).logsumexp(-1)
    assert total.abs().max() < 1e-12


@pytest.mark.parametrize("order", ORDERS)
def test_an_optimizer_that_knows_nothing_of_the_formula_agrees(order):
    references, weights, reward = problem(seed=2, batch=1, responses=5)
    args = (references[0], weights, reward[0], 0.5, order)
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def loss():
        optimizer.zero_grad()
        value = -exact.objectives(logits.softmax(-1), *args)
        value.backward()
        return value

    optimizer.step(loss)
    found = logits.detach().softmax(-1)
    best = exact.optimal_policy(*args)
    torch.testing.assert_close(found, best, atol=2e-5, rtol=0)
    assert exact.objective(best, *args) >= exact.objective(found, *args) - 1e-12


@pytest.mark.parametrize("order", [a for a in ORDERS if a != 1])
def test_the_value_needs_no_divergence(order):
    references, weights, reward = problem()
    found = exact.solution(references, weights, reward, 0.4, order)
    closed = (found.normalizer - order * (found.policy * reward).sum(-1)) / (1 - order)
    torch.testing.assert_close(closed, exact.value(references, weights, reward, 0.4, order), atol=1e-8, rtol=1e-8)


def test_reverse_kl_value_is_the_log_partition_function():
    references, weights, reward = problem()
    log_partition = (exact.log_mixed(references, weights, 0.0) + reward / 0.4).logsumexp(-1)
    torch.testing.assert_close(0.4 * log_partition, exact.value(references, weights, reward, 0.4, 0.0))


def test_reverse_kl_regret_is_beta_times_the_divergence_from_the_optimum():
    references, weights, reward = problem()
    other = reward.flip(-1).softmax(-1)
    best = exact.optimal_policy(references, weights, reward, 0.4, 0.0)
    divergence = (other * (other / best).log()).sum(-1)
    torch.testing.assert_close(exact.regret(other, references, weights, reward, 0.4, 0.0), 0.4 * divergence)


@pytest.mark.parametrize("order", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_regret_of_a_wrong_reward_is_the_bregman_divergence_of_the_value(order):
    references, weights, reward = problem()
    wrong = reward.flip(0)
    policy = exact.optimal_policy(references, weights, wrong, 0.4, order)
    values = [exact.value(references, weights, r, 0.4, order) for r in (reward, wrong)]
    bregman = values[0] - values[1] - (policy * (reward - wrong)).sum(-1)
    torch.testing.assert_close(exact.regret(policy, references, weights, reward, 0.4, order), bregman)


def test_the_penalty_of_k_references_is_that_of_their_escort_less_a_constant():
    references, weights, reward = problem()
    policy = reward.softmax(-1)
    mixed = exact.log_mixed(references, weights, 0.0)
    to_escort = (policy * (policy.log() - exact.generalized_escort(references, weights).log())).sum(-1)
    penalty = (exact.divergences(policy, references, 0.0) * weights).sum(-1)
    torch.testing.assert_close(penalty, to_escort - mixed.logsumexp(-1))


def test_escort_flattens_and_sharpens():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    torch.testing.assert_close(exact.escort(p, 2.0), torch.tensor([0.49, 0.04, 0.01], dtype=torch.float64) / 0.54)
    torch.testing.assert_close(exact.escort(p, 1.0), p)


def test_supports_are_intersected_up_to_order_zero_and_united_above():
    references = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    weights, reward = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64)
    for order in (-1.0, 0.0):
        policy = exact.optimal_policy(references, weights, reward, 0.1, order)
        assert policy.tolist() == [0.0, 1.0, 0.0]
        assert exact.support(references, weights, order).tolist() == [False, True, False]
        assert math.isfinite(exact.objective(policy, references, weights, reward, 0.1, order))
        away = torch.tensor([0.1, 0.9, 0.0], dtype=torch.float64)
        assert exact.objective(away, references, weights, reward, 0.1, order) == -math.inf
    for order in (0.5, 1.0):
        policy = exact.optimal_policy(references, weights, reward, 0.1, order)
        assert (policy > 0).all() and exact.support(references, weights, order).all()
        assert math.isfinite(exact.objective(policy, references, weights, reward, 0.1, order))
    single = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert exact.objective(single, references, weights, reward, 0.1, 1.0) == -math.inf
    assert math.isfinite(exact.objective(single, references, weights, reward, 0.1, 0.5))


@pytest.mark.parametrize("order", [-1.0, 0.0])
def test_references_that_share_nothing_are_refused(order):
    references = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="every reference supports"):
        exact.optimal_policy(references, torch.tensor([0.5, 0.5]), torch.zeros(2, dtype=torch.float64), 0.1, order)


@pytest.mark.parametrize("order", ORDERS)
def test_a_reference_of_weight_zero_is_never_looked_at(order):
    references, _, reward = problem(references=2)
    broken = torch.stack([references[:, 0], torch.full_like(references[:, 0], torch.nan)], -2)
    one_hot = torch.tensor([1.0, 0.0], dtype=torch.float64)
    alone = exact.optimal_policy(references[:, :1], one_hot[:1], reward, 0.3, order)
    torch.testing.assert_close(exact.optimal_policy(broken, one_hot, reward, 0.3, order), alone)
    assert torch.isfinite(exact.regret(alone, broken, one_hot, reward, 0.3, order)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_extremes_stay_finite(order):
    logs = torch.tensor([[-650.0, -1.0, -2.0], [-600.0, -2.0, -1.0]], dtype=torch.float64).log_softmax(-1)
    weights, reward = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    for beta in (1e-6, 1e-3, 1.0, 1e6):
        found = exact.solution(logs.exp(), weights, reward, beta, order)
        total = (exact.log_mixed(logs.exp(), weights, order) + found.log_ratio).logsumexp(-1)
        assert abs(float(total)) < 1e-9 and torch.isfinite(found.policy).all()


def test_orders_near_zero_and_one_approach_their_limits():
    references, weights, reward = problem()
    for limit in (0.0, 1.0):
        at = exact.optimal_policy(references, weights, reward, 0.3, limit)
        near = exact.optimal_policy(references, weights, reward, 0.3, limit + 1e-9)
        torch.testing.assert_close(near, at, atol=1e-7, rtol=0)


def test_a_large_batch_equals_its_prompts_and_chunks():
    references, weights, reward = problem(batch=40, responses=10_000, references=2)
    together = exact.optimal_policy(references, weights, reward, 0.1, 1.0)
    for index in (0, 39):
        alone = exact.optimal_policy(references[index], weights, reward[index], 0.1, 1.0)
        torch.testing.assert_close(together[index], alone, atol=1e-13, rtol=1e-9)
    torch.testing.assert_close(together.sum(-1), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_of_the_numbers_is_kept(dtype):
    references, weights, reward = (x.to(dtype) for x in problem())
    for order in (-1.0, 0.0, 1.0):
        policy = exact.optimal_policy(references, weights, reward, 0.3, order)
        assert policy.dtype == dtype
        torch.testing.assert_close(policy.sum(-1), torch.ones(6, dtype=dtype))
    assert isinstance(exact.objective(policy[0], references[0], weights, reward[0], 0.3, 1.0), float)


def test_mrpo_maximizes_its_lower_bound_and_not_the_objective():
    references, weights, reward = problem()
    policy = exact.surrogate_policy(references, weights, reward, 0.3, -1.0, 0.0)
    harmonic = (1 / (weights[:, None] / references).sum(-2)).log()
    torch.testing.assert_close(policy, (harmonic + reward / 0.3).softmax(-1))
    assert (exact.regret(policy, references, weights, reward, 0.3, 0.0) > 1e-4).all()
