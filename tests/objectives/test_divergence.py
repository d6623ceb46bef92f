import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiref_cli.objectives.divergence import amari_divergence, score, score_is_clipped
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.theory import exact

ORDERS = [-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0]


def distributions(*shape: int, seed: int = 0, spread: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def direct_divergence(p: torch.Tensor, q: torch.Tensor, order: float) -> float:
    """D_A(p || q) in 60 digits, from the definition, of two distributions that sum to one there."""
    with mpmath.workdps(60):
        p, q = [mpmath.mpf(x) for x in p.tolist()], [mpmath.mpf(x) for x in q.tolist()]
        p, q = [x / mpmath.fsum(p) for x in p], [x / mpmath.fsum(q) for x in q]
        a = mpmath.mpf(order)
        if order in (0, 1):
            p, q = (p, q) if order == 1 else (q, p)
            return float(mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(p, q)))
        return float((mpmath.fsum(x**a * y ** (1 - a) for x, y in zip(p, q)) - 1) / (a * (a - 1)))


@pytest.mark.parametrize(
    ("order", "value"), [(0.0, math.log(4)), (1.0, 0.75), (-1.0, 3.0), (0.5, 1.0), (2.0, 0.46875), (-2.0, 7.5)]
)
def test_score_by_hand(order, value):
    """At u = 4: log 4; 1 - 1/4; 4 - 1; 2 (1 - 1/2); (1 - 1/16) / 2; (16 - 1) / 2. A clip far off changes nothing."""
    log_ratio = torch.tensor(math.log(4), dtype=torch.float64)
    assert score(log_ratio, order).item() == pytest.approx(value, rel=1e-14)
    assert score(log_ratio, order, clip=10.0).item() == pytest.approx(value, rel=1e-14)
    assert score(torch.zeros(1), order).item() == 0.0


