"""One run from config to report: open, train, save, evaluate, write."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from multiref_cli.algorithms.base import Job, module_of
from multiref_cli.config.compose import compose_saved
from multiref_cli.config.schema import Experiment
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_json, write_lines
from multiref_cli.models.files import fingerprint
from multiref_cli.models.load import save_policy
from multiref_cli.models.precision import lost_share
from multiref_cli.runs.job import check_devices, check_parts, prepare, set_up_torch
from multiref_cli.runs.measure import Outcome, measure, measure_folder
from multiref_cli.seeding import seed_everything
from multiref_cli.tracking.progress import Heartbeat, Progress, Silent
from multiref_cli.tracking.provenance import provenance
from multiref_cli.tracking.run_dir import RunDir
from multiref_cli.tracking.wandb import open_mirror
from multiref_cli.training.checkpoint import discard_checkpoints
from multiref_cli.training.loop import Loop
from multiref_cli.training.optimizer import Optimizers
from multiref_cli.types import LanguageModel
from multiref_cli.world.worlds import localized

# Writes the report of a run folder and returns its first page.
WriteReport = Callable[[Path], Path]


def train(
    experiment: Experiment,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    report: WriteReport | None = None,
) -> Path:
    """Train and evaluate a new run.

    Args:
        experiment: from config.compose.compose.
        overrides: as the user gave them, kept in overrides.txt.
        progress: told of every step.
        report: writes the report of a finished run; called at the end, before a mirror takes its figures.

    Returns:
        The run folder.

    Raises:
        RequestError: the request is wrong; nothing was written.
        RunError: something failed on the way; status.json and logs/ say what.
    """
    progress, folder = progress or Silent(), experiment.folder
    if folder.exists() and any(folder.iterdir()):
        raise RequestError(
            f"{folder} exists already; go on with `multiref train --resume {folder}`, or give another run.name."
        )
    check_devices(experiment)
    job = open_job(experiment, progress)
    run = RunDir.create(folder, config_text(experiment), list(overrides), manifest(job))
    return _guarded(job, run, progress, report)


def config_text(experiment: Experiment) -> str:
    """Content of config.yaml."""
    return yaml.safe_dump(experiment.plain, sort_keys=False, allow_unicode=True)


def open_job(experiment: Experiment, progress: Progress) -> Job:
    """Open what an experiment asks for; loads no model, but makes the embedded models and data that are not there.

    Args:
        experiment: checked, as the user gave it.
        progress: told while something is made.

    Raises:
        RequestError: data, tokenizers, references, a reward or an engine that do not fit; nothing was written.
    """
    set_up_torch(experiment)
    check_parts(experiment)
    return prepare(experiment, localized(experiment, progress, train_embedded))


def train_embedded(experiment: Experiment, progress: Progress) -> Path:
    """How the recipes of the embedded world train their models: as any run."""
    return train(experiment, progress=progress)


def resume(folder: Path, progress: Progress | None = None, report: WriteReport | None = None) -> Path:
    """Go on with an interrupted run from its last checkpoint, or from its start where there is none.

    Raises:
        RequestError: no run folder, or the run is done.
    """
    progress, run = progress or Silent(), RunDir(Path(folder))
    if not (run.path / "config.yaml").is_file():
        raise RequestError(f"{folder} is no run folder: it holds no config.yaml.")
    experiment = compose_saved(run.path / "config.yaml")
    if run.is_done(experiment.hash):
        raise RequestError(f"{folder} is done; `multiref eval {folder}` scores it again.")
    check_devices(experiment)
    return _guarded(open_job(experiment, progress), run, progress, report)


def manifest(job: Job) -> dict[str, Any]:
    """Content of manifest.json: provenance, and what models and data the run depends on, by sha256."""
    scorer = job.experiment.evaluation.scorer
    return {
        **provenance(),
        "config_hash": job.asked.hash,
        "condition": job.asked.condition,
        "data": {"path": job.experiment.data.path, "sha256": job.data.sha256, "rows": job.data.report.summary()},
        **_models(job),
        "scorer": fingerprint(scorer) if scorer is not None else None,
    }


def _models(job: Job) -> dict[str, Any]:
    """Fingerprints of the policy's start and of the references that take part."""
    experiment = job.experiment
    references = experiment.active_references if experiment.penalized else []
    return {
        "policy": fingerprint(experiment.policy) if experiment.policy.new is None else "new",
        "references": {r.name: fingerprint(r) for r in references},
    }


def identity(job: Job) -> dict[str, Any]:
    """What must not change between a checkpoint and its resume: the config, rows, models, all by content."""
    return {"config": job.asked.hash, "data": job.data.sha256, **_models(job)}


