"""Boundaries equal published ones and enumeration; a family looked at again and again errs as seldom as it says."""

import math

import numpy as np
import pytest

from multiref_cli.evaluation.sequential import (
    boundaries,
    decide,
    normal_quantile_two_sided,
    obrien_fleming,
    sequential_p,
)

SHARES = [3 / 9, 5 / 9, 7 / 9, 1.0]


def test_boundaries_of_the_literature() -> None:
    # Lan-DeMets spending of O'Brien-Fleming's kind, two-sided .05, four equal looks (Jennison and Turnbull 2000).
    found = [normal_quantile_two_sided(p) for p in boundaries(0.05, [0.25, 0.5, 0.75, 1])]
    assert found == pytest.approx([4.3326, 2.9631, 2.3590, 2.0141], abs=2e-4)
    assert boundaries(0.03, [1.0]) == pytest.approx([0.03], rel=1e-9), "one look is one test"


def test_looks_together_spend_what_was_planned() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(400_000, 4)) * np.sqrt(np.diff([0, *SHARES]))
    z = np.abs(steps.cumsum(1) / np.sqrt(SHARES))
    limits = [normal_quantile_two_sided(p) for p in boundaries(0.2, SHARES)]
    passed = np.logical_or.accumulate(z >= limits, axis=1).mean(0)
    planned = [obrien_fleming(0.2, share) for share in SHARES]
    assert planned[-1] == pytest.approx(0.2) and passed == pytest.approx(planned, abs=0.003)  # 4.7 standard errors


@pytest.mark.parametrize("alpha", [1e-5, 0.004, 0.05, 0.3])
def test_a_sequential_p_value_is_the_level_whose_boundary_it_meets(alpha: float) -> None:
    limits = boundaries(alpha, SHARES)
    for look in range(4):
        p_values = [*([1.0] * look), limits[look]]
        assert sequential_p(p_values, SHARES) == pytest.approx(alpha, rel=0.01)
    assert sequential_p([limits[0] / 2, 1.0], SHARES) < alpha, "what was decided stays decided"


def test_what_cannot_be_judged() -> None:
    assert math.isnan(sequential_p([math.nan, math.nan], SHARES))
    assert sequential_p([math.nan, 0.001], SHARES) == sequential_p([1.0, 0.001], SHARES)
    assert sequential_p([0.0], SHARES) <= 1e-11 and sequential_p([1.0], SHARES) == 1.0
    for shares in ([], [0.5, 0.4], [0.0, 1.0], [0.5, 1.1]):
        with pytest.raises((ValueError, IndexError)):
            boundaries(0.05, shares)


def test_holm_over_the_family_by_hand() -> None:
    # At the last look alone p is nearly its own level: .043 of .05. Of two, the smaller is judged at .025, then .05.
    late = boundaries(0.025, SHARES)[3]
    first, second = decide([[1.0, 1.0]] * 3 + [[late * 0.99, 0.04]], SHARES)
    assert (first.look, second.look) == (4, 4)
    first, second = decide([[1.0, 1.0]] * 3 + [[late * 1.01, 0.04]], SHARES)
    assert (first.look, second.look) == (0, 0) and first.adjusted_p > 0.05
    early = boundaries(0.025, SHARES)[0]
    assert [one.look for one in decide([[early * 0.9, 0.5]], SHARES)] == [1, 0]
    # Of a comparison that is decided no more is asked; the other is then judged at the whole of alpha.
    late = boundaries(0.05, SHARES)[1]
    assert [one.look for one in decide([[early * 0.9, 0.5], [math.nan, late * 0.99]], SHARES)] == [1, 2]


def test_equal_arms_are_told_apart_in_at_most_five_percent() -> None:
    # Three equal arms, all pairs, paired t tests over 3, 5, 7, 9 seeds; the benchmark has this at length.
    from multiref_cli.evaluation.crossed import compare

    rng, trials, false = np.random.default_rng(1), 300, 0
    for _ in range(trials):
        values = rng.normal(size=(3, 9))
        arms = [dict(enumerate(row)) for row in values]
        history = []
        for count in (3, 5, 7, 9):
            seen = [{seed: arm[seed] for seed in range(count)} for arm in arms]
            history.append([compare(seen[a], seen[b], seen).p_value for a, b in ((0, 1), (0, 2), (1, 2))])
        false += any(one.look for one in decide(history, SHARES))
    # At 5 % more than 24 of 300 come with probability .011.
    assert false <= 24
