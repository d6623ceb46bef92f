"""Sums of divergences from several references: what they collapse to, their estimators, long float32 sums, DPO."""

import itertools
import math

import pytest
import torch

from multiref_cli.config.terms import DivergenceTerm, Mix, Term, summands
from multiref_cli.objectives.divergence import divergence_of, kind_of, total_score
from multiref_cli.objectives.mixing import log_mixed
from multiref_cli.objectives.preference import preference_loss
from multiref_cli.theory.terms import kkt_residual, optimal_policy_of_terms, signed_optimal_policy

NAMES, ALPHA = ("a", "b", "c"), (0.2, 0.5, 0.3)
PRESETS = {
    "js": [DivergenceTerm("jensen_shannon")],
    "chipo": [DivergenceTerm("chi_po")],
    "jeffreys": [DivergenceTerm("jeffreys")],
    "anchor": [DivergenceTerm("reverse_kl", reference="start"), DivergenceTerm("forward_kl", reference="others")],
    "own": [DivergenceTerm("amari", 0.5, "b", 3.0), DivergenceTerm("jensen_shannon"), DivergenceTerm("reverse_kl")],
}


def distribution(seed: int, *shape: int) -> torch.Tensor:
    """Random log-probs in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


def by_hand(terms, x: torch.Tensor) -> torch.Tensor:
    """sum_i alpha_i weight s(x_i) over the pairs of term and reference, x (K, ...) log ratios; the start is `a`."""
    found = torch.zeros_like(x[0])
    for term in terms:
        for i, concerned in enumerate(term.concerns(NAMES, "a")):
            if concerned:
                found += ALPHA[i] * term.weight * divergence_of(term.divergence, term.order).score(x[i])
    return found


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("collapse", [True, False])
def test_summands_have_the_score_of_every_pair(name, collapse):
    references, policy = distribution(0, 3, 9), distribution(1, 9)
    found = summands(PRESETS[name], NAMES, "a", ALPHA, collapse)
    value = total_score(found, policy, log_mixed(found, references))
    torch.testing.assert_close(value, by_hand(PRESETS[name], policy - references), rtol=1e-12, atol=1e-12)


def test_parts_of_one_order_are_one_power_mean():
    assert summands(PRESETS["chipo"], NAMES, "a", ALPHA, True) == (
        Term(0.0, Mix(0.0, ALPHA)),
        Term(-1.0, Mix(-1.0, ALPHA)),
    )
    assert summands([DivergenceTerm("reverse_kl")], NAMES, None, ALPHA, True) == (Term(0.0, Mix(0.0, ALPHA)),)
    start, teachers = summands(PRESETS["anchor"], NAMES, "a", ALPHA, True)
    assert start == Term(0.0, Mix(0.0, (1.0, 0.0, 0.0)), 0.2)
    assert (teachers.score, teachers.weight) == (1.0, 0.8) and teachers.mix.weights == pytest.approx(
        (0.0, 0.625, 0.375)
    )
    assert len(summands(PRESETS["js"], NAMES, "a", ALPHA, True)) == 3
    assert summands(PRESETS["anchor"], NAMES, "a", (1.0, 0.0, 0.0), True) == (
        Term(0.0, Mix(0.0, (1.0, 0.0, 0.0)), 1.0),
    )


def test_the_order_of_references_does_not_matter_and_a_weight_of_zero_drops_one_of_minus_infinity():
    references, policy = distribution(0, 3, 9), distribution(1, 9)
    turned = summands(PRESETS["own"], NAMES[::-1], "a", ALPHA[::-1], True)
    found = summands(PRESETS["own"], NAMES, "a", ALPHA, True)
    expected = total_score(found, policy, log_mixed(found, references))
    torch.testing.assert_close(total_score(turned, policy, log_mixed(turned, references.flip(0))), expected)
    references[2] = -math.inf
    corner = summands(PRESETS["own"], NAMES, "a", (0.4, 0.6, 0.0), True)
    alone = summands(PRESETS["own"], NAMES[:2], "a", (0.4, 0.6), True)
    expected = total_score(alone, policy, log_mixed(alone, references[:2]))
    torch.testing.assert_close(total_score(corner, policy, log_mixed(corner, references)), expected)


@pytest.mark.parametrize("named", [("jensen_shannon",), ("chi_po",), ("jeffreys",), ("amari", 2.0)])
def test_ratio_estimates_and_integrals_against_enumeration(named):
    """E_pi[ratio] = D, rho times it has the gradient of D off policy; E_pi[grad integral] is the gradient of D."""
    kind, reference, old = divergence_of(*named), distribution(2, 7), distribution(3, 7)
    logits = distribution(4, 7).requires_grad_()
    policy = logits.log_softmax(-1)
    whole = kind.divergence(reference, policy)
    estimate = (old.exp() * torch.exp(policy - old) * kind.ratio_estimate(policy - reference)).sum()
    torch.testing.assert_close(estimate, whole)
    k2 = (policy.detach().exp() * kind.integral(policy - reference)).sum()
    expected, ratio, score = (torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (whole, estimate, k2))
    torch.testing.assert_close(ratio, expected)
    torch.testing.assert_close(score, expected)
    assert bool((kind.ratio_estimate(policy - reference) >= 0).all() and (kind.integral(policy - reference) >= 0).all())


def test_the_integral_of_jensen_shannon_by_quadrature():
    for x in (-30.0, -3.0, -0.1, 0.0, 0.2, 5.0, 60.0):
        steps = torch.linspace(0, x, 20001, dtype=torch.float64)
        middle = (steps[1:] + steps[:-1]) / 2
        expected = kind_of("jensen_shannon").score(middle).mean() * x
        found = kind_of("jensen_shannon").integral(torch.tensor(x, dtype=torch.float64))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_float32_on_long_responses_far_apart(name):
    """4,000 tokens of 2 nats, references 200 nats apart: values as in float64, slopes finite and not negative."""
    sums = torch.tensor([-8000.0, -8100.0, -8200.0]).double()
    policy = torch.tensor([-8250.0, -8199.0, -8105.0, -8001.0, -7950.0]).double()
    found = summands(PRESETS[name], NAMES, "a", ALPHA, True)
    expected = total_score(found, policy, log_mixed(found, sums[:, None].expand(3, 5)), clip=10.0)
    short = policy.float().requires_grad_()
    value = total_score(found, short, log_mixed(found, sums.float()[:, None].expand(3, 5)), clip=10.0)
    (slope,) = torch.autograd.grad(value.sum(), short)
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=2e-3)
    assert value.dtype == torch.float32 and bool(slope.isfinite().all()) and bool((slope >= 0).all())


def trained_by_dpo(found, references: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """The policy of least loss on infinitely many Bradley-Terry labels of all pairs of six responses."""
    mixed = log_mixed(found, references)
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    pairs = torch.tensor(list(itertools.permutations(range(6), 2))).T
    shares = torch.sigmoid(reward[pairs[0]] - reward[pairs[1]])
    solver = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        implicit = beta * total_score(found, logits.log_softmax(-1), mixed)
        loss = (shares * preference_loss(implicit[pairs[0]], implicit[pairs[1]])).sum()
        loss.backward()
        return loss

    solver.step(closure)
    return logits.detach().softmax(-1)


@pytest.mark.parametrize("name", PRESETS)
def test_dpo_on_all_pairs_rests_at_the_exact_optimum(name):
    references, beta = distribution(5, 3, 6), 0.6
    reward = torch.randn(6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    policy = trained_by_dpo(summands(PRESETS[name], NAMES, "a", ALPHA, True), references, reward, beta)
    # Every pair of term and reference as the solver wants them: one divergence a row of references.
    rows, kinds = [], []
    for term in PRESETS[name]:
        for i, concerned in enumerate(term.concerns(NAMES, "a")):
            if concerned:
                rows.append(references[i].exp())
                kinds.append((divergence_of(term.divergence, term.order), beta * ALPHA[i] * term.weight))
    expected = optimal_policy_of_terms(torch.stack(rows), kinds, reward)
    assert float(kkt_residual(expected, torch.stack(rows), kinds, reward)) < 1e-10
    torch.testing.assert_close(policy, expected, rtol=0, atol=1e-5)


def test_dpo_with_signed_weights_rests_at_their_exact_optimum():
    references, weights = distribution(5, 3, 6), (-0.8, 1.2, 0.6)
    reward = torch.randn(6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    policy = trained_by_dpo((Term(0.0, Mix(0.0, weights)),), references, reward, 0.6)
    expected = signed_optimal_policy(references.exp(), torch.tensor(weights, dtype=torch.float64), reward, 0.6)
    torch.testing.assert_close(policy, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="negative weights need order 0"):
        log_mixed([Term(1.0, Mix(1.0, weights))], references)
