"""The normalized value and the choice of alpha: against its definition, finite differences and grids."""

import pytest
import torch

from multiref_cli.theory import choosing, exact
from multiref_cli.theory.bandit import generator, random_references


def problem(seed=0, prompts=3, count=3):
    rng = generator(seed, "choosing")
    references = random_references(rng, (prompts, count, 8), 1.0)
    return references, torch.from_numpy(rng.random((prompts, 8))), 0.2


def simplex_grid(steps):
    return [
        torch.tensor([i, j, steps - i - j], dtype=torch.float64) / steps
        for i in range(steps + 1)
        for j in range(steps + 1 - i)
    ]


def test_the_normalized_value_is_the_value_less_beta_log_mass_and_the_optimum_of_the_normalized_problem():
    references, reward, beta = problem()
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    found = choosing.normalized_value(references, weights, reward, beta)
    mixed = exact.log_mixed(references, weights, 0.0)
    torch.testing.assert_close(
        found, exact.value(references, weights, reward, beta, 0.0) - beta * torch.logsumexp(mixed, -1)
    )
    single, one = exact.generalized_escort(references, weights).unsqueeze(-2), torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(found, exact.value(single, one, reward, beta, 0.0))
    expected = (exact.optimal_policy(references, weights, reward, beta, 0.0) * reward).sum(-1)
    assert (exact.value(references, weights, reward, beta, 0.0) < found).all() and (found < expected).all()


def test_its_gradient_is_that_of_finite_differences():
    references, reward, beta = problem()
    weights, step = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 1e-6
    direction = torch.tensor([1.0, -0.4, -0.6], dtype=torch.float64)
    up, down = (choosing.normalized_value(references, weights + s * direction, reward, beta) for s in (step, -step))
    slope = choosing.normalized_value_gradient(references, weights, reward, beta) @ direction
    torch.testing.assert_close(slope, (up - down) / (2 * step), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_rule_is_never_below_a_grid_and_near_its_best(seed):
    references, reward, beta = problem(seed)
    grid = simplex_grid(20)
    values = [float(choosing.normalized_value(references, w, reward, beta).mean()) for w in grid]
    chosen = choosing.best_weights(references, reward, beta)
    assert float(chosen.sum()) == pytest.approx(1.0) and (chosen >= 0).all()
    best = max(values)
    assert best - 1e-12 <= float(choosing.normalized_value(references, chosen, reward, beta).mean()) < best + 0.01


def test_the_best_alpha_of_the_normalized_value_is_often_inside_and_that_of_the_value_never():
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    references = random_references(generator(0, "often"), (200, 2, 10), 1.0)
    reward = torch.from_numpy(generator(1, "often").random((200, 10)))
    curves = [
        (choosing.normalized_value(references, w, reward, 0.3), exact.value(references, w, reward, 0.3, 0.0))
        for w in (torch.stack([a, 1 - a]) for a in grid)
    ]
    inside = [(torch.stack(c).argmax(0) % 40 != 0).double().mean() for c in zip(*curves)]
    assert inside[0] > 0.2 and inside[1] == 0


def test_equal_references_leave_nothing_to_choose():
    references, reward, beta = problem(count=1)
    same = references.expand(-1, 3, -1)
    slope = choosing.normalized_value_gradient(same, torch.full((3,), 1 / 3, dtype=torch.float64), reward, beta)
    torch.testing.assert_close(slope, slope[:, :1].expand_as(slope))
