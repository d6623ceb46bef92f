"""One run from config to report: open, train, save, evaluate, write."""

import contextlib
import json
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import yaml

from multiref_cli.algorithms.base import Job, Trainee, module_of
from multiref_cli.config.algorithms import UntrainedSettings
from multiref_cli.config.compose import compose_saved
from multiref_cli.config.plain import digest, to_plain
from multiref_cli.config.schema import Experiment, Model
from multiref_cli.data.probe import facts
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_lines, read_object, read_yaml, sentence_of, write_json, write_lines, write_text
from multiref_cli.models.files import fingerprint, weights_problem
from multiref_cli.models.merge import recipe_of, without_merges
from multiref_cli.models.precision import lost_share
from multiref_cli.models.save import save_policy
from multiref_cli.parallel import Parallel, told
from multiref_cli.references.tokens import template_fingerprint
from multiref_cli.runs.card import CARD, write_card
from multiref_cli.runs.job import check_cache, check_devices, check_parts, prepare, set_up_torch
from multiref_cli.runs.judge import judge_scorer
from multiref_cli.runs.measure import Outcome, measure, measure_folder
from multiref_cli.runs.processes import connect, of_rank, speaking_for, started
from multiref_cli.runs.scorer_file import lineups_of
from multiref_cli.runs.tasks import open_tasks
from multiref_cli.seeding import seed_everything
from multiref_cli.sharding import whole
from multiref_cli.tracking.places import command
from multiref_cli.tracking.progress import OPENING, Heartbeat, Progress, Silent
from multiref_cli.tracking.provenance import provenance
from multiref_cli.tracking.run_dir import RunDir, check_run_folder, refuse_existing
from multiref_cli.tracking.rungs import Pruned, write_pruned
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
    accept: Callable[[dict[str, str]], None] = lambda found: None,
    choices: Sequence[dict[str, Any]] = (),
) -> Path:
    """Train and evaluate a new run.

    Args:
        experiment: from config.compose.compose.
        overrides: as the user gave them, kept in overrides.txt.
        progress: told of every step.
        report: writes the report of a finished run; called at the end, before a mirror takes its figures.
        accept: refuses what the run would be made from (see `inputs`), before anything is written.
        choices: of alpha, where a rule chose it (runs.choose), to be kept beside the run.

    Returns:
        The run folder.

    Raises:
        RequestError: the request is wrong; nothing was written.
        RunError: something failed on the way; status.json and logs/ say what.
    """
    progress, folder = progress or Silent(), experiment.folder
    refuse_existing(folder, experiment.folder_key, experiment.hash)
    check_devices(experiment)
    check_cache(experiment)
    job = open_job(experiment, progress)
    accept(inputs(job))
    content, text, there = manifest(job), config_text(experiment), folder.exists()
    content["config_sha256"] = sha256(text.encode()).hexdigest()
    with RunDir(folder).alone():
        run = RunDir.create(folder, text, list(overrides), content, choices)
        try:
            return _guarded(job, run, progress, report)
        except RequestError:  # what is wrong with the request came out when its models were opened: nothing was trained
            shutil.rmtree(folder, ignore_errors=True)
            if there:
                folder.mkdir(exist_ok=True)
            raise


def config_text(experiment: Experiment) -> str:
    """Content of config.yaml."""
    return yaml.safe_dump(experiment.plain, sort_keys=False, allow_unicode=True)


def open_job(experiment: Experiment, progress: Progress, looking: bool = False) -> Job:
    """Open what an experiment asks for; loads no model, but makes the embedded models and data that are not there.

    Args:
        experiment: checked, as the user gave it.
        progress: told while something is made.
        looking: for an estimate: merges that are not there are not made (see `models.merge.without_merges`).

    Raises:
        RequestError: data, tokenizers, references, a reward or an engine that do not fit; nothing was written.
    """
    set_up_torch(experiment)
    check_parts(experiment)
    return prepare(experiment, without_merges(localized(experiment, progress, train_embedded), looking), progress)


