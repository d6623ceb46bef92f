import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiref_cli.objectives.mixing import power_mean, token_power_mean

ORDERS = [-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0]


def exact_log_mean(logps: list[float], weights: list[float], order: float) -> float:
    """log M_A in 60 digits, from the definition."""
    with mpmath.workdps(60):
        x = [mpmath.mpf(v) for v in logps]
        w = [mpmath.mpf(v) for v in weights]
        total = mpmath.fsum(w)
        if order == 0:
            return float(mpmath.fsum(a * b for a, b in zip(w, x)) / total)
        a = mpmath.mpf(order)
        return float(mpmath.log(mpmath.fsum(u * mpmath.exp(a * v) for u, v in zip(w, x)) / total) / a)


@pytest.mark.parametrize(
    ("order", "mean"),
    [(0.0, 1 / 4), (1.0, 0.3828125), (-1.0, 1 / 9.5), (0.5, 0.330078125), (2.0, math.sqrt(0.187744140625))],
)
def test_hand_arithmetic(order, mean):
    """p = (1/32, 1/2) with weights (1/4, 3/4).

    geometric   (1/32)^(1/4) (1/2)^(3/4) = 2^(-5/4 - 3/4) = 1/4
    arithmetic  1/128 + 3/8 = 0.3828125
    harmonic    1 / (32/4 + 2 * 3/4) = 1 / 9.5
    order 1/2   (sqrt(1/32)/4 + 3 sqrt(1/2)/4)^2 = (1/2) (1/16 + 3/4)^2 = 0.5 * 0.66015625
    order 2     sqrt(1/4096 + 3/16) = sqrt(0.187744140625)
    """
    logps = torch.tensor([1 / 32, 1 / 2], dtype=torch.float64).log()
    result = power_mean(logps, torch.tensor([0.25, 0.75]), order)
    assert result.dtype == torch.float64
    assert result.exp().item() == pytest.approx(mean, rel=1e-14)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("references", [1, 2, 5])
def test_equal_references_are_one_reference(order, references):
    one = -50 * torch.rand(7, dtype=torch.float64)
    weights = torch.rand(references, dtype=torch.float64) + 0.1
    mixed = power_mean(one.expand(references, 7), weights / weights.sum(), order)
    assert torch.equal(mixed, one)


@pytest.mark.parametrize("order", ORDERS)
def test_a_corner_is_that_reference_alone_and_touches_no_other(order):
    logps = torch.tensor([[-torch.inf, 3e38, torch.nan], [-1.5, -700.0, -0.1], [torch.nan, -torch.inf, -1.0]])
    logps.requires_grad_()
    mixed = power_mean(logps, torch.tensor([0.0, 1.0, 0.0]), order)
    assert torch.equal(mixed, logps[1])
    mixed.sum().backward()
    assert torch.equal(logps.grad, torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 3))


@pytest.mark.parametrize("order", ORDERS)
def test_a_reference_of_weight_zero_is_dropped(order):
    others = torch.tensor([[-3.0, -40.0], [-5.0, -1.0]], dtype=torch.float64)
    for unusable in (-torch.inf, torch.nan, torch.inf):
        logps = torch.cat([others[:1], torch.full((1, 2), unusable, dtype=torch.float64), others[1:]]).requires_grad_()
        mixed = power_mean(logps, torch.tensor([0.3, 0.0, 0.7], dtype=torch.float64), order)
        expected = power_mean(others, torch.tensor([0.3, 0.7], dtype=torch.float64), order)
        assert torch.allclose(mixed, expected, rtol=1e-15, atol=0)
        mixed.sum().backward()
        assert torch.equal(logps.grad[1], torch.zeros(2, dtype=torch.float64))
        assert torch.allclose(logps.grad.sum(0), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("order", ORDERS)
def test_weights_of_every_entry_its_own(order):
    logps = torch.tensor([[-3.0, -40.0, -2.0], [-5.0, -1.0, -torch.inf]], dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.9, 1.0], [0.8, 0.1, 0.0]], dtype=torch.float64)
    mixed = power_mean(logps, weights, order)
    columns = [power_mean(logps[:, i], weights[:, i], order) for i in range(3)]
    assert torch.equal(mixed, torch.stack(columns))
    assert mixed[2] == -2.0


