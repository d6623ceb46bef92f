"""Choosing alpha from samples: lattices, the value and the disagreement against enumeration and their closed forms."""

import math

import pytest
import torch

from multiref_cli.objectives.mixing import power_mean
from multiref_cli.theory import choosing, exact
from multiref_cli.theory.bandit import generator, random_references

HALVES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def problem(seed=0, prompts=3, count=3, responses=8):
    rng = generator(seed, "choosing samples")
    references = random_references(rng, (prompts, count, responses), 1.0)
    return references, torch.from_numpy(rng.random((prompts, responses))), 0.2


@pytest.mark.parametrize(
    ("count", "most", "rows", "parts"), [(2, 1001, 101, 100), (3, 1001, 231, 20), (2, 21, 21, 20), (4, 1001, 286, 10)]
)
def test_a_lattice_has_whole_hundredths_that_sum_to_one_and_every_corner(count, most, rows, parts):
    points = choosing.lattice(count, most)
    assert points.shape == (rows, count) and len({tuple(row) for row in points.tolist()}) == rows
    assert ((points * parts).round() / parts == points).all() and (points >= 0).all()
    torch.testing.assert_close(points.sum(1), torch.ones(rows, dtype=torch.float64))
    assert all((points == corner).all(1).any() for corner in torch.eye(count, dtype=torch.float64))


@pytest.mark.parametrize(("mean", "score"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (-1.0, -1.0), (-1.0, 0.0)])
def test_the_value_of_all_responses_is_that_of_the_normalized_mix_and_that_of_samples_tends_to_it(mean, score):
    references, reward, beta = problem()
    mixed = exact.log_mixed(references, HALVES, mean)
    one, normalized = torch.ones(1, dtype=torch.float64), torch.softmax(mixed, -1).unsqueeze(-2)
    expected = exact.value(normalized, one, reward, beta, score)
    torch.testing.assert_close(choosing.optimal_value(mixed + 3.0, reward, beta, score), expected)
    errors = []
    for count in (16, 20_000):
        drawn = torch.multinomial(references.mean(1), count, True, generator=torch.Generator().manual_seed(0))
        proposal = references.mean(1).log().gather(-1, drawn)
        found = choosing.optimal_value(mixed.gather(-1, drawn) - proposal, reward.gather(-1, drawn), beta, score)
        errors.append(float((found - expected).abs().max()))
    assert errors[1] < 0.01 < 10 * errors[0]


@pytest.mark.parametrize("seed", [2, 6, 8])
def test_the_lattice_finds_the_best_weights(seed):
    references, reward, beta = problem(seed, count=2)
    points = choosing.lattice(2, 1001)
    values = [float(choosing.normalized_value(references, w, reward, beta).mean()) for w in points]
    at = values.index(max(values))
    best = choosing.best_weights(references, reward, beta)
    assert 0 < at < 100 and float((points[at] - best).abs().max()) <= 0.01


@pytest.mark.parametrize("order", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
def test_the_disagreement_is_what_the_best_policy_pays(order):
    references = problem()[0]
    logps = references.log().movedim(1, 0)
    found = choosing.disagreement(logps, HALVES, order)
    best = torch.softmax(power_mean(logps, HALVES, order), -1)
    paid = (HALVES * exact.divergences(best, references, order)).sum(-1)
    torch.testing.assert_close(found, paid)
    other = torch.softmax(best.log() + 0.1 * torch.randn(best.shape, dtype=torch.float64), -1)
    assert (found < (HALVES * exact.divergences(other, references, order)).sum(-1)).all()
    assert (choosing.disagreement(logps[:1].expand(3, -1, -1), HALVES, order).abs() < 1e-12).all()


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 1.0])
def test_the_balanced_mix_is_equally_far_from_two_references(order):
    """Order 0: KL(M / F || pi_i), the Chernoff point; order 1: KL(pi_i || M), the capacity of Jensen-Shannon."""
    references = problem(prompts=1, count=2)[0]
    logps = references.log().movedim(1, 0)
    first = torch.linspace(0, 1, 2001, dtype=torch.float64)
    curve = [choosing.disagreement(logps, torch.stack([a, 1 - a]), order) for a in first]
    a = first[torch.cat(curve).argmax()]
    assert 0 < a < 1
    mixed = torch.softmax(power_mean(logps, torch.stack([a, 1 - a]), order), -1)
    far = exact.divergences(mixed, references, order)[0]
    assert abs(float(far[0] - far[1])) < 5e-3 * float(far.max())
    assert float(max(curve)) == pytest.approx(float(far.mean()), rel=5e-3)


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 1.0])
def test_the_disagreement_of_samples_tends_to_that_of_all_responses(order):
    references = problem()[0]
    expected = choosing.disagreement(references.log().movedim(1, 0), HALVES, order)
    drawn = torch.multinomial(references.mean(1), 20_000, True, generator=torch.Generator().manual_seed(0))
    logps = torch.stack([references[:, k].log().gather(-1, drawn) for k in range(3)])
    found = choosing.disagreement(logps, HALVES, order, torch.logsumexp(logps, 0))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.0)


def test_effective_samples_of_equal_weights_are_all_and_of_one_weight_one():
    weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -500.0, -500.0, -500.0], [0.0, 0.0, -500.0, -500.0]])
    torch.testing.assert_close(choosing.effective_samples(weights), torch.tensor([4.0, 1.0, 2.0]))


@pytest.mark.parametrize(("order", "expected"), [(0.0, 0.3), (0.5, 0.3), (-1.0, 0.3), (1.0, None)])
def test_a_response_that_has_all_the_mass_is_worth_its_reward(order, expected):
    """Not so under forward KL, which charges nothing for mass where the reference has next to none."""
    masses, beta = torch.tensor([0.0, -900.0, -2000.0], dtype=torch.float64), 0.5
    found = choosing.optimal_value(masses, torch.tensor([0.3, 0.9, 1.0], dtype=torch.float64), beta, order)
    kept = beta / 0.7  # the maximum over m of 0.3 m + 1 - m + beta log m
    assert float(found) == pytest.approx(expected or 1 - 0.7 * kept + beta * math.log(kept), abs=1e-6)
