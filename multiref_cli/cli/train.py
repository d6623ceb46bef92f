"""`multiref train`: one run, or its plan."""

from dataclasses import replace
from pathlib import Path

import yaml

from multiref_cli.cli import display
from multiref_cli.cli.choosing import Chooser
from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Experiment
from multiref_cli.tracking.places import check_place
from multiref_cli.tracking.progress import OPENING


def train(overrides: list[str], *, dry_run: bool, resume: str | None, plain: bool) -> None:
    """Run a config, go on with a run folder, or print the plan."""
    if resume is not None:
        from multiref_cli.cli.theory import refuse_laboratory

        refuse_laboratory(Path(resume))
        with display.progress(plain, f"going on with {resume}") as progress:
            progress.advance(OPENING, 0, 1)
            from multiref_cli.reports.report import write_run_report
            from multiref_cli.runs.run import resume as resume_run

            folder = resume_run(Path(resume), progress, write_run_report, overrides=overrides)
        return finished(folder)
    experiment = compose(overrides)
    check_place(experiment.folder, "the run folder")
    chooser = Chooser(dry_run, plain)
    if experiment.rule is not None:
        experiment = replace(experiment, alpha=chooser(experiment))
    if dry_run:
        return _show_plan(experiment)
    with display.progress(plain, f"{experiment.condition}, seed {experiment.seed}, in {experiment.folder}") as progress:
        progress.advance(OPENING, 0, 1)  # importing torch and opening models may take a minute: something is seen first
        from multiref_cli.reports.report import write_run_report
        from multiref_cli.runs.run import train as train_run

        folder = train_run(
            experiment, overrides=overrides, progress=progress, report=write_run_report, choices=chooser.choices
        )
    finished(folder)


def _show_plan(experiment: Experiment) -> None:
    from multiref_cli.runs.forecast import forecast

    display.line(yaml.safe_dump(experiment.plain, sort_keys=False, allow_unicode=True))
    found = forecast(experiment)
    display.table("plan", ["what", "value"], found.rows)
    for title, pieces in found.masks:
        display.line(f"\n{title} (scored tokens marked):")
        display.mask(pieces)


def finished(folder: Path) -> None:
    """Print the results of a finished run."""
    from multiref_cli.files import read_json

    results = read_json(folder / "results.json")
    rows = [[name, v["mean"], v["ci_low"], v["ci_high"], v["n"]] for name, v in sorted(results["metrics"].items())]
    display.table(
        f"{results['condition']}, seed {results['seed']}", ["metric", "mean", "95 % low", "95 % high", "n"], rows
    )
    for note in results.get("notes", []):
        display.line(f"note: {note}")
    display.line(f"report: {folder}/report/index.html")
