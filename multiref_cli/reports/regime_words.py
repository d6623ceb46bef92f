"""What a picture of regimes says in words, a table and a file: from a report's cells as from the published ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports.regimes import SINGLE, YARDSTICKS, Regime, kind_of, weights_vary
from multiref_cli.reports.table_file import pipe_table, read_table, write_table
from multiref_cli.reports.wording import signed

COLUMNS = (
    *("training", "second", "distance", "distance_low", "distance_high", "prompts", "beta", "yardstick", "winner"),
    *("contenders", "margin", "margin_low", "margin_high", "seeds", "missing", "means", "weights"),
)
# Files of earlier versions do not say the weights.
_EARLIER = COLUMNS[:-1]


def sentence(found: Sequence[Regime]) -> str:
    """What one yardstick says of all its cells: where which arm is best, what is behind the best, what is undecided.

    Args:
        found: of one yardstick.
    """
    words = YARDSTICKS[found[0].yardstick]
    kinds = list(dict.fromkeys(kind for one in found for kind in one.kinds))
    kinds = sorted(kinds, key=lambda kind: kind == SINGLE)
    counts = {kind: [one for one in found if one.winner == kind] for kind in kinds}
    open_ = [one for one in found if not one.decided]
    behind = _behind(found, kinds)
    if len(open_) == len(found):
        names = f"{', '.join(map(_called, kinds[:-1]))} and {_called(kinds[-1])}" if len(kinds) > 1 else "anything"
        text = (
            f"By {words} it is undecided everywhere: in none of {len(found)} cells is one of {names} above all others"
        )
        return f"{text}.{behind}"
    won = [f"{_called(kind)} in {len(own)}{_where(own, found)}" for kind, own in counts.items() if own]
    never = [_called(kind) for kind, own in counts.items() if not own]
    text = f"By {words}, of {len(found)} cells, best are {'; '.join(won)}; {len(open_)} are undecided"
    text += f"; {' and '.join(never)} in none" if never else ""
    return f"{text}.{behind}"


def _behind(found: Sequence[Regime], kinds: Sequence[str]) -> str:
    """In how many cells each kind is significantly below the highest: what an undecided cell still rules out."""
    whole = [one for one in found if not one.missing]
    counts = {kind: sum(kind in map(kind_of, one.behind) for one in whole) for kind in kinds}
    each = sum(SINGLE in one.kinds and SINGLE not in one.open_kinds for one in whole)
    several = f", all of them in {each}" + ", where a mix of references beats each alone" * (each > 0)
    told = [
        f"at least one reference alone in {count}{several * (count > 0)}" if kind == SINGLE else f"{kind} in {count}"
        for kind, count in counts.items()
    ]
    return f" Significantly below the highest: {', '.join(told)}." if any(counts.values()) else ""


def _where(own: Sequence[Regime], found: Sequence[Regime]) -> str:
    """On which values of an axis all cells of a winner lie, where that is not on all of them."""
    axes: list[tuple[str, Callable[[Regime], str]]] = [
        ("", lambda one: one.training),
        ("with ", lambda one: one.second),
        ("β ", lambda one: f"{one.beta:g}"),
    ]
    if weights_vary(found):
        axes.insert(2, ("weight of the other ", lambda one: f"{one.weights[one.second]:g}"))
    told = []
    for word, of in axes:
        every, here = list(dict.fromkeys(map(of, found))), {of(one) for one in own}
        if len(here) < len(every) and len(here) <= 2:
            told.append(word + " and ".join(value for value in every if value in here))
    return f" ({'; '.join(told)})" if told else ""


def _called(kind: str) -> str:
    return "a single reference" if kind == SINGLE else kind


def sentences(found: Sequence[Regime]) -> str:
    """Which trainings there are, and `sentence` of every yardstick that was measured."""
    own = {name: [one for one in found if one.yardstick == name] for name in YARDSTICKS}
    trainings = "; ".join(dict.fromkeys(one.training for one in found))
    seeds = max((mean.n for one in found for mean in one.means.values()), default=0)
    return " ".join([f"{trainings}; {seeds} seed{'s' * (seeds != 1)}.", *(sentence(c) for c in own.values() if c)])


def places(found: Sequence[Regime]) -> list[str]:
    """The second reference of each cell, with its weight where weights vary and its distance from the start where that
    was measured."""
    weighed = weights_vary(found)
    return [
        (f"{one.weights[one.second]:g} × " if weighed else "")
        + (one.second if one.distance is None else f"{one.second}, {one.distance.mean:.2g} nats")
        for one in found
    ]


def rows(found: Sequence[Regime]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table: a row a cell, a column a yardstick."""
    yardsticks = [name for name in YARDSTICKS if any(one.yardstick == name for one in found)]
    cells: dict[tuple[str, str, str], dict[str, Regime]] = {}
    for one, place in zip(found, places(found)):
        cells.setdefault((one.training, place, f"{one.beta:g}"), {})[one.yardstick] = one
    made = [[*cell, *(_said(own.get(name)) for name in yardsticks)] for cell, own in cells.items()]
    return ["training", "start and", "β", *(YARDSTICKS[name] for name in yardsticks)], made


