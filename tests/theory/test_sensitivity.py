"""Sensitivities against automatic and finite differences; the alpha question."""

import pytest
import torch

from multiref_cli.theory import exact, sensitivity
from multiref_cli.theory.bandit import generator, random_references

ORDERS = [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
STEP = 1e-5


def problem(seed=0):
    rng = generator(seed, "sensitivity")
    references = random_references(rng, (1, 3, 6), 2.0)[0]
    return references, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.from_numpy(rng.random(6)), 0.6


def difference(function, x, direction):
    return (function(x + STEP * direction) - function(x - STEP * direction)) / (2 * STEP)


@pytest.mark.parametrize("order", ORDERS)
def test_reward_jacobian(order):
    references, weights, reward, beta = problem()
    found = exact.solution(references, weights, reward, beta, order)
    jacobian = sensitivity.reward_jacobian(found, beta, order)
    for column, direction in enumerate(torch.eye(6, dtype=torch.float64)):
        moved = difference(lambda r: exact.optimal_policy(references, weights, r, beta, order), reward, direction)
        torch.testing.assert_close(jacobian[:, column], moved, atol=1e-8, rtol=1e-6)
    assert torch.linalg.eigvalsh(jacobian).min() > -1e-12


def test_jacobian_for_reverse_kl_is_gamma_times_the_covariance_of_the_policy():
    references, weights, reward, beta = problem()
    found = exact.solution(references, weights, reward, beta, 0.0)
    covariance = torch.diag(found.policy) - torch.outer(found.policy, found.policy)
    torch.testing.assert_close(sensitivity.reward_jacobian(found, beta, 0.0), covariance / beta)


@pytest.mark.parametrize("order", ORDERS)
def test_beta_derivative(order):
    references, weights, reward, beta = problem()
    found = exact.solution(references, weights, reward, beta, order)
    moved = difference(lambda b: exact.optimal_policy(references, weights, reward, b, order), beta, 1.0)
    torch.testing.assert_close(sensitivity.beta_derivative(found, reward, beta, order), moved, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_alpha_derivative_along_the_simplex(order):
    references, weights, reward, beta = problem()
    direction = torch.tensor([1.0, -0.4, -0.6], dtype=torch.float64)
    moved = difference(lambda a: exact.optimal_policy(references, a, reward, beta, order), weights, direction)
    slopes = sensitivity.alpha_derivative(references, weights, reward, beta, order)
    torch.testing.assert_close(direction @ slopes, moved, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_value_gradients(order):
    references, weights, reward, beta = problem()
    by_reward, by_alpha, by_beta = sensitivity.value_gradients(references, weights, reward, beta, order)
    direction = torch.tensor([1.0, -0.4, -0.6], dtype=torch.float64)
    bump = torch.tensor([0.3, -1.0, 0.2, 0.0, 0.5, 1.0], dtype=torch.float64)
    moved = difference(lambda r: exact.value(references, weights, r, beta, order), reward, bump)
    torch.testing.assert_close(by_reward @ bump, moved, atol=1e-7, rtol=1e-6)
    moved = difference(lambda a: exact.value(references, a, reward, beta, order), weights, direction)
    torch.testing.assert_close(by_alpha @ direction, moved, atol=1e-7, rtol=1e-6)
    moved = difference(lambda b: exact.value(references, weights, reward, b, order), beta, 1.0)
    torch.testing.assert_close(by_beta, moved, atol=1e-7, rtol=1e-6)


def test_responses_cut_off_do_not_move():
    references, weights, reward, _ = problem()
    found = exact.solution(references, weights, reward, 0.01, -1.0)
    gone = found.policy == 0
    assert gone.any()
    assert (sensitivity.reward_jacobian(found, 0.01, -1.0)[gone] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_gradient_ascent_on_alpha_ends_in_a_corner_and_never_descends(seed):
    references, _, reward, beta = problem(seed)
    path = sensitivity.gradient_ascent(references, torch.full((3,), 1 / 3, dtype=torch.float64), reward, beta)
    assert path[-1].max() > 1 - 1e-6
    values = [float(exact.value(references, a, reward, beta, 0.0)) for a in path[::20]]
    corners = [float(exact.value(references, a, reward, beta, 0.0)) for a in torch.eye(3, dtype=torch.float64)]
    assert values[-1] >= values[0] and values[-1] == pytest.approx(corners[int(path[-1].argmax())])
