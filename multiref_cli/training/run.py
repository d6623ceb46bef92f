"""One run from config to report: open, train, save, evaluate, write."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from multiref_cli.config import build
from multiref_cli.config.check import check
from multiref_cli.config.compose import compose_saved
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import write_lines
from multiref_cli.models.load import fingerprint, save_policy
from multiref_cli.seeding import seed_everything
from multiref_cli.tracking.progress import Heartbeat, Progress, Silent
from multiref_cli.tracking.provenance import provenance
from multiref_cli.tracking.run_dir import RunDir, read_json
from multiref_cli.tracking.wandb import open_mirror
from multiref_cli.training.assemble import assemble
from multiref_cli.training.checkpoint import discard_checkpoints
from multiref_cli.training.embedded import localized
from multiref_cli.training.job import Job, prepare
from multiref_cli.training.loop import Loop
from multiref_cli.training.optimizer import Optimizers
from multiref_cli.training.scoring import Outcome, evaluate_folder, evaluate_policy

# Writes the report of a run folder and returns its first page.
WriteReport = Callable[[Path], Path]


def train(
    config: DictConfig,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    report: WriteReport | None = None,
) -> Path:
    """Train and evaluate a new run.

    Args:
        config: from config.compose.compose.
        overrides: as the user gave them, kept in overrides.txt.
        progress: told of every step.
        report: writes the report of a finished run; called at the end, before a mirror takes its figures.

    Returns:
        The run folder.

    Raises:
        RequestError: the request is wrong; nothing was written.
        RunError: something failed on the way; status.json and logs/ say what.
    """
    progress = progress or Silent()
    check(config)
    folder = build.run_folder(config)
    if folder.exists() and any(folder.iterdir()):
        raise RequestError(
            f"{folder} exists already; go on with `multiref train --resume {folder}`, or give another run.name."
        )
    _set_up_torch(config)
    job = prepare(localized(config, progress), config)
    run = RunDir.create(folder, OmegaConf.to_yaml(config, resolve=True), list(overrides), manifest(job))
    return _guarded(job, run, progress, report)


def resume(folder: Path, progress: Progress | None = None, report: WriteReport | None = None) -> Path:
    """Go on with an interrupted run from its last checkpoint, or from its start where there is none.

    Raises:
        RequestError: no run folder, or the run is done.
    """
    progress, run = progress or Silent(), RunDir(Path(folder))
    if not (run.path / "config.yaml").is_file():
        raise RequestError(f"{folder} is no run folder: it holds no config.yaml.")
    config = compose_saved(run.path / "config.yaml")
    if run.is_done(build.config_hash(config)):
        raise RequestError(f"{folder} is done; `multiref eval {folder}` scores it again.")
    _set_up_torch(config)
    return _guarded(prepare(localized(config, progress), config), run, progress, report)


def manifest(job: Job) -> dict[str, Any]:
    """Content of manifest.json: provenance, and what models and data the run depends on, by sha256."""
    config = job.config
    return {
        **provenance(),
        "config_hash": job.hash,
        "condition": job.condition,
        "data": {"path": config.data.path, "sha256": job.data.sha256, "rows": job.data.report.summary()},
        "policy": fingerprint(config.policy) if config.policy.new is None else "new",
        "references": {r.name: fingerprint(r) for r in build.active_references(config)[0] if config.beta > 0},
    }


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
    seed_everything(job.config.seed)
    trainee = assemble(job, progress)
    optimizers = Optimizers(trainee.model, job.config.optimizer, job.total_steps)
    Loop(run, trainee.model, trainee.algorithm, optimizers, job.config.hardware).fit(progress)
    save_policy(trainee.model, job.tokenizer, run.path / "policy")
    _write_outcome(job, run, evaluate_policy(job, trainee.model, progress), trainee.notes)
    discard_checkpoints(run.path / "checkpoints")


def _write_outcome(job: Job, run: RunDir, outcome: Outcome, training_notes: list[str], **more: Any) -> None:
    """Write what an evaluation found: the samples, results.json (with what else it should hold), the final status."""
    metrics, samples, notes = outcome
    write_lines(run.path / "evaluation.jsonl", samples)
    notes = [*training_notes, *notes]
    more |= {"notes": notes, "training_notes": training_notes}
    run.write_results(metrics, job.hash, job.config.seed, job.condition, **more)
    run.write_status("done", job.total_steps, job.total_steps)


def _set_up_torch(config: DictConfig) -> None:
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    # warn_only: a kernel without a deterministic twin (some CUDA scatters) warns and runs, it does not end the run.
    torch.use_deterministic_algorithms(config.hardware.deterministic, warn_only=True)
    # A debugging aid that costs time at every allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


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
    config = compose_saved(saved, list(overrides))
    check(config)
    _set_up_torch(config)
    job = prepare(localized(config, progress), config)
    outcome = evaluate_folder(job, run.path / "policy", progress)
    results = read_json(run.path / "results.json") or {}
    job.hash = results.get("config_hash", job.hash)
    # config.yaml says how the run was trained; a report must also know how it was measured since.
    measured_by = {name: build.plain(config)[name] for name in _MEASURED_BY} if overrides else None
    _write_outcome(job, run, outcome, results.get("training_notes", []), measured_by=measured_by)
    return run.path
