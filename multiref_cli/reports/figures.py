"""The figures of the reports, drawn from conditions; each is a matplotlib Figure, or None with nothing to show."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from multiref_cli.evaluation.statistics import Interval, student_t_quantile
from multiref_cli.reports import style
from multiref_cli.reports.collect import KL_WEIGHTED, Condition
from multiref_cli.reports.limits import curve_limits, point_limits
from multiref_cli.reports.verdicts import Series, series
from multiref_cli.reports.wording import listed
from multiref_cli.types import Axes, Figure

# Training metrics worth a panel, with their titles, in this order; at most six are drawn.
_CURVES = (
    ("reward", "reward"),
    ("loss", "loss"),
    ("reward_margin", "reward margin"),
    ("accuracy", "accuracy on training pairs"),
    (KL_WEIGHTED, "Σ α KL (nats a response)"),
    ("log_ratio/mixed", "mean log ratio to the mix, data's responses"),
    ("disagreement", "disagreement −log F (nats)"),
    ("entropy", "entropy (nats)"),
    ("penalty", "penalty"),
    ("length", "length (tokens)"),
)
_POINTS = 2000
_SCORES = {0.0: "reverse-KL score", 1.0: "forward-KL score", 0.5: "Hellinger score", -1.0: "χ² score"}


def metric_against_alpha(found: Sequence[Condition], metric: str, name: str, start: float | None) -> Any | None:
    """The metric against the weight of the first of two references, with intervals over seeds and prompts.

    One panel a setting (score, level, estimator, beta), since its single references belong to it: they are the bands.
    The vertical axis is shared.

    Args:
        found: conditions of one job.
        metric: name in results.json.
        name: what the axis is called.
        start: value of the policy before training, if it was measured.
    """
    lines = [line for line in series(found) if len(line.conditions[0].weights) == 2 and line.values(metric)]
    settings = list(dict.fromkeys(line.conditions[0].setting for line in lines))
    if not lines or max(len(line.conditions) for line in lines) < 2:
        return None
    figure, grid = _grid(len(settings), 3.6, 3.1, 1.6, 0.3, sharey=True)
    names = lines[0].conditions[0].first.references
    with style.applied():
        for number, (setting, axes) in enumerate(zip(settings, grid.flat)):
            axes.set_xlim(0, 1)
            _bands(axes, found, setting, metric, start)
            for index, line in enumerate(lines):
                if line.conditions[0].setting == setting:
                    _line_over_alpha(axes, line, metric, index)
            style.title(axes, _setting_title(lines, setting))
            axes.set_xlabel(f"α, weight of {names[0]} (0: {names[1]} alone)")
            if number % _columns(len(settings)) == 0:
                axes.set_ylabel(name)
        _limit_points(grid.flat[0].set_ylim, [c.interval(metric) for c in found], start)
        figure.draw_without_rendering()
        for setting, axes in zip(settings, grid.flat):
            _name_lines(axes, found, lines, setting, metric, start)
    return figure


def reward_against_divergence(
    found: Sequence[Condition], metric: str, name: str, untrained: dict[str, float]
) -> Any | None:
    """The frontier: the metric against KL(policy || reference), one panel a reference, one point a condition.

    Args:
        found: conditions of one job.
        metric: name in results.json.
        name: what the axis is called.
        untrained: the references' own values of the metric, drawn at no divergence from themselves.
    """
    references = found[0].first.references
    panels = [r for r in references if any(c.values(f"kl/{r}") and c.values(metric) for c in found)]
    if not panels:
        return None
    figure, grid = _grid(len(panels), 3.5, 3.4, 0.4, 0.6, sharey=True)
    with style.applied():
        for number, (reference, axes) in enumerate(zip(panels, grid.flat)):
            for index, line in enumerate(series(found)):
                _frontier_line(axes, line, reference, metric, index)
            _frontier_baselines(axes, found, reference, metric)
            _limit_points(axes.set_xlim, [c.interval(f"kl/{reference}") for c in found], 0.0)
            if reference in untrained:
                star = {"marker": "*", "markersize": 11, "color": style.INK, "linestyle": "none"}
                axes.plot([0], [untrained[reference]], label="the reference itself", **star)
            style.title(axes, f"distance from {reference}")
            axes.set_xlabel("KL(policy ‖ reference), nats a response")
            if number % _columns(len(panels)) == 0:
                axes.set_ylabel(name)
        _limit_points(grid.flat[0].set_ylim, [c.interval(metric) for c in found], *untrained.values())
        _shared_legend(figure, grid)
    return figure


def learning_curves(found: Sequence[Condition], most: int = 6) -> Any | None:
    """Training metrics against the step: one line a condition, mean over seeds, band of the t interval.

    Args:
        found: conditions, at most eight are told apart by style.
        most: largest number of panels.
    """
    several = [condition for condition in found if condition.alone is None]
    panels = [(n, t) for n, t in _CURVES if any(c.first.curve(n)[0] for c in found)]
    panels = [(n, t) for n, t in panels if n != "disagreement" or any(c.first.curve(n)[0] for c in several)][:most]
    if not panels:
        return None
    figure, grid = _grid(len(panels), 3.1, 2.4, 0.0, 0.5)
    with style.applied():
        for (name, title), axes in zip(panels, grid.flat):
            # With one reference the references cannot disagree: 0 by construction says nothing.
            shown = [(i, c) for i, c in enumerate(found) if name != "disagreement" or c.alone is None]
            drawn = {c.label: _mean_curve(axes, c, name, i) for i, c in shown}
            style.title(axes, title)
            axes.set_xlabel(f"step{_limit(axes, drawn)}")
        if len(found) > 1:
            _shared_legend(figure, grid)
    return figure


def simplex(found: Sequence[Condition], metric: str, name: str) -> Any | None:
    """The metric on the triangle of the weights of three references; one panel a line of conditions over alpha.

    Args:
        found: conditions of one job with three references.
        metric: name in results.json.
        name: what the color stands for.
    """
    if not found or len(found[0].weights) != 3:
        return None
    lines = [line for line in series(found) if len(line.conditions) > 1 and line.values(metric)]
    if not lines:
        return None
    corners = np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
    panels = [(line, [*line.conditions, *_corners(line, found)]) for line in lines[:4]]
    everything = [float(np.mean(list(c.values(metric).values()))) for _, group in panels for c in group]
    figure, grid = style.new_figure(1, len(panels), 3.5 * len(panels) + 0.9, 3.6, squeeze=False)
    with style.applied():
        for (line, group), axes in zip(panels, grid.flat):
            places = np.array([c.weights for c in group]) @ corners
            values = [float(np.mean(list(c.values(metric).values()))) for c in group]
            axes.plot(*corners[[0, 1, 2, 0]].T, color=style.MUTED, linewidth=1, zorder=1)
            points = axes.scatter(
                *places.T, c=values, s=420, cmap="viridis", vmin=min(everything), vmax=max(everything), zorder=2
            )
            middle = (min(everything) + max(everything)) / 2
            for (x, y), value in zip(places, values):
                ink = "#fefefe" if value < middle else "#101010"
                axes.text(x, y, f"{value:#.3g}", ha="center", va="center", fontsize=7, color=ink, zorder=3)
            for corner, reference, offset in zip(
                corners, line.conditions[0].first.references, ((0, -22), (0, -22), (0, 18))
            ):
                axes.annotate(
                    reference, corner, offset, textcoords="offset points", ha="center", va="center", fontweight="bold"
                )
            axes.set_aspect("equal")
            axes.set_axis_off()
            axes.margins(0.16)
            style.title(axes, line.label)
        figure.colorbar(points, ax=list(grid.flat), label=name, shrink=0.75)
    return figure


def disagreement(found: Sequence[Condition]) -> Any | None:
    """How much the references disagree where the policy goes, −log F a token: mean of the last quarter of training."""
    lines = [line for line in series(found) if any(c.first.curve("disagreement")[0] for c in line.conditions)]
    if not lines or len(lines[0].conditions[0].weights) != 2 or all(len(line.conditions) < 2 for line in lines):
        return None
    figure, axes = style.new_figure(width=5.6, height=3.2)
    names, labels = lines[0].conditions[0].first.references, []
    with style.applied():
        axes.set_xlim(0, 1)
        for index, line in enumerate(lines):
            look, rows = style.series(index), []
            for condition in line.conditions:
                late = [
                    np.mean(values[-max(1, len(values) // 4) :]) for _, values in _curves(condition, "disagreement")
                ]
                if late:
                    rows.append((condition.weights[0], float(np.mean(late))))
            axes.plot(*zip(*rows), **look.line())
            labels.append((*rows[-1], line.label, look.color))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"α, weight of {names[0]}")
        axes.set_ylabel("−log F, nats a token")
        figure.draw_without_rendering()
        style.label_ends(axes, labels)
    return figure


def _limit_points(
    set_limits: Callable[[float, float], object], found: Sequence[Interval | None], *also: float | None
) -> None:
    """Limit one axis by means and their intervals, as far as those of few seeds may set it, and by further values."""
    known = [one for one in found if one is not None]
    more = [value for value in also if value is not None]
    limits = point_limits(
        [*(one.mean for one in known), *more], [*(one.half_width for one in known), *[0.0] * len(more)]
    )
    if limits is not None:
        set_limits(*limits)


def _bands(axes: Axes, found: Sequence[Condition], setting: tuple, metric: str, start: float | None) -> None:
    """Horizontal bands of the single references of a setting, lines for the start and for no penalty."""
    for condition, look in _singles(found, setting):
        interval = condition.interval(metric)
        if interval is None:
            continue
        _band(axes, interval, look)
    for condition in _without_penalty(found):
        interval = condition.interval(metric)
        if interval is not None:
            axes.axhline(interval.mean, color=style.INK, linestyle=(0, (1, 1.5)), linewidth=1.1, zorder=1)
    if start is not None:
        axes.axhline(start, color=style.MUTED, linewidth=1, zorder=1)


def _band(axes: Axes, interval: Interval, look: style.SeriesStyle) -> None:
    """What has no alpha: a horizontal line with its interval."""
    axes.axhline(interval.mean, color=look.color, linestyle=look.linestyle, linewidth=1.1, zorder=1)
    if not np.isnan(interval.half_width):
        axes.axhspan(interval.low, interval.high, color=look.color, alpha=0.12, linewidth=0, zorder=0)


def _singles(found: Sequence[Condition], setting: tuple) -> list[tuple[Condition, style.SeriesStyle]]:
    """The single references of a setting, each with its own gray-proof style (apart from the lines' styles)."""
    alone = [c for c in found if c.role == "single" and c.setting == setting]
    looks = [style.SeriesStyle(color, "", dash) for color, dash in zip(_SINGLE_COLORS, _SINGLE_DASHES)]
    return [(c, looks[c.first.references.index(c.alone) % len(looks)]) for c in alone if c.alone]


_SINGLE_COLORS = (style.PALETTE[7], style.PALETTE[6], style.PALETTE[5])
_SINGLE_DASHES = ((0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))


def _without_penalty(found: Sequence[Condition]) -> list[Condition]:
    return [condition for condition in found if condition.role == "beta0"]


def _line_over_alpha(axes: Axes, line: Series, metric: str, index: int) -> None:
    found = [(c.weights[0], c.interval(metric)) for c in line.conditions]
    rows = [(x, interval) for x, interval in found if interval is not None]
    xs, means = [x for x, _ in rows], [interval.mean for _, interval in rows]
    look = style.series(index)
    if line.conditions[0].experiment.adaptive_weights:
        for _, interval in rows:
            _band(axes, interval, look)
        return
    # Small sideways steps keep the error bars of several lines apart.
    shift = 0.006 * (index % 3 - 1)
    halves = [0.0 if np.isnan(interval.half_width) else interval.half_width for _, interval in rows]
    shifted = [x + shift for x in xs]
    axes.errorbar(shifted, means, halves, capsize=2.5, elinewidth=1, zorder=3, **look.line())


def _name_lines(
    axes: Axes, found: Sequence[Condition], lines: list[Series], setting: tuple, metric: str, start: float | None
) -> None:
    labels = []
    for index, line in enumerate(lines):
        if line.conditions[0].setting == setting:
            last = line.conditions[-1]
            interval = last.interval(metric)
            if interval is not None:
                labels.append(
                    (
                        1.0 if last.experiment.adaptive_weights else last.weights[0],
                        interval.mean,
                        line.conditions[0].called(alpha=False, beta=False),
                        style.series(index).color,
                    )
                )
    for condition, look in _singles(found, setting):
        interval = condition.interval(metric)
        if interval is not None:
            labels.append((1.0, interval.mean, f"{condition.alone} alone", look.color))
    for condition in _without_penalty(found):
        interval = condition.interval(metric)
        if interval is not None:
            labels.append((1.0, interval.mean, "β = 0", style.INK))
    if start is not None:
        labels.append((1.0, start, "start", style.MUTED))
    style.label_ends(axes, labels, gap=0.075)


def _setting_title(lines: list[Series], setting: tuple) -> str:
    head = next(line.conditions[0] for line in lines if line.conditions[0].setting == setting)
    charged = head.experiment.penalty.score
    score = charged if isinstance(charged, str) else _SCORES.get(charged, f"score order {charged:g}")
    estimator = "" if head.estimator == "–" else f", {head.estimator}"
    beta = "tuned" if "beta" in head.tuned else f"= {head.beta:g}"
    return f"{score}, {head.level}{estimator}, β {beta}"


def _frontier_line(axes: Axes, line: Series, reference: str, metric: str, index: int) -> None:
    found = [(c.interval(f"kl/{reference}"), c.interval(metric), c.weights) for c in line.conditions]
    rows = [(x, y, weights) for x, y, weights in found if x is not None and y is not None]
    if not rows:
        return
    look = style.series(index)
    xs, ys = [row[0].mean for row in rows], [row[1].mean for row in rows]
    # Joined only where alpha is one number: on a triangle there is no order to join by.
    joined = look.line(label=line.label) if len(rows[0][2]) == 2 else look.line(label=line.label, linestyle="none")
    axes.errorbar(xs, ys, _halves(row[1] for row in rows), _halves(row[0] for row in rows), elinewidth=0.8, **joined)


def _frontier_baselines(axes: Axes, found: Sequence[Condition], reference: str, metric: str) -> None:
    """Single references hollow, in the color of the first line with their score; no penalty as a cross."""
    lines = series(found)
    for condition in found:
        x, y = condition.interval(f"kl/{reference}"), condition.interval(metric)
        if condition.role == "grid" or x is None or y is None:
            continue
        same = [i for i, line in enumerate(lines) if line.conditions[0].setting == condition.setting]
        color = style.series(same[0]).color if same else style.INK
        label, look = "β = 0", dict[str, Any](marker="x", markersize=7, markeredgewidth=1.8)
        if condition.alone is not None and condition.role == "single":
            place = condition.first.references.index(condition.alone)
            label, look = f"{condition.alone} alone", {"marker": "odsv"[place % 4], "markerfacecolor": style.PAPER}
        look |= {"color": color, "elinewidth": 0.8, "linestyle": "none"}
        axes.errorbar([x.mean], [y.mean], _halves([y]), _halves([x]), label=label, **look)


def _halves(intervals: Any) -> list[float]:
    return [0.0 if np.isnan(interval.half_width) else interval.half_width for interval in intervals]


def _shared_legend(figure: Figure, grid: Any) -> None:
    """One legend below all panels; a name that several panels use stands in it once."""
    entries: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, len(entries)))


