"""One look for every figure: color-blind-safe hues, and markers and line styles that tell series apart in grey."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from multiref_cli.types import Axes

INK = "#22262b"
MUTED = "#6b7280"
GRID = "#e3e6ea"
PAPER = "#ffffff"

# Okabe and Ito's set, reordered so that neighbours differ in lightness as well as in hue.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
# The same hues, lifted for a dark page; the HTML report swaps them through CSS variables.
DARK_PALETTE = ("#5aa9e6", "#ff8a4c", "#3ecf9f", "#e6a3c6", "#f2bd4a", "#8fd0f5", "#b08fd0", "#c9a866")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (5, 1.4, 1.2, 1.4)), (0, (1.3, 1.3)), (0, (8, 2)), "-", "--", "-.")

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "figure.facecolor": PAPER,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
}


class SeriesStyle(NamedTuple):
    """What distinguishes one series: hue, marker and line style together."""

    color: str
    marker: str
    linestyle: Any

    def line(self, **overrides: Any) -> dict[str, Any]:
        """Return keyword arguments for `Axes.plot`, with a thin rim of paper around each marker."""
        style = {"color": self.color, "marker": self.marker, "linestyle": self.linestyle, "markeredgecolor": PAPER}
        return style | {"markeredgewidth": 0.8} | overrides


def series(index: int) -> SeriesStyle:
    """Return the style of the series at `index`; the same index always looks the same."""
    return SeriesStyle(*(choices[index % len(choices)] for choices in (PALETTE, MARKERS, DASHES)))


@contextmanager
def applied() -> Iterator[None]:
    """Apply the style inside a `with` block; build and save figures inside one."""
    import matplotlib

    with matplotlib.rc_context(RC):
        yield


def new_figure(
    rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 3.8, **subplots: Any
) -> tuple[Any, Any]:
    """Return (figure, axes) in the shared style, without pyplot and so without global state.

    Args:
        rows: rows of axes.
        columns: columns of axes.
        width: width of the figure in inches.
        height: height of the figure in inches.
        **subplots: passed to `Figure.subplots` (`sharey=True` and so on).

    Returns:
        The figure and one Axes, or an array of Axes where rows * columns > 1.
    """
    from matplotlib.figure import Figure

    with applied():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **subplots)


def title(axes: Axes, text: str) -> None:
    """Set the title of one Axes: bold, small, flush left."""
    axes.set_title(text, loc="left", fontsize=10.0, fontweight="bold", pad=8.0, color=INK)


def label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]], gap: float = 0.06) -> None:
    """Write series names beside the right ends of their lines, pushed apart where they would overlap.

    Call it last, when the limits of the axes are final: positions are computed from them.

    Args:
        axes: the matplotlib Axes.
        labels: (x, y, text, color) of each line's end, in data coordinates.
        gap: smallest vertical distance between two labels, as a fraction of the height of the axes.
    """
    if not labels:
        return
    to_fraction = axes.transData + axes.transAxes.inverted()
    ends = sorted(((*to_fraction.transform((x, y)), text, color) for x, y, text, color in labels), key=lambda e: e[1])
    heights = spread([end[1] for end in ends], gap)
    column = max(1.0, *(end[0] for end in ends)) + 0.02
    for (x, y, text, color), height in zip(ends, heights):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(column, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize=8.5,
            fontweight="bold",
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "alpha": 0.7,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0.0, 0.5),
            },
        )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move sorted positions as little as possible (least squares) so that neighbours are at least `gap` apart.

    Args:
        positions: increasing positions.
        gap: smallest distance allowed between neighbours, in the same unit.

    Returns:
        The new positions, in the same order.
    """
    # Subtracting i * gap turns "at least gap apart" into "non-decreasing": pooling adjacent violators solves that.
    blocks: list[list[float]] = []
    for index, position in enumerate(positions):
        blocks.append([position - index * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    pooled = [mean for mean, size in blocks for _ in range(int(size))]
    return [mean + index * gap for index, mean in enumerate(pooled)]
