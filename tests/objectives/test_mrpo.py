import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiref_cli.objectives.mixing import power_mean
from multiref_cli.objectives.mrpo import (
    TrustRegion,
    adaptive_reference_weights,
    adjusted_references,
    clip_to_trust_region,
)

CHOSEN = torch.tensor([[-10.0, -10.0], [-10.5, -30.0], [-2.0, -9.0]], dtype=torch.float64)
REJECTED = torch.tensor([[-40.0, -20.0], [-20.0, -20.5], [-41.0, -99.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def mixed_references(chosen, rejected, weights, order, trust_region=None, adaptive_weights=False):
    """log M of both responses of every pair: adjusted, then mixed."""
    chosen, rejected, weights = adjusted_references(chosen, rejected, weights, trust_region, adaptive_weights)
    return power_mean(chosen, weights, order), power_mean(rejected, weights, order)


def test_trust_region_by_hand():
    """eps = 0.1, anchor the first row: chosen within [-11, -9], rejected within [-44, -36] and [-22, -18]."""
    chosen, rejected = clip_to_trust_region(CHOSEN, REJECTED, anchor=0, epsilon=0.1)
    assert chosen.tolist() == [[-10.0, -10.0], [-10.5, -11.0], [-9.0, -9.0]]
    assert rejected.tolist() == [[-40.0, -20.0], [-36.0, -20.5], [-41.0, -22.0]]
    other, _ = clip_to_trust_region(CHOSEN, REJECTED, anchor=2, epsilon=0.5)
    assert other.tolist() == [[-3.0, -10.0], [-3.0, -13.5], [-2.0, -9.0]]


def test_adaptive_trust_region_by_hand():
    """One pair, rows (-10, -30) and (-20, -90): b_w = -15, b_l = -60, s = 15/75 = 0.2, eps_w = 0.02, eps_l = 0.08."""
    chosen, rejected = clip_to_trust_region(
        torch.tensor([[-10.0], [-20.0]]), torch.tensor([[-30.0], [-90.0]]), anchor=0, epsilon=0.1, adaptive=True
    )
    assert chosen.flatten().tolist() == pytest.approx([-10.0, -10.2])
    assert rejected.flatten().tolist() == pytest.approx([-30.0, -32.4])


def test_adaptive_trust_region_of_two_certain_responses():
    """Log-probabilities of 0 leave no share to compute; the region around an anchor of 0 is the point 0."""
    zero = torch.zeros(2, 1)
    assert torch.equal(clip_to_trust_region(zero, zero, 0, 0.1, adaptive=True)[0], zero)


def test_adaptive_weights_by_hand():
    """Contrasts 30, 9.5, 39 and 10, -9.5, 90: shares of 78.5 and of 109.5, whatever the sign."""
    weights = adaptive_reference_weights(CHOSEN, REJECTED)
    assert weights[:, 0].tolist() == pytest.approx([30 / 78.5, 9.5 / 78.5, 39 / 78.5], rel=1e-14)
    assert weights[:, 1].tolist() == pytest.approx([10 / 109.5, 9.5 / 109.5, 90 / 109.5], rel=1e-14)


def test_the_authors_code_exchanges_the_weights_of_two_references():
    """Contrasts 3 and 1: the paper weighs 3/4 and 1/4, the code the other way round; the references stay."""
    chosen, rejected = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-4.0], [-3.0]])
    found = [
        adjusted_references(chosen, rejected, torch.tensor([0.5, 0.5]), None, True, swapped)
        for swapped in (False, True)
    ]
    assert found[0][2].flatten().tolist() == [0.75, 0.25] and found[1][2].flatten().tolist() == [0.25, 0.75]
    assert torch.equal(found[1][0], chosen) and torch.equal(found[1][1], rejected)


def test_adaptive_weights_of_a_pair_that_no_reference_tells_apart():
    weights = adaptive_reference_weights(CHOSEN, CHOSEN)
    assert torch.equal(weights, torch.full((3, 2), 1 / 3, dtype=torch.float64))


def test_adaptive_weights_of_small_contrasts():
    """Contrasts of 0.1 and 0.3 nats are shares of 0.4 as much as any others."""
    chosen, rejected = torch.tensor([[-5.0], [-7.0]]).double(), torch.tensor([[-5.1], [-6.7]]).double()
    assert adaptive_reference_weights(chosen, rejected).flatten().tolist() == pytest.approx([0.25, 0.75], rel=1e-5)


def test_plain_mix_is_the_harmonic_mean_of_the_paper():
    """K = 2: -log(alpha / pi_2 + (1 - alpha) / pi_1), the released form, in which alpha weighs the *other* inverse."""
    chosen, rejected = mixed_references(CHOSEN[:2], REJECTED[:2], torch.tensor([0.7, 0.3]), order=-1.0)
    for mixed, logps in ((chosen, CHOSEN), (rejected, REJECTED)):
        released = -(0.3 / logps[1].exp() + 0.7 / logps[0].exp()).log()
        assert mixed.tolist() == pytest.approx(released.tolist(), rel=1e-7)


def test_trust_region_acts_before_the_mean():
    """Two rows, eps 0.1, geometric with (1/2, 1/2): chosen -10 and -11 (from -30), rejected -20 and -20.5."""
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    chosen, rejected = mixed_references(CHOSEN[:2, 1:], REJECTED[:2, 1:], weights, 0.0, TrustRegion(epsilon=0.1))
    assert chosen.item() == pytest.approx(-10.5, rel=1e-14)
    assert rejected.item() == pytest.approx(-20.25, rel=1e-14)


