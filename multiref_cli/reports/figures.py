"""The figures of the reports, drawn from conditions; each is a matplotlib Figure, or None with nothing to show."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from multiref_cli.evaluation.statistics import student_t_quantile
from multiref_cli.reports import style
from multiref_cli.reports.collect import Condition

# Training metrics worth a panel, with their titles, in this order; at most six are drawn.
_CURVES = (
    ("reward", "reward"),
    ("loss", "loss"),
    ("reward_margin", "reward margin"),
    ("accuracy", "accuracy on training pairs"),
    ("kl/mixed", "KL to the mixed reference (nats)"),
    ("disagreement", "disagreement −log F (nats)"),
    ("entropy", "entropy (nats)"),
    ("penalty", "penalty"),
    ("length", "length (tokens)"),
)


def learning_curves(found: Sequence[Condition], most: int = 6) -> Any | None:
    """Training metrics against the step: one line a condition, mean over seeds, band of the t interval.

    Args:
        found: conditions, at most eight are told apart by style.
        most: largest number of panels.
    """
    panels = [(n, t) for n, t in _CURVES if any(c.first.curve(n)[0] for c in found)][:most]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = min(9.2, 3.2 * columns + 0.4), 2.4 * rows + 0.5
    figure, grid = style.new_figure(rows, columns, width, height, squeeze=False)
    with style.applied():
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for (name, title), axes in zip(panels, grid.flat):
            for index, condition in enumerate(found):
                _mean_curve(axes, condition, name, index)
            style.title(axes, title)
            axes.set_xlabel("step")
        if len(found) > 1:
            handles, labels = grid.flat[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(found)))
    return figure


def _mean_curve(axes: Any, condition: Condition, metric: str, index: int) -> None:
    curves = [run.curve(metric) for run in condition.runs]
    common = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
    if not common:
        return
    values = np.array([[dict(zip(steps, ys))[s] for s in common] for steps, ys in curves])
    smooth = np.array([_smooth(row) for row in values])
    look = style.series(index)
    axes.plot(common, smooth.mean(0), color=look.color, linestyle=look.linestyle, label=condition.label)
    if len(curves) > 1:
        half = student_t_quantile(0.975, len(curves) - 1) * smooth.std(0, ddof=1) / np.sqrt(len(curves))
        mean = smooth.mean(0)
        axes.fill_between(common, mean - half, mean + half, color=look.color, alpha=0.13, linewidth=0)
    elif len(common) > 20:
        axes.plot(common, values[0], color=look.color, alpha=0.22, linewidth=0.8)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving average over a twentieth of the run: steps are noisy, the trend is what is read."""
    width = max(1, len(values) // 20) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