def train_embedded(experiment: Experiment, progress: Progress) -> Path:
    """How the recipes of the embedded world train their models: as any run."""
    return train(experiment, progress=progress)


def resume(
    folder: Path,
    progress: Progress | None = None,
    report: WriteReport | None = None,
    accept: Callable[[dict[str, str]], None] = lambda found: None,
    overrides: Sequence[str] = (),
) -> Path:
    """Go on with an interrupted run from its last checkpoint, or from its start where there is none.

    What else is missing is completed: a manifest, or the card and the report of a run that is done.

    Args:
        folder: of the run.
        progress, report, accept: as of `train`.
        overrides: of hardware, for this time: another device, another number of processes; of references and rollout,
            where a server is now.

    Raises:
        RequestError: no run folder, the run is done, its data, policy or references are others now, or an override of
            what a result depends on.
    """
    progress, run = progress or Silent(), RunDir(Path(folder))
    check_run_folder(run.path)
    experiment = compose_saved(run.path / "config.yaml")
    if overrides:
        asked, experiment = experiment, compose_saved(run.path / "config.yaml", list(overrides))
        where = all(override.lstrip("+~").startswith(("hardware", "references.", "rollout.")) for override in overrides)
        if not where or asked.hash != experiment.hash:
            raise RequestError(
                f"--resume goes on with the run as it was configured, on other hardware at most: drop {overrides[0]}."
            )
    with run.alone():
        saved = _saved_manifest(run)
        if run.is_done(experiment.hash):
            _check_policy(run)
            described = (run.path / "policy" / CARD).is_file()
            reported = report is None or (run.path / "report" / "index.html").is_file()
            if saved is not None and described and reported:
                again = command("eval", folder)
                raise RequestError(f"{folder} is done; `{again}` scores it again.")
            if saved is None:
                write_json(run.path / "manifest.json", manifest(open_job(experiment, progress)))
            if not described:
                write_card(run, experiment, int(run.status()["total"]))
            discard_checkpoints(run.path / "checkpoints")
            _write_report(run, report)
            return run.path
        check_devices(experiment)
        check_cache(experiment)
        job = open_job(experiment, progress)
        accept(inputs(job))
        _check_unchanged(job, run, saved)
        run.complete(manifest(job) if saved is None else None)
        return _guarded(job, run, progress, report)


def _saved_manifest(run: RunDir) -> dict[str, Any] | None:
    """The manifest of a run folder, None where it is missing or damaged: it is then written again."""
    try:
        content = read_object(run.path / "manifest.json") or {}
    except RunError:
        return None
    return content if "config_hash" in content else None


def _check_policy(run: RunDir) -> None:
    """Refuse a finished run whose trained weights are not whole: its results say what cannot be had again."""
    problem = weights_problem(run.path / "policy")
    if problem is not None:
        raise RequestError(f"{run.path} is done, but its policy is damaged ({problem}): train it again elsewhere.")


def inputs(job: Job) -> dict[str, str]:
    """What a run is made from: a name for each part, the same wherever its files lie, and the sha256 of its content."""
    data, asked, local = job.asked.data, job.asked, job.experiment
    found = {f"data {data.path or data.name} ({digest([to_plain(data), asked.world])})": job.data.sha256}
    pairs: list[tuple[Model, str]] = []
    if asked.policy.new is None:
        pairs.append((asked.policy, fingerprint(local.policy)))
    if asked.penalized:
        pairs += [(one, member.fingerprint()) for one, member in zip(asked.active_references, job.references())]
    for model, checksum in pairs:
        key = [model.path, model.revision, model.adapter, asked.world]
        found[f"model {model.path} ({digest(key)})"] = checksum
    if isinstance(local.algorithm, UntrainedSettings) and local.algorithm.selector is not None:
        chooser = Model(path=local.algorithm.selector)
        found[f"selector {cast(UntrainedSettings, asked.algorithm).selector}"] = fingerprint(chooser)
    return found


