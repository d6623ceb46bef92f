"""How the arms of a sweep were tuned: what was tried, where each optimum lay, whether that is an end of its range."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multiref_cli.config.plain import from_plain
from multiref_cli.files import read_lines, read_object
from multiref_cli.reports import style
from multiref_cli.reports.page import Page
from multiref_cli.sweeps.search import FOLDER, SETTINGS, TRIALS
from multiref_cli.sweeps.space import Axis
from multiref_cli.types import Axes, Figure

# A best value in this outer share of its range, on the range's own scale, lies at its end.
EDGE = 0.05
# More trials than this are left to trials.jsonl and the figure.
_SHOWN = 40
Line = Mapping[str, Any]


def add_search(page: Page, sweep: Path) -> None:
    """Add a section on the search of a sweep; nothing where it has none."""
    settings = read_object(sweep / FOLDER / SETTINGS)
    trials = read_lines(sweep / FOLDER / TRIALS)
    if settings is None or not trials:
        return
    arms, axes = settings["arms"], [from_plain(Axis, one) for one in settings["space"]]
    page.text("## How each arm was tuned").text(_budget(settings, trials))
    page.text("\n".join(f"- {sentence}" for sentence in edges(arms, axes, trials)))
    headers = ["arm", "trials", "pruned", "failed", *(axis.key for axis in axes), "value", "found in trial"]
    caption = "The best trial of every arm, at whose settings it is compared; value: on the tuning rows and seeds."
    page.table(headers, [_row(arm, axes, trials) for arm in arms], caption, "search")
    ranges = [axis for axis in axes if not axis.choices]
    if ranges and any(trial["value"] is not None for trial in trials):
        page.figure("search", _figure(arms, ranges, trials), "Every finished trial against each tuned key.")
    if len(trials) <= _SHOWN:
        names = {arm["id"]: arm["name"] for arm in arms}
        rows = [
            [names.get(one["arm"], "–"), one["number"] + 1, *(one["params"].get(a.key, "–") for a in axes), _end(one)]
            for one in trials
        ]
        page.table(
            ["arm", "trial", *(axis.key for axis in axes), "value"], rows, "Everything that was tried.", "trials"
        )


def searched(sweep: Path) -> tuple[str, str] | None:
    """The ranges that the arms of a sweep were tuned over, and how; None where it has no search."""
    settings = read_object(sweep / FOLDER / SETTINGS)
    if settings is None:
        return None
    trials = len(read_lines(sweep / FOLDER / TRIALS))
    keys = [one["key"] for one in settings["space"]]
    how = (
        f"{' and '.join(keys)} of each arm are those of its best trial, of {trials} by {settings['sampler']} over "
        f"{len(settings['arms'])} arms, on seeds and rows that are not reported"
    )
    return ", ".join(f"{one['key']} {from_plain(Axis, one)}" for one in settings["space"]), how


def edges(arms: Sequence[Line], axes: Sequence[Axis], trials: Sequence[Line]) -> list[str]:
    """A sentence for every arm's best value that lies at an end of its range, or the one that none does."""
    found = []
    for arm in arms:
        best = best_of(arm, trials)
        if best is None:
            found.append(f"{arm['name']}: no trial is done, nothing was found.")
            continue
        for axis in axes:
            end = at_end(axis, best["params"][axis.key]) if axis.key in best["params"] else ""
            if end:
                found.append(
                    f"{arm['name']}: the best `{axis.key}`, {best['params'][axis.key]}, lies at the {end} end of its "
                    f"range ({axis}): a wider range may hold a better one."
                )
    return found or ["No arm's best value lies at an end of its range."]


def at_end(axis: Axis, value: str) -> str:
    """lower or upper where a value lies in the outer share of a range, else nothing; choices have no ends."""
    share = axis.share(value)
    if share is None:
        return ""
    return "lower" if share <= EDGE else "upper" if share >= 1 - EDGE else ""


