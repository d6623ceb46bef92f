"""Divergences by name: scores, integrals, full-vocabulary sums against autograd and the limits of float32."""

import math

import pytest
import torch

from multiref_cli.objectives.divergence import divergence_of, score, score_is_clipped, score_of

NAMED = [("reverse_kl",), ("forward_kl",), ("amari", 0.5), ("amari", -1.0), ("amari", 2.0), ("jensen_shannon",)]
NAMED += [("chi_po",), ("jeffreys",)]
SUMS = [named for named in NAMED if named[0] != "jensen_shannon"]


@pytest.mark.parametrize("named", NAMED)
def test_the_gradient_of_the_divergence_is_the_score(named):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)
    logits = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    q = logits.log_softmax(-1)
    (whole,) = torch.autograd.grad(divergence_of(*named).divergence(p, q), logits, retain_graph=True)
    weights = (q.exp() * divergence_of(*named).score(q - p)).detach()
    (by_score,) = torch.autograd.grad((weights * q).sum(), logits)
    torch.testing.assert_close(whole, by_score, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("named", NAMED)
def test_a_score_is_zero_at_zero_and_increases(named):
    x = torch.linspace(-8, 8, 401, dtype=torch.float64)
    values = divergence_of(*named).score(x)
    assert values.dtype == torch.float64 and abs(float(values[200])) < 1e-15
    assert bool((values.diff() > 0).all())


@pytest.mark.parametrize("named", SUMS)
def test_the_integral_has_the_clipped_score_as_its_gradient(named):
    x = torch.tensor([-300.0, -30.0, -1.0, 0.0, 2.0, 40.0, 300.0], requires_grad=True)
    kind = divergence_of(*named)
    value = kind.integral(x, clip=10.0)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert bool(value.isfinite().all()) and bool(gradient.isfinite().all())
    torch.testing.assert_close(gradient, kind.score(x.detach(), clip=10.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("distance", [-400.0, -200.0, 200.0, 400.0])
def test_float32_far_apart_has_finite_scores_and_slopes_that_are_not_negative(named, distance):
    x = torch.tensor([distance], requires_grad=True)
    value = divergence_of(*named).score(x, clip=10.0)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert value.dtype == torch.float32 and bool(value.isfinite())
    assert math.copysign(1.0, float(value)) == math.copysign(1.0, distance)
    assert bool(slope.isfinite()) and float(slope) >= 0.0


def test_the_clip_bounds_the_slope_alike_for_every_order():
    for order in (0.25, 0.5, 1.0, 2.0, -0.5, -1.0, -2.0):
        x = torch.tensor([-math.copysign(80.0, order)], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(score(x, order, 10.0).sum(), x)
        torch.testing.assert_close(float(slope), math.exp(10.0), rtol=1e-12, atol=0.0)
        edge = torch.tensor([-9.9 / order, -10.1 / order], dtype=torch.float64)
        assert score_is_clipped(edge, order, 10.0).tolist() == [False, True]


def test_jensen_shannon_is_twice_the_usual_one_with_zeros_in_both():
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0]).double(), torch.tensor([0.0, 0.25, 0.75, 0.0]).double()
    m = (p + q) / 2
    expected = torch.special.xlogy(p, p / m).nan_to_num().sum() + torch.special.xlogy(q, q / m).nan_to_num().sum()
    torch.testing.assert_close(divergence_of("jensen_shannon").divergence(p.log(), q.log()), expected)


def test_what_is_no_divergence_is_refused_with_the_reason():
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="slope zero almost everywhere"):
        score_of("total_variation", x)
    with pytest.raises(ValueError, match="is unknown"):
        score_of("kl", x)
    with pytest.raises(ValueError, match="amari needs an order"):
        score_of("amari", x)
    with pytest.raises(ValueError, match="only amari has one"):
        score_of("forward_kl", x, 0.5)
