"""The report of one run: its results, its curves and where it comes from."""

from pathlib import Path
from typing import Any

from multiref_cli.reports import figures
from multiref_cli.reports.collect import Condition, Run, alpha_text, conditions, read_run
from multiref_cli.reports.page import Page


def write_run_report(folder: Path) -> Path:
    """Write report/ of a finished run from its files.

    Args:
        folder: the run's folder, with config.yaml and results.json.

    Returns:
        The path of report/index.html.

    Raises:
        RequestError: the folder holds no finished run.
    """
    run = read_run(Path(folder))
    condition = conditions([run])[0]
    page = Page(f"{condition.label}, seed {run.seed}")
    page.text(_what(condition))
    rows = [[f"`{n}`", v["mean"], v["ci_low"], v["ci_high"], v["n"]] for n, v in sorted(run.metrics.items())]
    page.text("## Results")
    page.table(
        ["metric", "mean", "95 % low", "95 % high", "n"],
        rows,
        "Means with 95 % bootstrap intervals over n held-out prompts or rows. One seed: nothing here says how much "
        "another seed would differ.",
        name="results",
    )
    notes = run.results.get("notes") or []
    if notes:
        page.text("Notes:\n" + "\n".join(f"- {note}" for note in notes))
    drawn = figures.learning_curves([condition])
    if drawn is not None:
        page.text("## Training").figure("learning-curves", drawn, "Metrics of every optimizer step.")
    add_provenance(page, [run])
    return page.write(run.folder / "report")


def _what(condition: Condition) -> str:
    run = condition.first
    facts = [f"Algorithm `{condition.algorithm}`, data `{run.config['data']['path']}`, seed {run.seed}."]
    if condition.regularized:
        weights = ", ".join(f"{w:g} × {name}" for name, w in zip(run.references, run.weights))
        r = condition.regularizer
        facts.append(
            f"Regularizer `{r['name']}` (order of the mean {r['mean_order']:g}, of the score {r['score_order']:g}) "
            f"at level `{condition.level}`, estimator {condition.estimator}; β = {condition.beta:g}; "
            f"references {weights} (α = {alpha_text(run.weights)})."
        )
    return " ".join(facts)


def add_provenance(page: Page, runs: list[Run]) -> None:
    """Add where results come from: commands, commit, hardware, versions; what differs between runs is listed."""
    page.text("## Where it comes from")
    rows = []
    for name, values in _provenance(runs).items():
        distinct = list(dict.fromkeys(values))
        shown = "; ".join(distinct[:3]) + (f"; and {len(distinct) - 3} more" if len(distinct) > 3 else "")
        rows.append([name, shown])
    page.table(["what", "value"], rows, f"Provenance of {len(runs)} run{'s' * (len(runs) != 1)}.", name="provenance")


def _provenance(runs: list[Run]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for run in runs:
        manifest = run.manifest
        hardware: dict[str, Any] = manifest.get("hardware") or {}
        git = manifest.get("git") or {}
        commit = (git.get("commit") or "installed package")[:12] + (" with local changes" if git.get("dirty") else "")
        machine = [str(hardware[k]) for k in ("processor", "machine") if hardware.get(k)]
        gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
        versions = ", ".join(f"{k} {v}" for k, v in (manifest.get("versions") or {}).items())
        data = manifest.get("data") or {}
        values = {
            "command": f"`{manifest.get('command', 'unknown')}`",
            "commit": commit,
            "hardware": f"{' '.join(machine)}, {hardware.get('cores', '?')} cores, {gpus}",
            "versions": versions or "unknown",
            "data": f"{run.config['data']['path']} (sha256 {str(data.get('sha256', 'unknown'))[:12]})",
            "started": str(manifest.get("started_at", "unknown")),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found