def _columns(count: int) -> int:
    return min(3, count)


def _grid(count: int, width: float, height: float, more_width: float, more_height: float, **shared: Any) -> Any:
    """A figure with `count` panels in rows of three; panels that are left over are hidden."""
    columns = _columns(count)
    rows = -(-count // columns)
    size = (width * columns + more_width, height * rows + more_height)
    figure, grid = style.new_figure(rows, columns, *size, squeeze=False, **shared)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, grid


def _corners(line: Series, found: Sequence[Condition]) -> list[Condition]:
    return [c for c in found if c.role == "single" and c.setting == line.conditions[0].setting]


def _curves(condition: Condition, metric: str) -> list[tuple[list[int], list[float]]]:
    return [curve for curve in (run.curve(metric) for run in condition.runs) if curve[0]]


def _limit(axes: Axes, drawn: dict[str, np.ndarray]) -> str:
    """Let the arms that stay together set the vertical axis; returns the names of those that leave it."""
    found = curve_limits(list(drawn.values()))
    if found is None:
        return ""
    limits, outside = found
    axes.set_ylim(*limits)
    labels, curves = list(drawn), list(drawn.values())
    farthest = {labels[i]: float(curves[i][np.nanargmax(np.abs(curves[i]))]) for i in outside}
    told = listed([f"{label} ({far:.2g})".replace("-", "−") for label, far in farthest.items()], 1)
    return f"\noutside: {told}" if outside else ""


def _mean_curve(axes: Axes, condition: Condition, metric: str, index: int) -> np.ndarray:
    """Draw a condition's mean over seeds, with its band; returns the mean."""
    curves = _curves(condition, metric)
    common = sorted(set.intersection(*(set(steps) for steps, _ in curves))) if curves else []
    if not common:
        return np.empty(0)
    values = np.array([[at[s] for s in common] for at in (dict(zip(steps, ys)) for steps, ys in curves)])
    smooth = np.array([_smooth(row) for row in values])
    if len(common) > _POINTS:  # more than a panel has pixels: the mean of neighbours, else pages grow with the steps
        common, values, smooth = _binned(np.array([common]))[0], _binned(values), _binned(smooth)
    look, mean = style.series(index), smooth.mean(0)
    axes.plot(common, mean, color=look.color, linestyle=look.linestyle, label=condition.label)
    if len(curves) > 1:
        half = student_t_quantile(0.975, len(curves) - 1) * smooth.std(0, ddof=1) / np.sqrt(len(curves))
        axes.fill_between(common, mean - half, mean + half, color=look.color, alpha=0.1, linewidth=0)
    elif len(common) > 20:
        axes.plot(common, values[0], color=look.color, alpha=0.22, linewidth=0.8)
    return mean


def _binned(values: np.ndarray) -> np.ndarray:
    """(B, N) as (B, at most _POINTS) means of neighbours."""
    edges = np.linspace(0, values.shape[1], _POINTS + 1).astype(int)
    return np.add.reduceat(values, edges[:-1], axis=1) / np.diff(edges)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving average over a tenth of the run: steps are noisy, the trend is what is read."""
    width = max(1, len(values) // 10) | 1
    padded = np.pad(values, width // 2, mode="edge")
    sums = np.concatenate([[0.0], np.cumsum(padded)])  # not a convolution, whose cost is the run times its tenth
    return (sums[width:] - sums[:-width]) / width