def test_adaptive_weights_read_the_references_before_clipping():
    """Rows -10/-20 and -30/-20.5 weigh 10 and 9.5 of 19.5; clipped to -11 the second chosen mixes with the first."""
    weights = torch.tensor([0.9, 0.1], dtype=torch.float64)
    pair = CHOSEN[:2, 1:], REJECTED[:2, 1:]
    chosen, _ = mixed_references(*pair, weights, 0.0, TrustRegion(epsilon=0.1), adaptive_weights=True)
    assert chosen.item() == pytest.approx(-(10 * 10 + 9.5 * 11) / 19.5, rel=1e-14)
    plain, _ = mixed_references(*pair, weights, 0.0, adaptive_weights=True)
    assert plain.item() == pytest.approx(-(10 * 10 + 9.5 * 30) / 19.5, rel=1e-14)


@pytest.mark.parametrize("region", [None, TrustRegion(0), TrustRegion(2, 0.2, True)])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("order", [-1.0, 0.0, 1.0])
def test_order_of_references_dropped_references_and_corners(region, adaptive, order):
    result = mixed_references(CHOSEN, REJECTED, WEIGHTS, order, region, adaptive)
    turn = [2, 0, 1]
    moved = None if region is None else TrustRegion(turn.index(region.anchor), region.epsilon, region.adaptive)
    turned = mixed_references(CHOSEN[turn], REJECTED[turn], WEIGHTS[turn], order, moved, adaptive)
    # a reference of weight 0, first in the list, with nothing usable in its rows
    empty = torch.full((1, 2), -torch.inf, dtype=torch.float64)
    shifted = None if region is None else TrustRegion(region.anchor + 1, region.epsilon, region.adaptive)
    with_empty = mixed_references(
        torch.cat([empty, CHOSEN]),
        torch.cat([empty * torch.nan, REJECTED]),
        torch.cat([torch.zeros(1, dtype=torch.float64), WEIGHTS]),
        order,
        shifted,
        adaptive,
    )
    for a, b, c in zip(result, turned, with_empty):
        assert torch.allclose(a, b, rtol=1e-14, atol=0) and torch.allclose(a, c, rtol=1e-14, atol=0)
    for i in range(3):
        corner = mixed_references(CHOSEN, REJECTED, torch.eye(3)[i], order, region, adaptive)
        assert torch.equal(corner[0], CHOSEN[i]) and torch.equal(corner[1], REJECTED[i])


def test_an_anchor_of_weight_zero_is_refused():
    with pytest.raises(ValueError, match="reference 1, has weight 0"):
        mixed_references(CHOSEN, REJECTED, torch.tensor([0.5, 0.0, 0.5]), -1.0, TrustRegion(anchor=1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), epsilon=st.floats(0.01, 0.9), adaptive=st.booleans())
def test_trust_region_keeps_every_reference_near_the_anchor(seed, epsilon, adaptive):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = -500 * torch.rand(2, 4, 3, generator=generator, dtype=torch.float64)
    clipped = clip_to_trust_region(chosen, rejected, 1, epsilon, adaptive)
    widths = [(c / c[1] - 1).abs().amax(0) for c in clipped]
    assert torch.equal(clipped[0][1], chosen[1]) and torch.equal(clipped[1][1], rejected[1])
    assert all((w <= epsilon + 1e-12).all() for w in widths)
    if adaptive:  # the two half widths add up to epsilon
        assert (widths[0] + widths[1] <= epsilon + 1e-12).all()
    weights = adaptive_reference_weights(chosen, rejected)
    assert torch.allclose(weights.sum(0), torch.ones(3, dtype=torch.float64)) and (weights >= 0).all()
    mixed = mixed_references(chosen, rejected, torch.full((4,), 0.25), -1.0, TrustRegion(1, epsilon, adaptive), True)
    assert torch.equal(mixed[0], power_mean(clipped[0], weights, -1.0))


def test_alpha_hardly_acts_on_the_harmonic_mean_of_distant_references_and_the_trust_region_bounds_it():
    """References at -5 and -35, alpha = 0.1, 0.5, 0.9 on the second: -35 + log(1 / alpha); clipped from -5.5 up."""
    logps, alphas = torch.tensor([[-5.0], [-35.0]], dtype=torch.float64), (0.1, 0.5, 0.9)
    plain = [mixed_references(logps, logps, torch.tensor([1 - a, a]), -1.0)[0].item() for a in alphas]
    assert plain == pytest.approx([-35 - math.log(a) for a in alphas], abs=1e-6)
    clipped = [mixed_references(logps, logps, torch.tensor([1 - a, a]), -1.0, TrustRegion(0))[0].item() for a in alphas]
    assert all(-5.5 <= c <= -5.0 for c in clipped)


def test_a_thousand_tokens_and_references_100_nats_apart():
    chosen, rejected = torch.tensor([[-2500.0], [-2600.0]]), torch.tensor([[-2400.0], [-2480.0]])
    weights = torch.tensor([0.5, 0.5])
    plain = mixed_references(chosen, rejected, weights, -1.0)
    assert plain[0].item() == pytest.approx(-2600 + math.log(2), abs=3e-4)
    narrow = mixed_references(chosen, rejected, weights, -1.0, TrustRegion(0, 0.01), True)
    # the contrasts are 100 and 120 before clipping, the second chosen is -2525 after it
    assert narrow[0].item() == pytest.approx(-2525 - math.log(120 / 220), abs=3e-4)