def _guarded(job: Job, run: RunDir, progress: Progress, report: WriteReport | None) -> Path:
    """Run the job; whatever ends it is written into status.json."""
    mirror = open_mirror(run.path, progress.note)
    heartbeat = Heartbeat(progress, run, mirror)
    heartbeat.total = job.total_steps
    try:
        _execute(job, run, heartbeat)
        if report is not None:
            report(run.path)
    except KeyboardInterrupt as stop:
        message = str(stop) or f"interrupted; go on with: multiref train --resume {run.path}"
        run.write_status("stopped", heartbeat.step, heartbeat.total, message)
        raise KeyboardInterrupt(message) from stop
    except Exception as error:  # every fault leaves its traceback in logs/ and one sentence in status.json
        (run.path / "logs" / "error.txt").write_text("".join(traceback.format_exception(error)))
        run.write_status("failed", heartbeat.step, heartbeat.total, str(error) or type(error).__name__)
        text = str(error) if isinstance(error, (RequestError, RunError)) else f"{type(error).__name__}: {error}"
        hint = f"(see {run.path}/logs/error.txt; go on with: multiref train --resume {run.path})"
        raise RunError(f"{text.rstrip('.')} {hint}") from error
    finally:
        mirror.finish()
    return run.path


def _execute(job: Job, run: RunDir, progress: Heartbeat) -> None:
    run.write_status("running", 0, job.total_steps, "start")
    if job.data.report.problems or job.data.report.truncated:
        progress.note(job.data.report.summary())
    seed_everything(job.experiment.seed)
    trainee = module_of(job.experiment).assemble(job, progress)
    experiment, precision = job.experiment, job.precision
    optimizers = Optimizers(trainee.model, experiment.optimizer, job.total_steps, precision.masters)
    trainee.notes.extend(_precision_notes(trainee.model, experiment))
    Loop(run, trainee, optimizers, experiment.hardware, identity(job), precision).fit(progress)
    save_policy(trainee.model, job.tokenizer, run.path / "policy")
    notes = [*trainee.notes, *_schedule_notes(job)]
    _write_outcome(job, run, measure(job, trainee.model, progress), notes, job.asked.hash)
    discard_checkpoints(run.path / "checkpoints")


def _precision_notes(model: LanguageModel, experiment: Experiment) -> list[str]:
    """What a report must say of a training in bfloat16 alone."""
    if experiment.precision != "bf16":
        return []
    rate = experiment.optimizer.learning_rate
    share = lost_share(model, rate)
    return [f"trained in bfloat16 alone: a step of the learning rate {rate:g} is lost in {share:.1%} of the weights"]


def _schedule_notes(job: Job) -> list[str]:
    warmup = job.experiment.optimizer.warmup
    if warmup <= job.total_steps:
        return []
    return [f"the warm-up of {warmup:g} steps is longer than the run: its peak learning rate was never reached"]


def _write_outcome(
    job: Job, run: RunDir, outcome: Outcome, training_notes: list[str], run_hash: str, **more: Any
) -> None:
    """Write what an evaluation found: the samples, results.json (with what else it should hold), the final status."""
    write_lines(run.path / "evaluation.jsonl", outcome.samples)
    if outcome.pairs:
        write_lines(run.path / "pairs.jsonl", outcome.pairs)
    notes = [*training_notes, *outcome.notes]
    more |= {"notes": notes, "training_notes": training_notes}
    run.write_results(outcome.metrics, run_hash, job.asked.seed, job.asked.condition, **more)
    run.write_status("done", job.total_steps, job.total_steps)


# What `multiref eval` may change of a finished run: how it is measured, never how it was trained.
_MEASURED_BY = ("evaluation", "reward", "hardware", "data")


def evaluate(folder: Path, overrides: Sequence[str] = (), progress: Progress | None = None) -> Path:
    """Score a finished run again and rewrite its results and report.

    Args:
        folder: a run folder with a policy/.
        overrides: of evaluation, reward, hardware or data.
        progress: told of every phase.

    Raises:
        RequestError: no finished run, or an override of how it was trained.
    """
    progress, run = progress or Silent(), RunDir(Path(folder))
    saved = run.path / "config.yaml"
    if not saved.is_file() or not (run.path / "policy").is_dir():
        raise RequestError(f"{folder} holds no finished run (config.yaml and policy/); train it first.")
    for override in overrides:
        group = override.lstrip("+~").split("=")[0].split(".")[0]
        if group not in _MEASURED_BY:
            raise RequestError(
                f"eval cannot change {group!r} of a finished run; it can change {', '.join(_MEASURED_BY)}."
            )
    experiment = compose_saved(saved, list(overrides))
    check_devices(experiment)
    job = open_job(experiment, progress)
    outcome = measure_folder(job, run.path / "policy", progress)
    results = read_json(run.path / "results.json") or {}
    # config.yaml says how the run was trained; a report must also know how it was measured since.
    measured_by = {name: experiment.plain[name] for name in _MEASURED_BY} if overrides else None
    trained = results.get("config_hash", experiment.hash)
    _write_outcome(job, run, outcome, results.get("training_notes", []), trained, measured_by=measured_by)
    return run.path
