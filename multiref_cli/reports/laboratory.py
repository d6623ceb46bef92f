"""Charts and page of the finite-space laboratory: draws what `theory.findings` describes, knows no theorem itself."""

from pathlib import Path
from typing import Any

import numpy as np

from multiref_cli.reports import style
from multiref_cli.reports.page import Page
from multiref_cli.theory.findings import Chart, Line, Panel, Study
from multiref_cli.types import Axes

PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.0  # inches, labels beside the lines included


def write_report(folder: Path, title: str, introduction: str, studies: list[Study], ending: str = "") -> Path:
    """Write index.html, report.md and the figures of a laboratory run.

    Args:
        folder: the run's report/ folder.
        title: of the page.
        introduction: Markdown before the first study.
        studies: in the order of the page.
        ending: Markdown after the last study.

    Returns:
        Path of index.html.
    """
    page = Page(title).text(introduction)
    for study in studies:
        page.section(study.title, opened=len(studies) == 1).text("\n\n".join(study.texts))
        for chart in study.charts:
            page.figure(chart.name, draw(chart), chart.caption)
        for table in study.tables:
            page.table(table.headers, table.rows, table.caption)
    if ending:
        page.text(ending)
    return page.write(folder)


def draw(chart: Chart) -> Any:
    """Draw a chart as a matplotlib Figure, panels in rows of `chart.columns`."""
    columns = min(chart.columns, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    tallest = max(PANEL_HEIGHT, *(0.26 * len(panel.ranges) + 1.0 for panel in chart.panels))
    width = PANEL_WIDTH * columns * (1.7 if any(panel.ranges for panel in chart.panels) else 1.0)
    with style.applied():
        figure, axes = style.new_figure(rows, columns, width=width, height=tallest * rows, squeeze=False)
        for place, panel in zip(axes.flat, chart.panels):
            _ranges(place, panel) if panel.ranges else _lines(place, panel)
        for place in list(axes.flat)[len(chart.panels) :]:
            place.set_visible(False)
    return figure


def _lines(axes: Axes, panel: Panel) -> None:
    ends = []
    for line in panel.lines:
        x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
        color = _draw_line(axes, line, x, y)
        shown = np.flatnonzero(np.isfinite(y) & ((y > 0) if panel.y_scale == "log" else np.ones(len(y), bool)))
        if line.at_peak:
            _label_peak(axes, line.label, x, y, color)
        elif line.label and len(shown):
            ends.append((x[shown[-1]], y[shown[-1]], line.label, color))
    axes.set(xscale=panel.x_scale, yscale=panel.y_scale, xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.y_limits:
        axes.set_ylim(*panel.y_limits)
    style.title(axes, panel.title)
    if panel.note:
        axes.text(0.03, 0.04, panel.note, transform=axes.transAxes, fontsize=8, color=style.MUTED, va="bottom")
    if any(line.at_peak for line in panel.lines):
        axes.margins(y=0.12)  # room for the names above the peaks
    axes.autoscale_view()
    if panel.x_scale == "log":
        _plain_ticks(axes.xaxis, *axes.get_xlim())
    if panel.y_scale == "log":
        _plain_ticks(axes.yaxis, *axes.get_ylim())
    low, high = axes.get_ylim()
    style.label_ends(axes, [(x, min(max(y, low), high), text, color) for x, y, text, color in ends], gap=0.085)


def _label_peak(axes: Axes, label: str, x: np.ndarray, y: np.ndarray, color: str) -> None:
    top = int(np.nanargmax(np.abs(y)))
    first, last = np.flatnonzero(np.isfinite(y))[[0, -1]]
    above = y[top] >= 0
    axes.annotate(
        label,
        (x[top], y[top]),
        (0, 5 if above else -5),
        textcoords="offset points",
        ha="left" if top == first else "right" if top == last else "center",
        va="bottom" if above else "top",
        color=color,
        fontsize=8.5,
        fontweight="bold",
        bbox={"facecolor": style.PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
    )


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    # Over less than two decades powers of ten say little: 0.5, 1, 2, 5 are read at a glance.
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    if high / low < 150:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_line(axes: Axes, line: Line, x: np.ndarray, y: np.ndarray) -> str:
    look = style.series(line.series)
    if line.low is not None and line.high is not None:
        axes.fill_between(x, line.low, line.high, color=look.color, alpha=0.18, linewidth=0)
    if line.kind == "measured":
        axes.plot(x, y, **look.line(linestyle="-", linewidth=1.1))
    elif line.kind == "bound":
        axes.plot(x, y, color=look.color, linestyle=(0, (5, 2)), linewidth=1.6)
    elif line.kind == "predicted":
        axes.plot(x, y, color=style.INK, linewidth=1.2, zorder=1.5)
        return style.INK
    else:
        axes.plot(x, y, color=look.color, linestyle=look.linestyle, linewidth=1.9)
    return look.color


def _ranges(axes: Axes, panel: Panel) -> None:
    for height, row in enumerate(reversed(panel.ranges)):
        look = style.series(row.series)
        least, low, middle, high, most = row.points
        axes.plot([least, most], [height, height], color=look.color, linewidth=1.0, alpha=0.6)
        axes.plot([low, high], [height, height], color=look.color, linewidth=5.0, alpha=0.55, solid_capstyle="butt")
        axes.plot([middle], [height], **look.line(linestyle="none", markersize=6))
        axes.plot([least], [height], marker="|", color=look.color, markersize=9, markeredgewidth=1.6)
    axes.axvline(1.0, color=style.INK, linewidth=1.2)
    axes.set(xscale=panel.x_scale, xlabel=panel.x_label, ylim=(-0.7, len(panel.ranges) - 0.3))
    axes.set_yticks(range(len(panel.ranges)), [row.label for row in reversed(panel.ranges)])
    axes.grid(axis="y", visible=False)
    style.title(axes, panel.title)
