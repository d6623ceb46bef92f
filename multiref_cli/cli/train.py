"""`multiref train`: one run, or its plan."""

from dataclasses import replace
from pathlib import Path

import yaml

from multiref_cli.cli import display
from multiref_cli.cli.choosing import Chooser
from multiref_cli.config.compose import compose, compose_like
from multiref_cli.config.schema import Experiment
from multiref_cli.errors import RequestError
from multiref_cli.tracking.places import check_place
from multiref_cli.tracking.progress import OPENING
from multiref_cli.tracking.run_dir import check_run_folder, refuse_existing


def train(overrides: list[str], *, dry_run: bool, resume: str | None, plain: bool, config: str | None = None) -> None:
    """Run a config, go on with a run folder, or print the plan; `config`: a saved one that overrides change.

    Raises:
        RequestError: the request is wrong; nothing was written.
    """
    if resume is not None and config is not None:
        raise RequestError("--resume goes on with a run as it is, --config begins another: give one of them.")
    if resume is not None:
        from multiref_cli.cli.theory import refuse_laboratory

        refuse_laboratory(Path(resume))
        check_run_folder(Path(resume))
        with display.progress(plain, f"going on with {resume}") as progress:
            progress.advance(OPENING, 0, 1)
            from multiref_cli.reports.report import write_run_report
            from multiref_cli.runs.run import resume as resume_run

            folder = resume_run(Path(resume), progress, write_run_report, overrides=overrides)
        return finished(folder)
    experiment = compose(overrides) if config is None else compose_like(_config_file(Path(config)), overrides)
    check_place(experiment.folder, "the run folder")
    if experiment.rule is None and not dry_run:  # before models are opened; of a rule it is told once it has chosen
        refuse_existing(experiment.folder, experiment.folder_key, experiment.hash)
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


def _config_file(given: Path) -> Path:
    """The config that a run folder holds, or the file itself."""
    from multiref_cli.cli.theory import refuse_laboratory

    path = given / "config.yaml" if given.is_dir() else given
    if (given / "sweep.yaml").is_file():
        raise RequestError(f"{given} is a sweep: give one of its run folders, such as {given}/POINT.")
    if not path.is_file():
        raise RequestError(f"--config is {str(given)!r}, which is no run folder and no config file.")
    refuse_laboratory(path.parent)
    return path


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
