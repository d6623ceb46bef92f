"""Page and figure of mixed references that were sampled without any training, from the files of `refs mix`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiref_cli.files import read_json, read_object
from multiref_cli.reports import style
from multiref_cli.reports.page import Page
from multiref_cli.reports.provenance import add_facts, of_manifest

MEANS = {0.0: "geometric", 1.0: "arithmetic", -1.0: "harmonic"}
Row = dict[str, float]


def write_mixed_report(folder: Path) -> Path:
    """Write report/ of a folder of `multiref refs mix`.

    Args:
        folder: holds scores.csv and mixed.json.

    Returns:
        The path of report/index.html.
    """
    facts = read_json(folder / "mixed.json")
    rows = read_scores(folder / "scores.csv")
    first, second = facts["references"]
    score, count = facts["score"], int(rows[0]["n"])
    page = Page(f"The mixed references of {first} and {second}, before any training", folder / "report")
    page.text(f"*Is a mix of {first} and {second} better than either, before any training?*")
    page.figure("score-against-alpha", _figure(rows, (first, second), score), _caption(first, second, score))
    page.text("\n".join(f"- {sentence}" for sentence in conclusions(rows, (first, second))))
    page.text("The best weight of each mean was chosen on the very prompts that it is reported on.")
    page.section("Setting").text(
        f"Responses sampled from the mixed reference itself: at every token, the power mean of the probabilities of "
        f"{first} (weight α) and {second} (weight 1 − α), divided by its sum over the vocabulary. Nothing is trained. "
        f"Score: `{score}` on {count} held-out prompts, {facts['samples_per_prompt']} samples each, temperature "
        f"{facts['temperature']:g}, all on the same random numbers. Intervals are 95 % bootstrap intervals over "
        "prompts. The mean is taken token by token, which is another policy than the mean over whole responses: the "
        "harmonic mean here is not that of MRPO."
    )
    if any(path.startswith("toy:") for path in facts["paths"]):
        page.text(
            "The embedded references are made to complete one another: some slip in their arithmetic, one knows only "
            "half of the verbs. So there is something to gain here; other models may have nothing to give."
        )
    cells = [
        [MEANS[row["order"]], row["alpha"], _interval(row, "mean", "ci_low", "ci_high"), _gain(row)] for row in rows
    ]
    headers = ["mean", f"α, weight of {first}", f"{score} [95 %]", "above the better single reference [95 %]"]
    page.section("Scores")
    page.table(headers, cells, f"Scores on {count} prompts; differences are paired over prompts.", "scores")
    page.section("Files")
    page.files([(name, folder / name) for name in ("config.yaml", "scores.csv", "mixed.json", "manifest.json")])
    manifest = read_object(folder / "manifest.json") or {}
    settings = {"models": ", ".join(facts["paths"]), "score": score, "prompts": str(count)}
    add_facts(page, [of_manifest(manifest) | settings], [], "Provenance of the samples.")
    return page.write(folder / "report")


def read_scores(path: Path) -> list[Row]:
    """The rows of scores.csv of `multiref refs mix`."""
    with path.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def conclusions(rows: Sequence[Row], references: tuple[str, str]) -> list[str]:
    """One plain sentence a mean: its best weight, and whether it is above the better single reference."""
    singles = {row["alpha"]: row["mean"] for row in rows if row["alpha"] in (0.0, 1.0)}
    better = references[0] if singles[1.0] >= singles[0.0] else references[1]
    sentences = []
    for order in dict.fromkeys(row["order"] for row in rows):
        inner = [row for row in rows if row["order"] == order and row["alpha"] not in (0.0, 1.0)]
        if not inner:
            continue
        best = max(inner, key=lambda row: row["mean"])
        apart = "significant" if best["gain_low"] > 0 or best["gain_high"] < 0 else "not significant"
        sentences.append(
            f"{MEANS[order].capitalize()} mean: highest at α = {best['alpha']:g}, {best['mean']:.3f}; "
            f"{_gain(best)} against {better} alone, {apart}."
        )
    return sentences


def _figure(rows: Sequence[Row], references: tuple[str, str], score: str) -> Any:
    figure, axes = style.new_figure(width=6.4, height=3.8)
    ends = {row["alpha"]: row["mean"] for row in rows if row["alpha"] in (0.0, 1.0)}
    with style.applied():
        axes.axhline(max(ends.values()), color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for index, order in enumerate(dict.fromkeys(row["order"] for row in rows)):
            own = [row for row in rows if row["order"] == order]
            # Small sideways steps keep the intervals of several lines apart; single references stay where they are.
            xs = [row["alpha"] + (0.008 * (index - 1) if row["alpha"] not in (0.0, 1.0) else 0.0) for row in own]
            means = [row["mean"] for row in own]
            halves = [[abs(row["mean"] - row[end]) for row in own] for end in ("ci_low", "ci_high")]
            look = style.series(index)
            axes.errorbar(xs, means, halves, capsize=2.5, elinewidth=1, zorder=3, label=MEANS[order], **look.line())
        axes.plot(list(ends), list(ends.values()), "o", markersize=8, color=style.INK, zorder=4)
        outside = [row["alpha"] for row in rows if not 0 <= row["alpha"] <= 1]
        ticks = sorted({0.0, 0.2, 0.4, 0.6, 0.8, 1.0, *outside})
        names = {0.0: f"\n{references[1]} alone", 1.0: f"\n{references[0]} alone"}
        axes.set_xticks(ticks, [f"{tick:g}{names.get(tick, '')}" for tick in ticks])
        axes.set_xlim(ticks[0] - 0.03, ticks[-1] + 0.03)
        axes.set_xlabel(f"α, weight of {references[0]}")
        axes.set_ylabel(score)
        axes.legend(title="mean over references", loc="best")
    return figure


def _caption(first: str, second: str, score: str) -> str:
    return (
        f"{score} of samples from the mixed reference against the weight of {first}; no training. Ends: {second} and "
        f"{first} alone; dashed: the better of the two. Bars: 95 % bootstrap intervals over prompts."
    )


def _interval(row: Row, mean: str, low: str, high: str) -> str:
    return f"{row[mean]:.3f} [{row[low]:.3f}, {row[high]:.3f}]".replace("-", "−")


def _gain(row: Row) -> str:
    return f"{row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]".replace("-", "−")
