"""`multiref refs`: build, list, verify, prune and export the reference store; sample the mixed references."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiref_cli.cli import display
from multiref_cli.cli.choosing import Chooser
from multiref_cli.config.check import check
from multiref_cli.config.compose import compose, compose_unchecked, expand_axes
from multiref_cli.config.schema import Experiment, Hardware
from multiref_cli.config.weights import BALANCED, RULES, weights_of
from multiref_cli.errors import RequestError, RunError
from multiref_cli.tracking.places import check_place, holds_something

if TYPE_CHECKING:
    from multiref_cli.algorithms.base import Job
    from multiref_cli.evaluation.evaluate import Evaluator
    from multiref_cli.references.store import ReferenceStore
    from multiref_cli.references.verify import Finding
    from multiref_cli.tracking.progress import Progress

MIX_ORDERS = (0.0, 1.0, -1.0)
MIX_ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)


def build(overrides: list[str]) -> None:
    """Fill the store with what runs of this config read from it."""
    experiment = compose(overrides)
    from multiref_cli.algorithms.base import module_of
    from multiref_cli.runs.run import open_job

    if not experiment.reads_store:
        raise RequestError(
            f"algorithm={experiment.algorithm.name} asks its references as it goes; the store serves algorithm=dpo and "
            "regularizer.states=reference."
        )
    with display.progress(plain=False) as progress:
        job = open_job(experiment, progress)
        before = {entry.key for entry in job.open_store().list()}
        module_of(experiment).fill_store(job, progress)
    new = [entry for entry in job.open_store().list() if entry.key not in before]
    tokens, seconds = sum(entry.tokens for entry in new), sum(entry.seconds for entry in new)
    display.line(f"{len(new)} new entries, {tokens:,} tokens in {seconds:.1f} s; all others were there.")


def list_entries() -> None:
    """Print what is stored, the last used first."""
    store = _store()
    entries = store.list()
    headers = ["address", "kind", "references", "rows", "tokens", "MiB", "used", "built", "transformers"]
    rows = [
        [e.key[:12], e.kind, e.names, e.rows, e.tokens, _mib(e.bytes), _ago(e.used), _ago(e.created), e.made_with]
        for e in entries
    ]
    display.table(f"{store.entries.root}", headers, rows)
    display.line(f"{len(entries)} entries, {sum(e.bytes for e in entries) / 2**20:.1f} MiB")
    _tell_unreadable(store)


def _tell_unreadable(store: "ReferenceStore") -> None:
    others = store.entries.unreadable()
    if others:
        display.line(f"{others} more cannot be used: damaged, under another's address, or written by a later version")


def verify() -> None:
    """Verify every checksum and recompute a few responses of every entry whose models are at hand."""
    with display.progress(plain=False) as progress:
        store = _store()
        checks = store.verify(progress=progress)
    display.table("", ["address", "kind", "references", "found"], [_found(check) for check in checks])
    _tell_unreadable(store)
    bad = [check for check in checks if not check.good]
    if bad:
        raise RunError(f"{len(bad)} of {len(checks)} entries are bad, the first is {bad[0].entry.folder}: delete them.")
    display.line(f"{len(checks)} entries, all good.")


def prune(*, older_than: float | None, everything: bool, dry_run: bool) -> None:
    """Delete entries that nobody used for some days, or all.

    Raises:
        RequestError: a number of days below 0.
    """
    if older_than is not None and not older_than >= 0:
        raise RequestError(f"--older-than is {older_than:g}; give a number of days, 0 or more.")
    store = _store()
    sizes = {entry.key: entry.bytes for entry in store.list()}
    gone = store.prune(older_than=older_than, everything=everything, dry_run=dry_run)
    rows = [[e.key[:12], e.kind, e.names, f"{sizes[e.key] / 2**20:.1f}"] for e in gone]
    display.table("", ["address", "kind", "references", "MiB"], rows)
    verb = "would be deleted" if dry_run else "deleted"
    display.line(f"{len(gone)} entries, {sum(sizes[e.key] for e in gone) / 2**20:.1f} MiB {verb}.")


def mix(overrides: list[str]) -> None:
    """Sample the mixed references of a config without any training, score the samples, write a folder with a report."""
    alphas, others = _alphas(overrides)
    experiment = compose_unchecked(others)
    outside = [alpha for alpha in alphas if not 0 <= alpha <= 1]
    if outside and not experiment.penalty.signed:
        weights_of(outside[0], 2)
    names = [reference.name for reference in experiment.references]
    if len(names) != 2:
        raise RequestError(f"refs mix weighs two references against each other, this config has {len(names)}.")
    if experiment.served:
        raise RequestError(
            f"refs mix draws from the mixed references token by token, and {experiment.served[0]} is served: a server "
            "says one log-probability a token; `multiref train` and `multiref refs build` take it."
        )
    check(experiment)
    folder = _mix_folder(experiment, names)

    from multiref_cli.evaluation.mixed import score_mixtures, write_scores
    from multiref_cli.files import write_json
    from multiref_cli.reports.mixed import MEANS, write_mixed_report
    from multiref_cli.runs.run import config_text, open_job
    from multiref_cli.tracking.provenance import provenance
    from multiref_cli.tracking.run_dir import RunDir

    with display.progress(plain=False) as progress:
        job = open_job(experiment, progress)
        evaluator, score = _mix_evaluator(job, progress)
        first, second = (reference.model for reference in job.references(active=False))
        orders = MIX_ORDERS[:1] if experiment.penalty.signed else MIX_ORDERS
        with RunDir(folder).alone():
            rows = score_mixtures(evaluator, (first, second), orders, alphas, progress)
            RunDir.create(folder, config_text(experiment), overrides, provenance())
            write_scores(rows, folder / "scores.csv")
            facts = _facts(experiment, names, score)
            write_json(folder / "mixed.json", facts | {"scores": [asdict(row) for row in rows]})
            page = write_mixed_report(folder)
    cells = [[MEANS[r.order], r.alpha, r.mean, r.ci_low, r.ci_high, r.n, r.gain] for r in rows]
    headers = ["mean", "alpha", score, "ci_low", "ci_high", "n", "above the better single"]
    display.table(f"alpha: weight of {names[0]}; 0: {names[1]} alone", headers, cells)
    display.line(f"{folder / 'scores.csv'}; report: {page}")


def weights(overrides: list[str]) -> None:
    """Print what each rule for alpha chooses for a config, and the values that it compares; writes the cache alone.

    Raises:
        RequestError: no rule applies.
    """
    experiment = compose_unchecked([text for text in overrides if not text.startswith("alpha=")])
    check(replace(experiment, alpha=BALANCED))

    from multiref_cli.reports.choices import chosen, compared
    from multiref_cli.runs.choose import choose

    refusals: list[str] = []
    for rule in RULES:
        asked = replace(experiment, alpha=rule)
        try:
            check(asked)
            with display.progress(plain=False) as progress:
                choice = asdict(choose(asked, progress))
        except RequestError as error:  # the other rule may apply
            refusals.append(str(error))
            continue
        headers, rows = compared(choice, thin=True)
        display.table(f"alpha={rule}", headers, rows)
        display.line(chosen(choice))
    if len(refusals) == len(RULES):
        raise RequestError(" ".join(dict.fromkeys(refusals)))
    for sentence in refusals:
        display.line(sentence)


def export(overrides: list[str], *, form: str, out: str | None, parquet: bool) -> None:
    """Write the pairs of a config with its mixed reference's log-probabilities, for another trainer.

    Args:
        overrides: of the config, as for `train`.
        form: whose columns; trl.
        out: folder to be made.
        parquet: in place of JSON lines.

    Raises:
        RequestError: no such form, no folder, or a config whose loss no column can hold.
    """
    if form != "trl":
        raise RequestError(f"--format is {form!r}; allowed: trl.")
    if out is None:
        raise RequestError("refs export writes a folder: give --out FOLDER.")
    experiment = compose([*overrides, "evaluation=none"])
    from multiref_cli.runs.export import check_exportable, check_folder, write
    from multiref_cli.runs.run import open_job

    check_folder(Path(out))
    check_exportable(experiment.evenly if experiment.rule is not None else experiment)
    if experiment.rule is not None:  # by what a run would sample for it
        experiment = replace(experiment, alpha=Chooser(dry_run=False, plain=False)(compose(overrides)))
    with display.progress(plain=False) as progress:
        exported = write(open_job(experiment, progress), Path(out), "parquet" if parquet else "jsonl", progress)
    for note in exported.notes:
        display.line(f"note: {note}")
    counts = ", ".join(f"{count:,} rows of {name}" for name, count in exported.rows.items())
    display.line(f"{out}: {counts}; {out}/README.md says how TRL trains on them.")


def _store() -> "ReferenceStore":
    from multiref_cli.references.store import ReferenceStore

    return ReferenceStore(Hardware().cache_folder / "store")


def _found(check: "Finding") -> list[str]:
    return [check.entry.key[:12], check.entry.kind, check.entry.names, check.text]


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f}"


def _ago(then: float) -> str:
    hours = (time.time() - then) / 3600
    return f"{hours / 24:.0f} d ago" if hours >= 48 else f"{hours:.1f} h ago"


def _alphas(overrides: list[str]) -> tuple[list[float], list[str]]:
    """Weights of the first reference from `alpha=0.2,0.5`, and the other overrides; experiment=online_toy unless named.

    Raises:
        RequestError: a weight that is no number, or several values of another key.
    """
    axes, others = expand_axes(overrides)
    given = axes.pop("alpha", [])
    if axes:
        raise RequestError(f"{next(iter(axes))} has several values; refs mix takes several values of alpha only.")
    given += [text.partition("=")[2] for text in others if text.startswith("alpha=")]
    others = [text for text in others if not text.startswith("alpha=")]
    if not any(text.startswith("experiment=") for text in others):
        others.insert(0, "experiment=online_toy")
    try:
        alphas = [float(text) for text in given]
    except ValueError as error:
        raise RequestError(f"alpha={','.join(given)} is not a list of numbers; give alpha=0.1,0.5,0.9.") from error
    return alphas or list(MIX_ALPHAS), others


def _mix_evaluator(job: "Job", progress: "Progress") -> tuple["Evaluator", str]:
    """The evaluator of a job with one scorer, the config's reward where it has one, and that scorer's name."""
    from multiref_cli.runs.measure import build_evaluator

    evaluator, notes = build_evaluator(job)
    for name in evaluator.foreign:
        raise RequestError(f"{name} has another tokenizer than the policy: its tokens cannot be mixed with others.")
    if not evaluator.scorers:
        raise RequestError("refs mix scores samples; give reward=NAME or evaluation.scorer.path=MODEL.")
    reward = job.experiment.reward
    score = reward.name if reward is not None and reward.name in evaluator.scorers else next(iter(evaluator.scorers))
    for note in notes:
        progress.note(note)
    scorers = {score: evaluator.scorers[score]}
    return replace(evaluator, scorers=scorers, references=[], reference_samples=None), score


def _mix_folder(experiment: Experiment, names: list[str]) -> Path:
    given = experiment.run.dir or (experiment.run.name and f"runs/{experiment.run.name}")
    base = Path(given or f"runs/mixed-{'-'.join(names)}").expanduser()
    check_place(base, "the folder")
    for number in range(1, 2 if given else 10_000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not holds_something(folder):
            return folder
    raise RequestError(f"{base} exists already; choose another run.dir.")


def _facts(experiment: Experiment, names: list[str], score: str) -> dict[str, Any]:
    settings = experiment.evaluation
    return {
        "references": names,
        "paths": [reference.path for reference in experiment.references],
        "score": score,
        "samples_per_prompt": settings.samples_per_prompt,
        "temperature": settings.temperature,
        "config_hash": experiment.hash,
    }