def manifest(job: Job) -> dict[str, Any]:
    """Content of manifest.json: provenance, and what models and data the run depends on, by sha256."""
    scorer, lineups = job.experiment.evaluation.scorer, lineups_of(job)
    return {
        **provenance(),
        "config_hash": job.asked.hash,
        "condition": job.asked.condition,
        "data": {"path": job.experiment.data.path, "sha256": job.data.sha256, "rows": job.data.report.summary()},
        "chat_template": {"sha256": template_fingerprint(job.tokenizer), **facts(job.tokenizer)},
        **_models(job),
        "merges": _merges(job),
        "scorer": fingerprint(scorer) if scorer is not None else None,
        "scorer_file": None if lineups is None else lineups.sha256,
        "tasks": [task.facts for task in open_tasks(job.experiment.evaluation)],
        "inputs": inputs(job),
    }


def _models(job: Job) -> dict[str, Any]:
    """Fingerprints of the policy's start and of the references that take part."""
    experiment = job.experiment
    references = job.references() if experiment.penalized else []
    return {
        "policy": fingerprint(experiment.policy) if experiment.policy.new is None else "new",
        "references": {r.name: r.fingerprint() for r in references},
    }


def _merges(job: Job) -> list[dict[str, Any]]:
    """What each merged model was made from: its formula, and the sha256 and factor of every part."""
    found = (recipe_of(one) for one in (job.experiment.policy, *job.experiment.references))
    return [one for one in found if one is not None]


