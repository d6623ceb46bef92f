"""Axes follow the arms that stay together: one that diverges, or an interval over two seeds, does not set them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports.first_screen import Arm, _panel
from multiref_cli.reports.limits import curve_limits, point_limits

STEPS = np.linspace(0, 1, 50)


def test_one_diverging_arm_does_not_set_the_axis() -> None:
    calm = [0.7 - 0.4 * STEPS, 0.7 - 0.3 * STEPS, 0.7 - 0.2 * STEPS]
    limits, outside = curve_limits([*calm, 1e4 * np.sin(40 * STEPS)])
    assert outside == [3]
    assert limits == pytest.approx((0.3 - 0.05 * 0.4, 0.7 + 0.05 * 0.4))


def test_of_two_arms_the_one_that_diverges_is_cut() -> None:
    limits, outside = curve_limits([0.7 - 0.4 * STEPS, -5000 * STEPS])
    assert outside == [1] and limits == pytest.approx((0.28, 0.72))


def test_flat_arms_at_several_levels_are_all_shown() -> None:
    limits, outside = curve_limits([np.full(9, level) + 1e-3 * np.arange(9) for level in (0.1, 0.5, 2.0)])
    assert outside == [] and limits[0] < 0.1 and limits[1] > 2.0


def test_first_steps_far_out_are_cut_and_named() -> None:
    start = np.concatenate([[1e5], np.linspace(1, 0, 99)])
    limits, outside = curve_limits([start])
    assert outside == [0] and limits[1] < 3


def test_nothing_to_draw() -> None:
    assert curve_limits([np.empty(0), np.full(3, np.nan)]) is None and point_limits([], []) is None


def test_a_wide_interval_does_not_set_the_axis() -> None:
    """Means .5 to .9; one interval over two seeds of ±1.25 would make the axis -0.75 to 2.15."""
    low, high = point_limits([0.5, 0.6, 0.9], [0.02, 0.02, 1.25])
    assert low == pytest.approx(0.1 - 0.05 * 1.2) and high == pytest.approx(1.3 + 0.05 * 1.2)


def test_intervals_as_wide_as_the_means_lie_apart_are_shown_whole() -> None:
    low, high = point_limits([0.5, 0.9], [0.1, 0.1])
    assert low < 0.4 and high > 1.0


def test_a_mean_far_from_all_others_is_left_out() -> None:
    low, high = point_limits([1.0, 1.1, 1.2, 1.3, 1e4], [0.1] * 5)
    assert low > 0 and high < 3


def test_a_mean_outside_of_the_limits_is_said_at_the_edge() -> None:
    usual = [Arm(f"arm {i}", "several references", Interval(0.06 + 0.002 * i, 0.05, 0.08, 3)) for i in range(6)]
    far = [Arm("low", "untrained", Interval(-0.5, -0.6, -0.4, 3)), Arm("high", "rival", Interval(0.9, 0.8, 1.0, 3))]
    figure = Figure()
    axes, alone = figure.subplots(1, 2)
    _panel(axes, [*usual, *far])
    said = {text.get_text(): text.xy for text in axes.texts}
    assert said == {"← -0.5": (axes.get_xlim()[0], 1), "0.9 →": (axes.get_xlim()[1], 0)}
    _panel(alone, usual)
    assert not alone.texts