@pytest.mark.parametrize(
    ("order", "expected"), [(1.0, math.log(0.25 * 0.4)), (0.5, 2 * math.log(0.25) + math.log(0.4))]
)
def test_a_response_impossible_for_one_reference_is_possible_for_the_mixture_of_positive_order(order, expected):
    """w = (1/4, 3/4), p = (0.4, 0): arithmetic 0.25 * 0.4; order 1/2 (0.25 sqrt 0.4)^2 = 0.0625 * 0.4."""
    logps = torch.tensor([math.log(0.4), -torch.inf], dtype=torch.float64, requires_grad=True)
    mixed = power_mean(logps, torch.tensor([0.25, 0.75]), order)
    assert mixed.item() == pytest.approx(expected, rel=1e-14)
    mixed.backward()
    assert logps.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("order", ORDERS)
def test_a_response_impossible_for_a_reference_of_order_at_most_zero_or_for_all(order):
    one, every = torch.tensor([-1.0, -torch.inf]), torch.full((2,), -torch.inf)
    weights = torch.tensor([0.5, 0.5])
    assert (power_mean(one, weights, order) == -torch.inf) == (order <= 0)
    assert power_mean(every, weights, order) == -torch.inf


@settings(max_examples=60, deadline=None)
@given(
    order=st.floats(-3, 3).filter(lambda a: a == 0 or abs(a) > 1e-20),
    logps=st.lists(st.floats(-3000, 0), min_size=2, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition_in_high_precision(order, logps, seed):
    weights = torch.rand(len(logps), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3
    weights = weights / weights.sum()
    exact = exact_log_mean(logps, weights.tolist(), order)
    found = power_mean(torch.tensor(logps, dtype=torch.float64), weights, order).item()
    assert found == pytest.approx(exact, rel=1e-13, abs=1e-12)
    # order of the references is irrelevant
    turned = power_mean(torch.tensor(logps[::-1], dtype=torch.float64), weights.flip(0), order).item()
    assert turned == pytest.approx(found, rel=1e-13, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [1e-15, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
def test_no_drift_near_order_zero(dtype, magnitude, spread):
    """A formula that divides a rounded logarithm by A would be wrong by eps / A: by 1 nat at A = 1e-7 in float32."""
    values = torch.tensor([-7.0, -7.0 - spread / 3, -7.0 - spread], dtype=dtype)
    weights = [0.2, 0.5, 0.3]
    for order in (magnitude, -magnitude):
        exact = exact_log_mean(values.tolist(), weights, order)
        found = power_mean(values, torch.tensor(weights, dtype=torch.float64), order).item()
        assert abs(found - exact) <= torch.finfo(dtype).eps * (7 + 8 * spread)


@pytest.mark.parametrize("order", ORDERS)
def test_float32_is_enough_for_a_thousand_tokens_and_references_100_nats_apart(order):
    """Token log-probabilities of -2.5 on average sum to -2500; a float32 there is exact to 1.2e-4 nats."""
    logps = torch.tensor([[-2500.1, -2499.0], [-2600.3, -2601.5], [-2555.2, -2400.7]])
    weights = [0.1, 0.6, 0.3]
    mixed = power_mean(logps, torch.tensor(weights), order)
    assert mixed.dtype == torch.float32
    for column in range(2):
        exact = exact_log_mean(logps[:, column].tolist(), weights, order)
        assert abs(mixed[column].item() - exact) < 3e-4


def test_half_precision_is_reduced_in_float32():
    logps = torch.tensor([[-3.0], [-40.25]], dtype=torch.bfloat16)
    mixed = power_mean(logps, torch.tensor([0.3, 0.7]), 0.0)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(-3.0 * 0.3 - 40.25 * 0.7, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    orders=st.lists(st.floats(-4, 4).filter(lambda a: a == 0 or abs(a) > 1e-20), min_size=2, max_size=4),
    logps=st.lists(st.floats(-200, 0), min_size=2, max_size=4),
    shift=st.floats(-50, 50),
)
def test_grows_with_the_order_lies_between_the_extremes_and_is_homogeneous(orders, logps, shift):
    weights = torch.arange(1, len(logps) + 1, dtype=torch.float64)
    weights = weights / weights.sum()
    values = torch.tensor(logps, dtype=torch.float64)
    means = [power_mean(values, weights, order).item() for order in sorted([*orders, -1.0, 0.0, 1.0])]
    slack = 1e-11
    assert all(low <= high + slack for low, high in itertools.pairwise(means))
    assert min(logps) - slack <= means[0] and means[-1] <= max(logps) + slack
    moved = power_mean(values + shift, weights, orders[0]) - shift
    assert moved.item() == pytest.approx(power_mean(values, weights, orders[0]).item(), abs=1e-10)


def test_unequal_references_give_strictly_ordered_means():
    logps = torch.tensor([-1.0, -4.0], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.5])
    harmonic, geometric, arithmetic = (power_mean(logps, weights, a).item() for a in (-1.0, 0.0, 1.0))
    assert harmonic + 0.5 < geometric < arithmetic - 0.5


@pytest.mark.parametrize("order", [-1.0, -1e-3, 0.0, 1e-6, 0.05, 0.5, 1.0])
def test_gradient(order):
    """Against finite differences, where all exponents are small, where they are large, and at ties."""
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.4, -43.0], [-1.0, -2.4, -13.0]], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: power_mean(x, weights, order), logps.requires_grad_(), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_weight_on_the_likeliest_reference(dtype):
    """w = (1e-17, 1), p = (e^-1, e^-101): log M_1 = -1 + log(1e-17 + e^-100) = -1 + log 1e-17, all from the first.

    The sum of w_i expm1 rounds to -1 there, whose log1p is infinite.
    """
    logps = torch.tensor([-1.0, -101.0], dtype=dtype, requires_grad=True)
    mixed = power_mean(logps, torch.tensor([1e-17, 1.0], dtype=torch.float64), 1.0)
    assert mixed.item() == pytest.approx(-1 - 17 * math.log(10), rel=1e-6)
    mixed.backward()
    assert logps.grad.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_gradient_is_the_posterior_over_references():
    """Arithmetic mean of (0.2, 0.6) with (1/4, 3/4): shares 0.05 and 0.45 of 0.5, that is 0.1 and 0.9."""
    logps = torch.tensor([0.2, 0.6], dtype=torch.float64).log().requires_grad_()
    power_mean(logps, torch.tensor([0.25, 0.75]), 1.0).backward()
    assert logps.grad.tolist() == pytest.approx([0.1, 0.9], rel=1e-14)


@pytest.mark.parametrize(("order", "mean"), [(0.0, -2600.0), (1.0, -2500 - math.log(3))])
def test_weights_are_divided_by_their_sum(order, mean):
    """Thirds written with five digits give the mean of thirds; undivided, order 0 would be 1e-3 nats higher."""
    logps = torch.tensor([-2500.0, -2600.0, -2700.0], dtype=torch.float64)
    assert power_mean(logps, torch.tensor([0.33333, 0.33333, 0.33333]), order).item() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize(
    "weights",
    [[1.0], [0.5, 0.5, 0.0], [-0.1, 1.1], [0.5, 0.4], [0.5, 0.6], [math.nan, 1.0], [[0.5, 0.5], [0.5, 0.4]]],
)
def test_refuses_weights_off_the_simplex(weights):
    with pytest.raises(ValueError, match=r"need as many weights|must be non-negative and sum to one"):
        power_mean(torch.zeros(2, 2), torch.tensor(weights), 0.0)


@pytest.mark.parametrize("order", ORDERS)
def test_token_level_mean_is_a_distribution_and_not_the_sequence_level_one(order):
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(2, 4, 11, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    log_normalizers = power_mean(logps, weights, order).logsumexp(-1)
    assert ((log_normalizers < -1e-3) if order < 1 else (log_normalizers > -1e-12)).all()
    assert (log_normalizers.abs() < 1e-12).all() == (order == 1)
    tokens = token_power_mean(logps, log_normalizers[:, None], weights, order)
    assert torch.allclose(tokens.exp().sum(-1), torch.ones(4, dtype=torch.float64), atol=1e-14)
    response = logps[..., 3]
    difference = tokens[:, 3].sum() - power_mean(response.sum(-1), weights, order)
    if order == 0:
        assert difference.item() == pytest.approx(-log_normalizers.sum().item(), rel=1e-12)
    else:
        assert difference.abs() > 1e-3
