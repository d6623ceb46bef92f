"""The picture of regimes: a row of panels a training, a column a yardstick, a cell of beta by distance in each."""

from collections.abc import Sequence
from typing import Any

from multiref_cli.reports import style
from multiref_cli.reports.job_section import CONFIDENCE
from multiref_cli.reports.page import Page
from multiref_cli.reports.regime_words import places, rows, sentence
from multiref_cli.reports.regimes import ARITHMETIC, GEOMETRIC, SINGLE, YARDSTICKS, Regime, Regimes, kind_of
from multiref_cli.types import Axes, Figure

# Regularizers that most pictures have keep their hues; others take the next ones.
_HUES = {"rkl": 0, "mrpo": 3, "fkl": 2, SINGLE: 1}
_TINT = 0.5


def add_regimes(page: Page, made: Regimes | None) -> None:
    """Add the section: a sentence a yardstick, the picture, and the same as a table."""
    if made is None:
        return
    page.section("Where does which regularizer win?", opened=True)
    own = [[one for one in made.found if one.yardstick == name] for name in made.yardsticks]
    page.text("\n".join(f"- {sentence(cells)}" for cells in own))
    page.figure("regimes", figure(made.found), _caption(made.yardsticks))
    headers, cells = rows(made.found)
    page.table(headers, cells, _table_caption(made), name="regimes")


def _caption(yardsticks: Sequence[str]) -> str:
    text = (
        "Each cell: which arm is significantly above all others; hatched: undecided, with the arms that are not told "
        "apart from the highest, how many they are of those compared (3 of 5), or the one that is told apart (not …). "
        "Start and other: one of the two references alone. Up: farther from the start (KL from the start, nats a "
        "response)."
    )
    if GEOMETRIC in yardsticks:
        text += f" {YARDSTICKS[GEOMETRIC]} is what reverse KL maximizes at sequence level"
        text += f"; {YARDSTICKS[ARITHMETIC]} forgives being near any one of both" if ARITHMETIC in yardsticks else ""
        text += ". Neither is MRPO's (the harmonic mean) nor that of forward KL (on responses of the references)."
    return text


def _table_caption(made: Regimes) -> str:
    pairs = len(made.verdicts) // max(1, len(made.yardsticks))
    return (
        "Every cell in words. Compared are all arms but the two references alone with each other, paired by seed and "
        f"prompt, with {CONFIDENCE:.0%} intervals; best: above each other arm after Holm's correction for all {pairs} "
        "pairs of a column. The spread over seeds is what all arms of the same training and β share. A yardstick's α "
        "and β are those of the cell, also for a reference alone."
    )


def figure(found: Sequence[Regime]) -> Figure:
    """Draw the cells.

    Args:
        found: of every yardstick that is to be shown.
    """
    trainings = list(dict.fromkeys(one.training for one in found))
    yardsticks = [name for name in YARDSTICKS if any(one.yardstick == name for one in found)]
    named = places(found)
    tall = [len({p for one, p in zip(found, named) if one.training == training}) for training in trainings]
    height = 0.95 + sum(0.5 + 0.33 * count for count in tall)
    drawn, grid = style.new_figure(
        len(trainings), len(yardsticks), 1.7 + 1.1 * len(yardsticks), height, squeeze=False, height_ratios=tall
    )
    with style.applied():
        for number, (training, line) in enumerate(zip(trainings, grid)):
            own = [(one, place) for one, place in zip(found, named) if one.training == training]
            for yardstick, axes in zip(yardsticks, line):
                _panel(axes, own, yardstick, named=axes is line[0])
                if number == 0:
                    _head(axes, YARDSTICKS[yardstick])
            if number == len(trainings) - 1:
                for axes in line:
                    axes.set_xlabel("β")
            name = line[0].text(0, 1, training, transform=line[0].transAxes, va="bottom", fontsize=8.5, weight="bold")
            name.set_in_layout(False)  # longer than its panel is wide
        looks = _legend(found)
        drawn.legend(list(looks.values()), list(looks), loc="outside lower center", ncols=2, handlelength=1.4)
    return drawn


