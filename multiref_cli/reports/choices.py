"""How a rule chose alpha: the curve that it compared, a table and a sentence, from alpha.json of a run or a sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multiref_cli.reports import style
from multiref_cli.reports.collect import alpha_text
from multiref_cli.reports.page import Page
from multiref_cli.tracking.run_dir import read_choices

# Standard errors of a difference within which another point counts as good as the chosen one.
_NEAR = 2.0
Choice = Mapping[str, Any]


def add_choices(page: Page, folder: Path) -> None:
    """Add a section for the choices of alpha that a folder holds; nothing where it holds none."""
    choices = read_choices(folder)
    if choices:
        page.text("## How alpha was chosen")
    for number, choice in enumerate(choices, 1):
        stem = "alpha" if len(choices) == 1 else f"alpha-{number}"
        page.text(chosen(choice))
        if len(choice["references"]) == 2:
            page.figure(f"{stem}-chosen", _figure(choice), _caption(choice))
        headers, rows = compared(choice)
        caption = f"{_capital(_measure(choice))}: the chosen weights, equal ones, each reference alone."
        page.table(headers, rows, caption, stem)


def chosen(choice: Choice) -> str:
    """What was chosen, by what, and how far each reference alone is below it."""
    names, at = choice["references"], _chosen(choice)
    weights = ", ".join(f"{weight:g} {name}" for weight, name in zip(choice["weights"], names) if weight)
    world = f" in world {choice['world']}" if choice["world"] else ""
    what = f"`alpha={choice['rule']}` for {choice['regularizer']} β={choice['beta']:g}{world}"
    value = f"{choice['values'][at]:.4g}" + (" nats" if choice["rule"] == "balanced" else "")
    found = f"{what} is {alpha_text(choice['weights'])} ({weights}): {_measure(choice)}, is {value}"
    near = [i for i in range(len(choice["points"])) if _is_near(choice, i)]
    if choice["rule"] == "balanced":
        return f"{found}, the largest of {len(choice['points'])} weights; it reads no reward."
    alone = [(name, _corner(choice, k)) for k, name in enumerate(names)]
    gaps = [f"{choice['values'][at] - choice['values'][i]:.2g} above {name} alone" for name, i in alone if i != at]
    spread = f"{len(near)} of {len(choice['points'])} weights lie within {_NEAR:g} standard errors of it"
    if len(names) == 2:
        first = [choice["points"][i][0] for i in near]
        spread += f", from α = {min(first):g} to {max(first):g}"
    why = ""
    if choice["method"] == "samples":
        why = (
            " One response would have had all the importance weight, so these are samples of the untrained mixed "
            "reference, drawn token by token: the limit of large β."
        )
    return f"{found}, {', '.join(gaps)}; {spread}.{why}"


def compared(choice: Choice, thin: bool = False) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows of a table of points.

    Args:
        choice: as alpha.json has it.
        thin: every tenth of the curve of two references too, as a terminal shows it.
    """
    names, points = choice["references"], choice["points"]
    even = [1 / len(names)] * len(names)
    wanted = {_chosen(choice), *(_corner(choice, k) for k in range(len(names)))}
    wanted |= {i for i, point in enumerate(points) if _close(point, even)}
    if thin and len(names) == 2:
        wanted |= {i for i, point in enumerate(points) if abs(10 * point[0] - round(10 * point[0])) < 1e-6}
    effective = choice["effective"]
    rows = [
        [
            f"**{alpha_text(points[i])}**" if i == _chosen(choice) and not thin else alpha_text(points[i]),
            float(choice["values"][i]),
            _difference(choice, i),
            float(effective[i]) if effective else None,
            {_chosen(choice): "chosen"}.get(i) or _name(choice, i),
        ]
        for i in sorted(wanted)
    ]
    return ["α", _unit(choice), "below the chosen", "effective responses", ""], rows


def _difference(choice: Choice, i: int) -> str:
    gap, error = choice["values"][_chosen(choice)] - choice["values"][i], choice["errors"][i]
    return "–" if i == _chosen(choice) else f"{gap:.3g} ± {_NEAR * error:.2g}"


def _name(choice: Choice, i: int) -> str:
    corners = {_corner(choice, k): f"{name} alone" for k, name in enumerate(choice["references"])}
    return corners.get(i, "")


def _chosen(choice: Choice) -> int:
    return next(i for i, point in enumerate(choice["points"]) if _close(point, choice["weights"]))


def _corner(choice: Choice, k: int) -> int:
    return next(i for i, point in enumerate(choice["points"]) if point[k] == 1)


def _close(point: Sequence[float], weights: Sequence[float]) -> bool:
    return all(abs(a - b) < 1e-6 for a, b in zip(point, weights))


def _is_near(choice: Choice, i: int) -> bool:
    return bool(choice["values"][_chosen(choice)] - choice["values"][i] <= _NEAR * choice["errors"][i])


def _unit(choice: Choice) -> str:
    """Short name of what is compared."""
    if choice["rule"] == "balanced":
        return "disagreement, nats"
    return f"{choice['score']}, untrained" if choice["method"] == "samples" else f"value, {choice['score']}"


def _measure(choice: Choice) -> str:
    """What is compared, in words."""
    over = f"mean over {choice['prompts']} training prompts"
    if choice["rule"] == "balanced":
        return f"the references' disagreement that no policy can avoid, {over}"
    if choice["method"] == "samples":
        return f"{choice['score']} of the untrained mixed reference, {over}"
    return f"the best value towards the normalized mixed reference, {choice['score']} as the reward, {over}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _caption(choice: Choice) -> str:
    first, second = choice["references"]
    each = "each mixed reference" if choice["method"] == "samples" else "each reference"
    text = (
        f"{_capital(_measure(choice))}, against the weight of {first}; ends: {second} and "
        f"{first} alone. {choice['responses']} responses of {each} to each prompt. Dot: the chosen weight. Band: "
        f"{_NEAR:g} standard errors of the difference to it."
    )
    if choice["effective"]:
        text += f" Effective responses: at least {min(choice['effective']):.1f} (median over prompts)."
    return text


def _figure(choice: Choice) -> Any:
    first, second = choice["references"]
    xs, ys = [point[0] for point in choice["points"]], choice["values"]
    low, high = ([y + sign * _NEAR * e for y, e in zip(ys, choice["errors"])] for sign in (-1, 1))
    figure, axes = style.new_figure(width=6.4, height=3.4)
    with style.applied():
        look = style.series(0)
        axes.fill_between(xs, low, high, color=look.color, alpha=0.18, linewidth=0)
        axes.plot(xs, ys, color=look.color, zorder=3)
        at = _chosen(choice)
        axes.plot([xs[at]], [ys[at]], "o", markersize=8, color=style.INK, zorder=4)
        axes.axvline(xs[at], color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        names = {0.0: f"\n{second} alone", 1.0: f"\n{first} alone"}
        ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        axes.set_xticks(ticks, [f"{tick:g}{names.get(tick, '')}" for tick in ticks])
        axes.set_xlabel(f"α, weight of {first}")
        axes.set_ylabel(_unit(choice))
        style.title(axes, f"{choice['rule']}, {choice['regularizer']} β={choice['beta']:g}: α = {xs[at]:g}")
    return figure
