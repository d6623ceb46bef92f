"""How well the reward models that scored responses tell right from wrong, on rows that the user has for them."""

from collections.abc import Sequence

from multiref_cli.reports.collect import Run
from multiref_cli.reports.page import Page


def add_scorer(page: Page, runs: Sequence[Run], level: int = 2) -> None:
    """Add a table for every reward model and file that runs were measured with; nothing where there is none."""
    known = [run.results["scorer"] for run in runs if run.results.get("scorer")]
    found = {(one["scorer"], one["file"], one["sha256"]): one for one in known}
    if not found:
        return
    page.section("Reward model", level)
    for number, one in enumerate(found.values()):
        subsets = one["subsets"] if len(one["subsets"]) > 1 else {}
        rows = [[name, *_cells(part)] for name, part in (*subsets.items(), ("all rows", one["all"]))]
        scored = [f"of {name} the weighted score is {p['score']:.3f}" for name, p in subsets.items() if "score" in p]
        caption = (
            f"{one['scorer']} on {one['file']}: share of rows whose right response has the highest score; one of m "
            "highest scores counts 1/m, in pairs a tie counts nothing, of several right responses all must be above "
            "all wrong ones. Intervals: Wilson, 95 %."
        )
        if subsets:
            caption += f" Mean over subsets: {one['average']:.3f}{'; ' * bool(scored)}{'; '.join(scored)}."
        page.table(["subset", "accuracy", "95 % low", "95 % high", "rows"], rows, caption, name=f"scorer-{number + 1}")


def _cells(part: dict[str, float]) -> list[float | int]:
    return [part["mean"], part["ci_low"], part["ci_high"], int(part["n"])]