def best_of(arm: Line, trials: Sequence[Line]) -> Line | None:
    """The finished trial of an arm with the highest value, the earliest of equal ones."""
    done = [one for one in trials if one["arm"] == arm["id"] and one["value"] is not None]
    return max(done, key=lambda one: (one["value"], -one["number"]), default=None)


def _budget(settings: Line, trials: Sequence[Line]) -> str:
    arms, seeds = settings["arms"], settings["seeds"]
    counts = {sum(one["arm"] == arm["id"] for one in trials) for arm in arms if arm["tuned"]}
    each = f"{counts.pop()} trials" if len(counts) == 1 else f"{min(counts)} to {max(counts)} trials (not ended yet)"
    named = ", ".join(f"`{one['key']}` ({from_plain(Axis, one)})" for one in settings["space"])
    metrics = dict.fromkeys(f"`{one['metric']}`" for one in trials if one["metric"])
    measured = " or ".join(metrics) or "nothing yet"
    pruning = f" Pruned by {settings['pruning']} of `{settings['curve']}`." if settings["curve"] else ""
    return (
        f"Each of {len(arms)} arms had {each} of {named}, by {settings['sampler']}, {settings['batch']} at a time. "
        f"Maximized: {measured}, on seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, which no result of this "
        f"report is of, with {' '.join(f'`{one}`' for one in settings['tuning'])}.{pruning} What is compared in this "
        "report is each arm at its own best."
    )


def _row(arm: Line, axes: Sequence[Axis], trials: Sequence[Line]) -> list[Any]:
    own, best = [one for one in trials if one["arm"] == arm["id"]], best_of(arm, trials)
    states = [sum(one["state"] == state for one in own) for state in ("pruned", "failed")]
    params = best["params"] if best else {}
    cells = [_marked(axis, params[axis.key]) if axis.key in params else "its own" for axis in axes]
    found = [float(best["value"]), best["number"] + 1] if best else [None, None]
    return [arm["name"], len(own), *states, *cells, *found]


def _marked(axis: Axis, value: str) -> str:
    end = at_end(axis, value)
    return f"**{value}** ({end} end)" if end else value


def _end(trial: Line) -> Any:
    if trial["value"] is not None:
        return float(trial["value"])
    return f"pruned at step {trial['reached'][0]}" if trial["state"] == "pruned" else trial["state"]


def _figure(arms: Sequence[Line], axes: Sequence[Axis], trials: Sequence[Line]) -> Figure:
    """One row a metric that was maximized, one panel a tuned key, one marker an arm; the best trial of each larger."""
    done = [one for one in trials if one["value"] is not None]
    metrics = list(dict.fromkeys(one["metric"] for one in done))
    size = {"width": 3.2 * len(axes) + 2.4, "height": 2.9 * len(metrics)}
    figure, panels = style.new_figure(**size, columns=len(axes), rows=len(metrics))
    with style.applied():
        for row, metric in zip(np.reshape(panels, (len(metrics), len(axes))), metrics, strict=True):
            found = [one for one in done if one["metric"] == metric]
            own = [arm for arm in arms if any(one["arm"] == arm["id"] for one in found)]
            for axis, panel in zip(axes, row, strict=True):
                _draw(panel, axis, own, found)
            row[0].set_ylabel(f"{metric} on the tuning rows")
            row[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def _draw(panel: Axes, axis: Axis, arms: Sequence[Line], trials: Sequence[Line]) -> None:
    """Every trial of some arms against one key."""
    for number, arm in enumerate(arms):
        look, best = style.series(number), best_of(arm, trials)
        own = [one for one in trials if one["arm"] == arm["id"] and axis.key in one["params"]]
        xs, ys = [float(one["params"][axis.key]) for one in own], [one["value"] for one in own]
        panel.plot(xs, ys, look.marker, color=look.color, markersize=4, alpha=0.6, label=arm["name"])
        if best is not None and axis.key in best["params"]:
            panel.plot([float(best["params"][axis.key])], [best["value"]], look.marker, color=look.color, ms=9)
    if axis.kind == "log":
        panel.set_xscale("log")
    panel.set_xlabel(axis.key)