def _said(one: Regime | None) -> str:
    """What a yardstick says of a cell: who is best and by how much, or who is not told apart."""
    if one is None or not one.contenders:
        return "–"
    margin = f" {signed(one.margin)} over {one.next}" if one.margin is not None and one.next else ""
    if one.winner:
        return f"**{one.contenders[0]}**{margin}"
    if one.missing:
        return f"not all there: {', '.join(one.missing)}"
    if not one.behind:
        return "undecided: all"
    return f"undecided: {', '.join(one.contenders)}"


def markdown(found: Sequence[Regime]) -> str:
    """The table as a page of results holds it."""
    headers, made = rows(found)
    return pipe_table(headers, made)


def write_regimes(found: Sequence[Regime], path: Path) -> None:
    """Write regimes.csv: one row a cell and yardstick, numbers with six significant digits."""
    write_table(path, COLUMNS, map(_written, found))


def _written(one: Regime) -> list[Any]:
    means = "; ".join(f"{name} {' '.join(_numbers(value))}" for name, value in one.means.items())
    weights = "; ".join(f"{name} {weight:g}" for name, weight in one.weights.items())
    seeds = max((value.n for value in one.means.values()), default=0)
    return [
        *(one.training, one.second, *_numbers(one.distance), one.distance.n if one.distance else ""),
        *(f"{one.beta:g}", one.yardstick, one.winner, "; ".join(one.contenders), *_numbers(one.margin)),
        *(seeds, "; ".join(one.missing), means, weights),
    ]


def read_regimes(path: Path) -> list[Regime]:
    """Read what `write_regimes` wrote.

    Raises:
        RequestError: no such file, or another one.
    """
    return [_parsed(row) for row in read_table(path, "CSV of regimes", _EARLIER, COLUMNS)]


def _parsed(row: dict[str, str]) -> Regime:
    seeds = int(row["seeds"])
    means = {}
    for text in filter(None, row["means"].split("; ")):
        name, mean, low, high = text.rsplit(" ", 3)
        means[name] = Interval(float(mean), float(low), float(high), seeds)
    distance = _interval(row["distance"], row["distance_low"], row["distance_high"], row["prompts"])
    contenders, missing = (tuple(filter(None, row[key].split("; "))) for key in ("contenders", "missing"))
    margin = _interval(row["margin"], row["margin_low"], row["margin_high"], row["seeds"])
    names = (row["training"], row["second"], distance, float(row["beta"]), row["yardstick"], row["winner"])
    told = (text.rsplit(" ", 1) for text in filter(None, (row.get("weights") or "").split("; ")))
    weights = {name: float(weight) for name, weight in told}
    return Regime(*names, contenders, means, margin, missing, weights)


def _numbers(one: Interval | None) -> list[str]:
    return ["", "", ""] if one is None else [f"{value:.6g}" for value in one[:3]]


def _interval(mean: str, low: str, high: str, n: str) -> Interval | None:
    return Interval(float(mean), float(low), float(high), int(n)) if mean else None