@pytest.mark.parametrize("magnitude", [1e-15, 1e-10, 1e-6, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_approaches_the_logarithm_without_drift(magnitude, dtype):
    log_ratio = torch.tensor([-9.0, -0.3, 1e-4, 2.0, 30.0], dtype=dtype)
    for order in (magnitude, -magnitude):
        found = score(log_ratio, order, clip=10.0).tolist()
        for x, value in zip(log_ratio.tolist(), found):
            y = x  # |A x| is far below the clip
            with mpmath.workdps(50):
                truth = -mpmath.expm1(-order * mpmath.mpf(y)) / order + mpmath.exp(-order * mpmath.mpf(y)) * (x - y)
            assert value == pytest.approx(float(truth), rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("order", [-2.0, -1.0, -0.5, 0.25, 0.5, 1.0, 2.0])
def test_score_goes_on_linearly_beyond_the_clip(order):
    """At order 1 and 3 nats below a clip of 10: 1 - e^10 - 3 e^10; the slope is e^10 for every order."""
    side = -1.0 if order > 0 else 1.0
    slope, edge = math.exp(10), side * 10 / abs(order)
    at_clip = score(torch.tensor(edge, dtype=torch.float64), order).item()
    x = torch.tensor([edge + side * 3, edge, side * 10_000], dtype=torch.float64, requires_grad=True)
    values = score(x, order, clip=10.0)
    assert values[0].item() == pytest.approx(at_clip + side * 3 * slope, rel=1e-12)
    assert values[1].item() == pytest.approx(at_clip, rel=1e-12)
    values.sum().backward()
    assert x.grad.tolist() == pytest.approx([slope] * 3, rel=1e-12)
    # the other side, on which the exponential dies away, is left alone
    far = torch.tensor(-side * 50.0, dtype=torch.float64)
    assert score(far, order, clip=10.0) == score(far, order)
    assert score_is_clipped(x, order, 10.0).tolist() == [True, False, True]
    assert not score_is_clipped(-x, order, 10.0).any() and not score_is_clipped(x, order, 0.0).any()


def test_a_clip_below_one_nat():
    """Order 1, clip 1/2: at -1, 1 - e^0.5 - e^0.5 / 2 = 1 - 1.5 e^0.5."""
    x = torch.tensor([-1.0], dtype=torch.float64)
    assert score(x, 1.0, clip=0.5).item() == pytest.approx(1 - 1.5 * math.exp(0.5), rel=1e-14)
    assert score_is_clipped(x, 1.0, 0.5).all()


def test_order_zero_is_never_clipped():
    x = torch.tensor([-400.0, 400.0])
    assert torch.equal(score(x, 0.0, clip=10.0), x)
    assert not score_is_clipped(x, 0.0, 10.0).any()


def test_without_a_clip_the_forward_score_overflows_and_with_it_not():
    x = torch.tensor([-120.0], requires_grad=True)
    assert score(x, 1.0).isinf().all()
    value = score(x, 1.0, clip=10.0)
    value.backward()
    assert value.item() == pytest.approx(1 - math.exp(10) * 111, rel=1e-6) and x.grad.item() == pytest.approx(
        math.exp(10), rel=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(order=st.floats(-2, 2).filter(lambda a: abs(a) > 1e-20), low=st.floats(-60, 60), step=st.floats(1e-3, 20))
def test_score_grows_and_is_concave_or_convex(order, low, step):
    """s_A is concave in log u for A > 0 and convex for A < 0, also where it is continued linearly."""
    x = torch.tensor([low, low + step, low + 2 * step], dtype=torch.float64)
    a, b, c = score(x, order, clip=10.0).tolist()
    scale = 1e-12 * max(abs(a), abs(b), abs(c))
    assert a <= b <= c
    assert (b - a) - (c - b) >= -scale if order > 0 else (b - a) - (c - b) <= scale


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_against_finite_differences(order):
    x = torch.tensor([-12.5, -3.0, -1e-3, 0.0, 2.0, 11.5], dtype=torch.float64, requires_grad=True)
    mild = torch.tensor([-3.0, -1e-3, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: score(v, order), mild, rtol=1e-4)
    assert torch.autograd.gradcheck(lambda v: score(v, order, clip=2.5), x, rtol=1e-4)
    p, q = distributions(2, 5, seed=1).requires_grad_(), distributions(2, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: amari_divergence(a, b, order), (p, q), rtol=1e-4)


@pytest.mark.parametrize(
    ("order", "value"),
    [
        (0.0, 0.75 * math.log(1.5) - 0.25 * math.log(2)),
        (1.0, 0.5 * math.log(4 / 3)),
        (-1.0, 0.125),
        (0.5, 4 * (1 - math.sqrt(0.125) - math.sqrt(0.375))),
        (2.0, 1 / 6),
    ],
)
def test_divergence_by_hand(order, value):
    """p = (1/2, 1/2), q = (1/4, 3/4).

    A = 0: sum q log(q/p) = 1/4 log(1/2) + 3/4 log(3/2); A = 1: 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3);
    A = -1: (q^2/p - 1) / 2 = (1/8 + 9/8 - 1) / 2; A = 1/2: 4 (1 - sum sqrt(pq)); A = 2: (1 + 1/3 - 1) / 2.
    """
    p, q = torch.tensor([0.5, 0.5], dtype=torch.float64).log(), torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    assert amari_divergence(p, q, order).item() == pytest.approx(value, rel=1e-14)


@settings(max_examples=60, deadline=None)
@given(order=st.floats(-2, 3).filter(lambda a: min(abs(a), abs(a - 1)) > 1e-18), seed=st.integers(0, 2**16))
def test_divergence_equals_its_definition_and_is_not_negative(order, seed):
    p, q = distributions(2, 6, seed=seed)
    found = amari_divergence(p, q, order).item()
    assert found == pytest.approx(direct_divergence(p.exp(), q.exp(), order), rel=1e-9, abs=1e-12)
    assert found > 0 and abs(amari_divergence(p, p, order).item()) < 1e-14


@pytest.mark.parametrize("center", [0.0, 1.0])
@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-2])
def test_divergence_does_not_magnify_rounding_near_the_two_kl_limits(center, distance):
    """A float32 log of a sum, divided by A (A - 1), would be off by 1e-7 / 1e-6 = 0.1 at A = 1e-6."""
    p, q = distributions(2, 50, seed=3).float()
    for order in (center + distance, center - distance):
        truth = direct_divergence(p.double().exp(), q.double().exp(), order)
        assert amari_divergence(p, q, order).item() == pytest.approx(truth, rel=2e-6)


def test_divergence_of_far_distributions_does_not_overflow_where_the_value_is_finite():
    """0 < A < 1: disjoint supports give 1 / (A (1 - A)), also when a ratio of probabilities overflows float32."""
    p, q = torch.tensor([-300.0, 0.0]), torch.tensor([0.0, -300.0])
    for order in (0.25, 0.5, 0.75):
        assert amari_divergence(p, q, order).item() == pytest.approx(1 / (order * (1 - order)), rel=1e-6)
        assert amari_divergence(q, p, order).item() == pytest.approx(1 / (order * (1 - order)), rel=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_divergence_with_impossible_tokens(order):
    """A token impossible under both adds nothing; one impossible under one is infinite only where theory says so."""
    p, q = distributions(2, 4, seed=4)
    absent = torch.full((1,), -torch.inf, dtype=torch.float64)
    wide_p = torch.cat([p, absent]).requires_grad_()
    wide_q = torch.cat([q, absent]).requires_grad_()
    value = amari_divergence(wide_p, wide_q, order)
    assert value.item() == pytest.approx(amari_divergence(p, q, order).item(), rel=1e-12)
    value.backward()
    assert wide_p.grad.isfinite().all() and wide_q.grad.isfinite().all() and wide_q.grad[-1] == 0

    three = torch.cat([distributions(3, seed=5), absent])
    four = distributions(4, seed=6)
    policy_misses, reference_misses = amari_divergence(four, three, order), amari_divergence(three, four, order)
    assert policy_misses.isinf() == (order >= 1) and reference_misses.isinf() == (order <= 0)
    for p, q, value in ((four, three, policy_misses), (three, four, reference_misses)):
        if not value.isinf():
            shared = (order * p[:3] + (1 - order) * q[:3]).exp().sum().item()
            direct = (shared - 1) / (order * (order - 1)) if order not in (0, 1) else None
            kl = (q[:3].exp() * (q - p)[:3]).sum() if order == 0 else (p[:3].exp() * (p - q)[:3]).sum()
            assert value.item() == pytest.approx(kl.item() if direct is None else direct, rel=1e-12)
            a, b = p.clone().requires_grad_(), q.clone().requires_grad_()
            amari_divergence(a, b, order).backward()
            assert a.grad.isfinite().all() and b.grad.isfinite().all()


@pytest.mark.parametrize("order", ORDERS)
def test_gradient_of_the_divergence_is_the_score(order):
    """d D_A / d q(y) is s_A(log q/p) up to a constant over y, which the sum-to-one constraint takes away."""
    p, q = distributions(2, 6, seed=7)
    q = q.requires_grad_()
    amari_divergence(p, q, order).backward()
    rest = q.grad / q.detach().exp() - score(q.detach() - p, order)
    assert (rest - rest.mean()).abs().max() < 1e-12


@pytest.mark.parametrize("order", ORDERS)
def test_weighted_divergences_are_one_divergence_from_the_mixed_reference(order):
    """sum_i alpha_i D_A(pi_i || pi) = (sum M_A^A pi^(1-A) - 1) / (A (A - 1)); KL(pi || M_0 / F) - log F at A = 0."""
    references, policy = distributions(3, 6), distributions(6, seed=1)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    total = (weights * amari_divergence(references, policy.expand(3, 6), order)).sum()
    mixed = power_mean(references, weights, order)
    if order == 0:
        log_f = mixed.logsumexp(-1)
        expected = amari_divergence(mixed - log_f, policy, 0.0) - log_f
        assert log_f < 0
    elif order == 1:
        entropies = (weights * (references.exp() * references).sum(-1)).sum()
        expected = entropies - (mixed.exp() * policy).sum()
    else:
        expected = ((order * mixed + (1 - order) * policy).exp().sum() - 1) / (order * (order - 1))
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)


def enumerated_optimum(mixed: torch.Tensor, reward: torch.Tensor, beta: float, order: float) -> torch.Tensor:
    """log pi* of max E[r] - beta sum_i alpha_i D_A, its multiplier found by bisection."""
    if order == 0:
        return (mixed + reward / beta).log_softmax(-1)

    def logps(multiplier: torch.Tensor) -> torch.Tensor:
        return mixed - (order * (multiplier - reward) / beta).clamp(min=0).log() / order

    low, high = (reward.max(), reward.max() + 1e4) if order > 0 else (reward.min() - 1e4, reward.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if logps(middle).logsumexp(-1) > 0 else (low, middle)
    return logps((low + high) / 2)


@pytest.mark.parametrize("order", ORDERS)
def test_score_and_mean_give_the_exact_optimum(order):
    """No feasible direction improves the objective at the optimum, and pi* gives the reward back through the score.

    Objective E[r] - beta sum_i alpha_i D_A(pi_i || pi) over all of a space of 7 responses, in float64.
    """
    references, weights = distributions(3, 7, seed=8), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    reward, beta = torch.linspace(-1, 1, 7, dtype=torch.float64).cos() * 0.7, 0.9
    mixed = power_mean(references, weights, order)
    best = enumerated_optimum(mixed, reward, beta, order)
    assert best.isfinite().all() and best.logsumexp(-1).abs() < 1e-12

    def objective(logits: torch.Tensor) -> torch.Tensor:
        policy = logits.log_softmax(-1)
        return policy.exp() @ reward - beta * weights @ amari_divergence(references, policy.expand(3, 7), order)

    logits = best.clone().requires_grad_()
    objective(logits).backward()
    assert logits.grad.abs().max() < 1e-10
    generator = torch.Generator().manual_seed(9)
    for size in (1e-3, 0.1, 1.0):
        other = best + size * torch.randn(7, generator=generator, dtype=torch.float64)
        assert objective(other) < objective(best)

    rewards = beta * score(best - mixed, order)
    assert ((rewards - reward) - (rewards - reward).mean()).abs().max() < 1e-10

    policy = exact.optimal_policy(references.exp(), weights, reward, beta, order)
    assert (policy - best.exp()).abs().max() < 1e-10
    value = exact.objective(policy, references.exp(), weights, reward, beta, order)
    assert float(value) == pytest.approx(objective(best).item(), abs=1e-10)


def test_regret_of_the_reverse_kl_objective_is_a_divergence_from_the_optimum():
    """value* - objective(pi) = beta KL(pi || pi*) for every pi, and value* = beta log sum_y M_0 exp(r / beta)."""
    references, weights = distributions(2, 6, seed=10), torch.tensor([0.3, 0.7], dtype=torch.float64)
    reward, beta, policy = distributions(6, seed=11), 0.3, distributions(6, seed=12)
    mixed = power_mean(references, weights, 0.0)
    best = (mixed + reward / beta).log_softmax(-1)
    value = beta * (mixed + reward / beta).logsumexp(-1)
    achieved = policy.exp() @ reward - beta * weights @ amari_divergence(references, policy.expand(2, 6), 0.0)
    assert (value - achieved).item() == pytest.approx(beta * amari_divergence(best, policy, 0.0).item(), abs=1e-10)
