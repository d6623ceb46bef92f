"""Starting a sweep on the engine that was asked for; what is run, and where it is recorded, is the same on each."""

import importlib
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiref_cli.config.schema import Experiment
from multiref_cli.errors import RequestError
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Pass, Plan
from multiref_cli.sweeps.worker import Work

LAUNCHERS = ("local", "slurm", "ray")


def run_sweep(
    ledger: Ledger,
    plan: Plan,
    launcher: str,
    workers: int,
    options: dict[str, Any],
    tick: Callable[[], None],
) -> None:
    """Run what is missing of a plan.

    Args:
        ledger: of the sweep; its plan is written.
        plan: what to run.
        launcher: local, slurm or ray.
        workers: how many points run at the same time.
        options: of the engine, `launcher.KEY=VALUE`.
        tick: called a few times a second, to draw progress.

    Raises:
        RequestError: an unknown launcher, or an engine that is not installed.
        RunError: the workers cannot work.
        KeyboardInterrupt: Ctrl-C; the workers were asked to stop and have.
    """
    work = Work(ledger.path.resolve(), plan, uuid.uuid4().hex, train_point, prepare_pass)
    launch(work, launcher, workers, options, tick)


def launch(work: Work, launcher: str, workers: int, options: dict[str, Any], tick: Callable[[], None]) -> None:
    """Hand the work to an engine; see `run_sweep`."""
    check_launcher(launcher, options)
    workers = min(workers, work.open_points())
    if workers == 0:
        return None
    if launcher == "local":
        from multiref_cli.sweeps.pool import run_local

        return run_local(work, workers, tick)
    from multiref_cli.sweeps import cluster

    (cluster.run_slurm if launcher == "slurm" else cluster.run_ray)(work, workers, options, tick)


def check_launcher(launcher: str, options: dict[str, Any]) -> None:
    """Refuse an engine that is unknown or not installed, and options for one that has none; nothing was written.

    Raises:
        RequestError: naming it.
    """
    if launcher not in LAUNCHERS:
        raise RequestError(f"--launcher is {launcher!r}; allowed: {', '.join(LAUNCHERS)}.")
    if launcher == "local" and options:
        raise RequestError(f"launcher.{next(iter(options))} has no meaning for --launcher local; drop it.")
    package = {"slurm": "submitit", "ray": "ray"}.get(launcher)
    try:
        importlib.import_module(package or "multiref_cli")
    except ImportError:
        raise RequestError(
            f"--launcher {launcher} needs {package}, which is not installed: pip install {package}."
        ) from None


def train_point(experiment: Experiment, folder: Path, resume: bool, overrides: tuple[str, ...]) -> None:
    """Train and evaluate one point, from its last checkpoint if it was begun before."""
    from multiref_cli.runs import run

    def accept(found: dict[str, str]) -> None:
        """Refuse other rows or models than the sweep's finished points had."""
        ledger = Ledger(folder.parent)
        problem = run.changed_inputs(ledger.inputs(found), found)
        if problem is not None:
            raise RequestError(
                f"{problem}; points of this sweep were made from what it was: restore it, or give another run.dir."
            )

    if resume:
        run.resume(folder, accept=accept)
        return
    placed = replace(experiment, run=replace(experiment.run, dir=str(folder)))
    run.train(placed, overrides=overrides, accept=accept)


def prepare_pass(one: Pass) -> None:
    """Do what several points need: make an embedded model or data set, or fill the reference store."""
    from multiref_cli.algorithms.base import module_of
    from multiref_cli.algorithms.dpo import fill_normalizers
    from multiref_cli.runs.measure import sample_references
    from multiref_cli.runs.run import open_job, train_embedded
    from multiref_cli.tracking.progress import Silent
    from multiref_cli.world.worlds import ensure, world_of

    experiment, progress = one.experiment, Silent()
    if one.toy is not None:
        ensure(one.toy, world_of(experiment), progress, train_embedded)
        return
    job = open_job(experiment, progress)
    if one.mixes:
        fill_normalizers(job, one.mixes, progress)
        return
    if experiment.reads_store:
        module_of(experiment).fill_store(job, progress)
    if experiment.compares_samples:
        sample_references(job, progress)