def _head(axes: Axes, words: str) -> None:
    """What a column is measured by, above the line with the name of the first row."""
    above = words.replace(" − ", " −\n")
    axes.set_title(above + "\n" * (2 - above.count("\n")), fontsize=8.5, fontweight="normal", pad=2)


def _panel(axes: Axes, own: Sequence[tuple[Regime, str]], yardstick: str, named: bool) -> None:
    """One training by one yardstick: cells, each with the place that its row is."""
    betas = sorted({one.beta for one, _ in own})
    every = list(dict.fromkeys(place for _, place in own))
    known = {(place, one.beta): one for one, place in own if one.yardstick == yardstick}
    for row, place in enumerate(every):
        for column, beta in enumerate(betas):
            _cell(axes, column, row, known.get((place, beta)))
    axes.set_xlim(-0.5, len(betas) - 0.5)
    axes.set_ylim(-0.5, len(every) - 0.5)
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas], fontsize=7.5)
    axes.set_yticks(range(len(every)), [p.replace(", ", "\n") for p in every] if named else [], fontsize=7.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title(" ", fontsize=8.5, pad=2)


def _cell(axes: Axes, column: int, row: int, one: Regime | None) -> None:
    """A filled cell of a winner, a hatched one without, an empty one where nothing was measured."""
    from matplotlib.patches import Rectangle

    box: dict[str, Any] = {"xy": (column - 0.47, row - 0.45), "width": 0.94, "height": 0.9}
    if one is None or not one.contenders:
        axes.text(column, row, "–", ha="center", va="center", color=style.MUTED)
        return
    if one.winner:
        axes.add_patch(Rectangle(**box, facecolor=hue(one.winner), alpha=_TINT, linewidth=0))
    else:
        axes.add_patch(Rectangle(**box, facecolor="none", edgecolor=style.GRID, hatch="/////", linewidth=0))
    axes.add_patch(Rectangle(**box, facecolor="none", edgecolor=style.MUTED, linewidth=0.6))
    axes.text(
        *(column, row, _label(one)),
        ha="center",
        va="center",
        fontsize=7.5 if one.winner else 6.5,
        fontweight="bold" if one.winner else "normal",
        linespacing=0.95,
    )


def _label(one: Regime) -> str:
    """Who is best, or who is not told apart from the highest: their names where they are two."""
    if one.missing and not one.winner:
        return "not all"
    if one.winner:
        return _short(one, one.contenders[0])
    if len(one.open_kinds) > 2:
        none_alone = SINGLE not in one.open_kinds
        out = list(dict.fromkeys(kind_of(name) if none_alone else _short(one, name) for name in one.behind))
        every = len(one.contenders) + len(one.behind)
        return "all" if not out else f"not\n{out[0]}" if len(out) == 1 else f"{len(one.contenders)} of {every}"
    alone = [name for name in one.contenders if kind_of(name) == SINGLE]
    names = [_short(one, alone[0]) if kind == SINGLE and len(alone) == 1 else kind for kind in one.open_kinds]
    return "\n".join(names)


def _short(one: Regime, name: str) -> str:
    if kind_of(name) != SINGLE:
        return name
    return "other" if name.startswith(f"{one.second} ") else "start"


def _legend(found: Sequence[Regime]) -> dict[str, Any]:
    from matplotlib.patches import Patch

    kinds = dict.fromkeys(kind for one in found for kind in one.kinds)
    shown = sorted(kinds, key=lambda kind: list(_HUES).index(kind) if kind in _HUES else 2.5)
    words = {SINGLE: "a single reference"}
    looks = {words.get(kind, kind): Patch(facecolor=hue(kind), alpha=_TINT) for kind in shown}
    return looks | {"undecided": Patch(facecolor="none", edgecolor=style.GRID, hatch="/////")}


def hue(kind: str) -> str:
    """The color of a regularizer, or of single references."""
    return style.series(_HUES.get(kind, 4 + sum(map(ord, kind)) % 4)).color