def changed_inputs(saved: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Half a sentence on the first input that has another content than it had; None where there is none."""
    for name, checksum in found.items():
        before = saved.get(name, checksum)
        if before != checksum:
            return f"{name} has changed: its sha256 was {before[:12]} and is {checksum[:12]} now"
    return None


def _check_unchanged(job: Job, run: RunDir, saved: dict[str, Any] | None) -> None:
    """Refuse to go on with other rows, another policy or other references than a run began with."""
    problem = changed_inputs((saved or {}).get("inputs", {}), inputs(job))
    if problem is not None:
        raise RequestError(f"cannot resume {run.path}: {problem}; restore it, or start a new run.")


def identity(job: Job) -> dict[str, Any]:
    """What must not change between a checkpoint and its resume: the config, rows, models, all by content."""
    return {"config": job.asked.hash, "data": job.data.sha256, **_models(job)}


def _guarded(job: Job, run: RunDir, progress: Progress, report: WriteReport | None) -> Path:
    """Run the job; whatever ends it is written into status.json.

    Raises:
        RequestError: before the first step, when models are opened.
        RunError: something failed on the way.
    """
    mirror = open_mirror(run.path, progress.note)
    heartbeat = Heartbeat(progress, run, mirror)
    heartbeat.total = job.total_steps
    again = command("train", "--resume", run.path)
    try:
        _execute(job, run, heartbeat)
        discard_checkpoints(run.path / "checkpoints")
        _write_report(run, report)
    except Pruned as stop:  # a trial of a search that is not worth its end: what was asked for, no failure
        write_pruned(run.path, stop.missed)
        discard_checkpoints(run.path / "checkpoints")
        _write_end(run, "stopped", heartbeat, str(stop))
    except KeyboardInterrupt as stop:
        message = str(stop) or f"interrupted; go on with: {again}"
        _write_end(run, "stopped", heartbeat, message)
        raise KeyboardInterrupt(message) from stop
    except Exception as error:  # every fault leaves its traceback in logs/ and one sentence in status.json
        if isinstance(error, RequestError) and run.last_logged() == 0:
            _write_end(run, "failed", heartbeat, str(error), "".join(traceback.format_exception(error)))
            raise
        text = sentence_of(error)
        where = _write_end(run, "failed", heartbeat, text, "".join(traceback.format_exception(error)))
        raise RunError(f"{text.rstrip('.')} ({where}go on with: {again})") from error
    finally:
        mirror.finish()
    return run.path


def _write_end(run: RunDir, state: str, heartbeat: Heartbeat, message: str, trace: str = "") -> str:
    """Write how a run ended short of its end; one that is done stays done. Says where the traceback is, if anywhere.

    Nothing here raises: where no byte can be written any more, the sentence of the fault itself is what counts.
    """
    where = ""
    with contextlib.suppress(OSError, RunError):
        if trace:
            write_text(run.path / "logs" / "error.txt", trace)
            where = f"see {run.path}/logs/error.txt; "
        if not run.is_done():
            run.write_status(state, heartbeat.step, heartbeat.total, message)
    return where


def _write_report(run: RunDir, report: WriteReport | None) -> None:
    """Write the report of a run that is done; what goes wrong in it does not undo the run."""
    if report is None:
        return
    try:
        report(run.path)
    except Exception as error:  # drawing fails in many ways
        again = command("report", run.path)
        raise RunError(f"{run.path} is done, but its report is not written ({error}): {again} writes it") from error


def _execute(job: Job, run: RunDir, progress: Heartbeat) -> None:
    run.write_status("running", 0, job.total_steps, "start")
    if job.data.report.problems or job.data.report.truncated:
        progress.note(job.data.report.summary())
    if run.last_logged() == 0:
        judge_scorer(job, progress)
    with started(job.experiment, run.path) as parallel:
        notes, outcome = _train_and_measure(job, run, parallel, progress)
    _write_outcome(job, run, outcome, [*notes, *_schedule_notes(job), *_beta_notes(job, run)], job.asked.hash)


def join(folder: str, now: str, rank: str, port: str) -> None:
    """What the other processes of a run do, see `runs.processes.started`."""
    run = RunDir(Path(folder))
    with speaking_for(run.path, int(rank)):
        experiment = compose_saved(run.path / "config.yaml", changed=json.loads(now))
        job = open_job(experiment, Silent())
        parallel = connect(int(port), int(rank), experiment.hardware)
        _train_and_measure(job, run, parallel, Silent())


def _train_and_measure(job: Job, run: RunDir, parallel: Parallel, progress: Progress) -> tuple[list[str], Outcome]:
    """What every process of a run does; the main one alone writes. Notes of the training and what was measured."""
    job = replace(job, experiment=of_rank(job.experiment, parallel.rank), parallel=parallel)
    with told():
        trainee = _trained(job, run, parallel, progress)
        with whole(trainee.model):
            if parallel.main:
                save_policy(trainee.model, job.tokenizer, run.path / "policy", for_auto=True)
        return trainee.notes, measure(job, trainee.model, progress, run.path)


def _trained(job: Job, run: RunDir, parallel: Parallel, progress: Progress) -> Trainee:
    """Train; the optimizer's state is gone when it returns, before an evaluation loads its models."""
    seed_everything(job.experiment.seed)
    progress.advance(OPENING, 0, 1)
    trainee = module_of(job.experiment).assemble(job, progress)
    experiment, precision = job.experiment, job.precision
    trainee.notes.extend(_precision_notes(trainee.model, experiment))
    try:
        if experiment.algorithm.trains:
            parallel.shard(trainee.model, job.device)
        optimizers = Optimizers(trainee.model, experiment.optimizer, job.total_steps, precision.kept)
        Loop(run, trainee, optimizers, experiment.hardware, identity(job), precision, parallel).fit(progress)
    finally:
        if trainee.close is not None:
            trainee.close()
    return trainee


def _precision_notes(model: LanguageModel, experiment: Experiment) -> list[str]:
    """What a report must say of a training in bfloat16 alone."""
    if experiment.precision != "bf16":
        return []
    rate = experiment.optimizer.learning_rate
    with whole(model):
        share = lost_share(model, rate)
    return [f"trained in bfloat16 alone: a step of the learning rate {rate:g} is lost in {share:.1%} of the weights"]


def _schedule_notes(job: Job) -> list[str]:
    warmup = job.experiment.optimizer.warmup
    if warmup <= job.total_steps or not job.experiment.algorithm.trains:
        return []
    return [f"the warm-up of {warmup:g} steps is longer than the run: its peak learning rate was never reached"]


def _beta_notes(job: Job, run: RunDir) -> list[str]:
    """Where a beta that moved has been, out of the log."""
    if job.experiment.moving_beta is None:
        return []
    found = [float(row["beta"]) for row in read_lines(run.path / "metrics.jsonl") if "beta" in row]
    if not found:
        return []
    return [f"beta was {found[0]:.4g} at first, {found[-1]:.4g} at last, {sum(found) / len(found):.4g} on average"]


def _write_outcome(
    job: Job, run: RunDir, outcome: Outcome, training_notes: list[str], run_hash: str, **more: Any
) -> None:
    """Write what an evaluation found: samples, results.json (with what else it should hold), card, final status."""
    write_lines(run.path / "evaluation.jsonl", outcome.samples)
    if outcome.answers:
        write_lines(run.path / "answers.jsonl", outcome.answers)
    if outcome.pairs:
        write_lines(run.path / "pairs.jsonl", outcome.pairs)
    if outcome.task_rows:
        write_lines(run.path / "tasks.jsonl", outcome.task_rows)
    if outcome.judged.rows:
        write_lines(run.path / "scorer.jsonl", outcome.judged.rows)
    notes = [*training_notes, *outcome.notes]
    more |= {"notes": notes, "training_notes": training_notes, "tasks": outcome.tasks}
    more |= {"scorer": outcome.judged.facts}
    run.write_results(outcome.metrics, run_hash, job.asked.seed, job.asked.condition, **more)
    write_card(run, job.asked, job.total_steps)
    run.write_status("done", job.total_steps, job.total_steps)


# What `multiref eval` may change of a finished run: how it is measured, never how it was trained.
_MEASURED_BY = ("evaluation", "reward", "hardware", "data")


def evaluate(folder: Path, overrides: Sequence[str] = (), progress: Progress | None = None) -> Path:
    """Score a finished run again; its results so far are kept in evaluations/NUMBER/.

    Args:
        folder: a run folder with a policy/.
        overrides: of evaluation, reward, hardware or data; what an earlier eval scored with stays as it was.
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
    _check_policy(run)
    scored_before = _scored_before(run, saved)
    experiment = compose_saved(saved, list(overrides), scored_before)
    check_devices(experiment)
    job = open_job(experiment, progress)
    with run.alone():
        outcome = measure_folder(job, run.path / "policy", progress)
        results = _saved_results(run)
        # config.yaml says how the run was trained; a report must also know how it was measured since.
        again = overrides or scored_before
        measured_by = {name: experiment.plain[name] for name in _MEASURED_BY} if again else None
        trained = results.get("config_hash", experiment.hash)
        run.keep_evaluation()
        _write_outcome(job, run, outcome, results.get("training_notes", []), trained, measured_by=measured_by)
        discard_checkpoints(run.path / "checkpoints")
    return run.path


def _scored_before(run: RunDir, saved: Path) -> dict[str, Any]:
    """What an earlier eval scored with, as keys of the config: another scorer stays, how much it scored does not."""
    before = _saved_results(run).get("measured_by") or {}
    if not before:
        return {}
    evaluation = read_yaml(saved)["evaluation"] | {"scorer": before["evaluation"]["scorer"]}
    return {"reward": before["reward"], "evaluation": evaluation}


def _saved_results(run: RunDir) -> dict[str, Any]:
    """Content of results.json, empty where it is missing or damaged: it is about to be written anew."""
    try:
        return read_object(run.path / "results.json") or {}
    except RunError:
        return {}
