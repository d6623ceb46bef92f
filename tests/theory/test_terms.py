"""The optimum of terms, a divergence per reference: optimality conditions, collapse, corners, signed weights."""

import pytest
import torch

from multiref_cli.objectives.mixing import power_mean
from multiref_cli.theory.exact import objective_of_terms, optimal_policy, optimal_policy_of_terms
from multiref_cli.theory.terms import kkt_residual, signed_objective, signed_optimal_policy

KINDS = ["reverse_kl", "forward_kl", "jensen_shannon", "chi_po", "jeffreys"]
KINDS += [("amari", 0.5), ("amari", -1.0), ("amari", 2.0)]


def problem(seed: int):
    generator = torch.Generator().manual_seed(seed)
    count = 1 + seed % 5
    references = torch.randn(count, 6, generator=generator, dtype=torch.float64).mul(1.5).softmax(-1)
    chosen = torch.randint(len(KINDS), (count,), generator=generator).tolist()
    weights = (0.05 + torch.rand(count, generator=generator)).tolist()
    reward = torch.randn(6, generator=generator, dtype=torch.float64)
    return references, [(KINDS[k], w) for k, w in zip(chosen, weights)], reward


@pytest.mark.parametrize("seed", [pytest.param(s, marks=pytest.mark.slow) if s >= 5 else s for s in range(60)])
def test_the_optimum_meets_the_optimality_conditions_and_no_neighbor_is_better(seed):
    references, terms, reward = problem(seed)
    best = optimal_policy_of_terms(references, terms, reward)
    assert abs(float(best.sum()) - 1) < 1e-12
    assert float(kkt_residual(best, references, terms, reward)) < 1e-10
    value = float(objective_of_terms(best, references, terms, reward))
    generator = torch.Generator().manual_seed(seed + 1000)
    for size in (1e-3, 0.1, 1.0):
        others = (best.log() + size * torch.randn(50, 6, generator=generator, dtype=torch.float64)).softmax(-1)
        for other in others:
            assert float(objective_of_terms(other, references, terms, reward)) <= value + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 17, 29, 44])
def test_a_generic_solver_finds_nothing_better(seed):
    references, terms, reward = problem(seed)
    best = objective_of_terms(optimal_policy_of_terms(references, terms, reward), references, terms, reward)
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = -objective_of_terms(logits.softmax(-1), references, terms, reward)
        loss.backward()
        return loss

    solver.step(closure)
    found = objective_of_terms(logits.detach().softmax(-1), references, terms, reward)
    assert float(best - found) > -1e-12
    torch.testing.assert_close(found, best, rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("order", [-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0])
def test_equal_orders_collapse_to_the_power_mean(order):
    generator = torch.Generator().manual_seed(5)
    references = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64).softmax(-1)
    reward = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    alpha = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    terms = [(("amari", order), 0.5 * float(a)) for a in alpha]
    expected = optimal_policy(references, alpha, reward, 0.5, order)
    torch.testing.assert_close(optimal_policy_of_terms(references, terms, reward), expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_order_of_references_does_not_matter():
    references, terms, reward = problem(4)
    backwards = optimal_policy_of_terms(references.flip(0), terms[::-1], reward)
    torch.testing.assert_close(backwards, optimal_policy_of_terms(references, terms, reward), rtol=0, atol=1e-13)


@pytest.mark.slow
def test_a_weight_near_zero_is_the_problem_without_its_reference():
    references, terms, reward = problem(4)
    corner = [("jensen_shannon", 1e-13), *terms[1:]]
    alone = optimal_policy_of_terms(references[1:], terms[1:], reward)
    torch.testing.assert_close(optimal_policy_of_terms(references, corner, reward), alone, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="positive and finite"):
        optimal_policy_of_terms(references, [("jensen_shannon", 0.0), *terms[1:]], reward)


@pytest.mark.slow
def test_responses_are_cut_off_only_where_every_score_is_bounded_below():
    references = torch.full((2, 4), 0.25, dtype=torch.float64)
    reward = torch.tensor([0.0, 1.0, 2.0, 9.0], dtype=torch.float64)
    cut = [(("amari", -1.0), 0.5), (("amari", -2.0), 0.5)]
    policy = optimal_policy_of_terms(references, cut, reward)
    assert float(policy[0]) == 0.0 and float(kkt_residual(policy, references, cut, reward)) < 1e-12
    kept = optimal_policy_of_terms(references, [cut[0], ("jensen_shannon", 0.5)], reward)
    assert bool((kept > 0).all())


@pytest.mark.slow
def test_a_reference_without_a_response_forbids_it_under_reverse_kl_only():
    references = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    reward = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    forbidden = optimal_policy_of_terms(references, [("reverse_kl", 1.0), ("forward_kl", 1.0)], reward)
    assert float(forbidden[2]) == 0.0
    terms = [("forward_kl", 1.0), ("jensen_shannon", 1.0)]
    open_one = optimal_policy_of_terms(references, terms, reward)
    assert float(open_one[2]) > 0.0 and float(kkt_residual(open_one, references, terms, reward)) < 1e-11


def test_signed_weights_at_order_zero_have_the_regret_of_theorem_5_1():
    generator = torch.Generator().manual_seed(9)
    references = torch.randn(3, 6, generator=generator, dtype=torch.float64).softmax(-1)
    reward = torch.randn(6, generator=generator, dtype=torch.float64)
    alpha = torch.tensor([-0.7, 1.2, 0.5], dtype=torch.float64)
    best = signed_optimal_policy(references, alpha, reward, 0.4)
    top = signed_objective(best, references, alpha, reward, 0.4)
    for _ in range(20):
        other = torch.randn(6, generator=generator, dtype=torch.float64).softmax(-1)
        gap = top - signed_objective(other, references, alpha, reward, 0.4)
        torch.testing.assert_close(gap, 0.4 * (other * (other / best).log()).sum(), rtol=1e-10, atol=1e-12)


def test_signed_weights_are_accepted_on_request_at_order_zero_only():
    logps, alpha = torch.randn(2, 3).double(), torch.tensor([-0.5, 1.5], dtype=torch.float64)
    expected = -0.5 * logps[0] + 1.5 * logps[1]
    torch.testing.assert_close(power_mean(logps, alpha, 0.0, signed=True), expected)
    with pytest.raises(ValueError, match="non-negative"):
        power_mean(logps, alpha, 0.0)
    with pytest.raises(ValueError, match="need order 0"):
        power_mean(logps, alpha, 1.0, signed=True)
