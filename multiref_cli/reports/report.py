"""Reports from what is on disk: of one run, of a sweep, of several sweeps together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from multiref_cli.config.objective import deviations, objective
from multiref_cli.errors import RequestError, RunError
from multiref_cli.reports import figures
from multiref_cli.reports.captions import VERDICTS, write_verdicts
from multiref_cli.reports.checklist import add_checklist
from multiref_cli.reports.choices import add_choices
from multiref_cli.reports.collect import Condition, Run, alpha_text, conditions, read_run, write_csv
from multiref_cli.reports.contest import ANSWERS, add_contest, write_answers
from multiref_cli.reports.first_screen import Job, add_outcome, add_overview
from multiref_cli.reports.job_section import (
    add_job,
    compared,
    job_name,
    jobs,
    plus_minus,
    stems,
    summary_line,
    titles,
    write_pending,
)
from multiref_cli.reports.looks import add_looks
from multiref_cli.reports.page import Page
from multiref_cli.reports.provenance import add_provenance
from multiref_cli.reports.published import Row, compare_with, conclusions, read_rows, rows_of, verdict, write_rows
from multiref_cli.reports.regime_map import add_regimes
from multiref_cli.reports.regime_words import write_regimes
from multiref_cli.reports.regimes import Regimes, regimes
from multiref_cli.reports.rivals import add_rivals, rivals_of
from multiref_cli.reports.samples import add_samples
from multiref_cli.reports.scorer import add_scorer
from multiref_cli.reports.scores import SCORES, write_scores
from multiref_cli.reports.search import add_search
from multiref_cli.reports.wording import listed
from multiref_cli.reports.worlds import add_worlds, write_claims
from multiref_cli.sweeps.ledger import Ledger, expand_folders
from multiref_cli.sweeps.search import tuned_keys
from multiref_cli.tracking.places import command


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    against: Path | None = None,
    tell: Callable[[str], object] = lambda sentence: None,
    show: Callable[[Sequence[str], Sequence[Sequence[str]]], object] = lambda headers, rows: None,
) -> Path:
    """Write the report of runs and sweeps; several are merged into one comparison.

    Args:
        folders: run folders and sweep folders.
        out: where to write; by default report/ in the folder, of several report-A-B beside the first.
        against: CSV of committed results (see published.py); the report says whether the reproduction holds.
        tell: takes that sentence too.
        show: takes headers and rows of the first screen's table, at most ten.

    Returns:
        The path of index.html. Beside it lies summary.csv, one row a condition and metric, in the form that is
        committed, scores.csv.gz, from which `--check` computes it again, and verdicts.csv, one row a comparison; a
        sweep's results.csv, one row a run, lies beside its plan, and in `out` if that is given; over several worlds
        worlds.csv holds their comparisons, where regularizers are compared over references and beta regimes.csv which
        is best in each cell.

    Raises:
        RequestError: a folder that is neither, or nothing finished in any.
    """
    folders = [Path(folder) for folder in folders]
    committed = None if against is None else read_rows(against)  # a CSV that is not there is said before all work
    found_in = {folder: expand_folders([folder]) for folder in folders}
    read, damaged = _read(found_in)
    runs = list(read.values())
    if not runs:
        raise RequestError(f"nothing in {', '.join(map(str, folders))} is finished; go on with it by --resume.")
    sweeps = [folder for folder in folders if (folder / "sweep.yaml").is_file()]
    if len(folders) == 1 and not sweeps and out is None and against is None:
        return write_run_report(folders[0])
    made = Material(folders, sweeps, runs, _conditions(runs, sweeps), target := out or _default_target(folders))
    for sweep in sweeps:
        write_csv(conditions(read[folder] for folder in found_in[sweep] if folder in read), sweep / "results.csv")
    target.mkdir(parents=True, exist_ok=True)
    if out is not None:
        write_csv(made.found, target / "results.csv")
    write_rows(rows_of(made.found), target / "summary.csv")
    write_scores(made.found, target / SCORES)
    names = [_name(folder) for folder in folders]
    page = Page(" and ".join(names) if len(names) <= 3 else listed(names), target)
    headers, rows = add_overview(page, made.jobs)
    if rows:
        show(headers, rows)
    page.text(summary_line(made.found) + " Every number comes from the run folders; nothing was trained for it.")
    _add_warnings(page, made, damaged)
    if against is not None and committed is not None:
        tell(add_checks(page, made.found, against, committed))
    for add in SECTIONS:
        add(page, made)
    return page.write(target)


@dataclass(frozen=True)
class Material:
    """What a report of runs and sweeps is made from: everything that a section may read.

    Attributes:
        folders: as asked for, runs and sweeps.
        sweeps: those of them that are sweeps.
        runs: finished ones, each once.
        found: their conditions.
        target: the folder of the page, where files beside it may be written.
    """

    folders: Sequence[Path]
    sweeps: Sequence[Path]
    runs: Sequence[Run]
    found: list[Condition]
    target: Path

    @cached_property
    def jobs(self) -> list[Job]:
        """Conditions that are compared with each other, with their comparisons."""
        groups = jobs(self.found)
        return [
            Job(title, group, compared(group), rivals_of(group, self.found))
            for title, group in zip(titles(groups), groups)
        ]

    @cached_property
    def regimes(self) -> Regimes | None:
        """Which arm is best where, over training, references and beta; None where these make no picture."""
        return regimes(self.found)


def _conditions(runs: Sequence[Run], sweeps: Sequence[Path]) -> list[Condition]:
    """The conditions of runs, with all names under which sweeps asked for them."""
    asked: dict[str, list[str]] = {}
    for sweep in sweeps:
        for point in Ledger(sweep).planned():
            asked.setdefault(point["condition_id"], []).extend(point.get("names", ()))
    tuned = tuple(dict.fromkeys(key for sweep in sweeps for key in tuned_keys(sweep)))
    looks = {tuple(Ledger(sweep).description().get("looks") or ()) for sweep in sweeps}
    return conditions(runs, asked, tuned, looks.pop() if len(looks) == 1 else ())


def _add_warnings(page: Page, made: Material, damaged: Sequence[str]) -> None:
    """What a reader must know before any number is believed."""
    mixed = mixed_inputs(made.runs)
    if mixed:
        page.text(f"**Not comparable**: {'; '.join(mixed)}. Train the older runs again.")
    if damaged:
        page.text("**Left out**, since they cannot be read:\n\n" + "\n".join(f"- {text}" for text in damaged))
    read = {run.folder for run in made.runs}
    write_pending(page, made.sweeps, read)
    for sweep in made.sweeps:
        _add_earlier(page, sweep, read)


def _add_earlier(page: Page, sweep: Path, read: set[Path]) -> None:
    """Say which finished runs in a sweep's folder its last request did not ask for."""
    planned = {point["name"] for point in Ledger(sweep).planned()}
    others = [path.parent for path in sorted(sweep.glob("*/results.json")) if path.parent.name not in planned]
    others = [folder for folder in others if folder not in read]
    if others:
        again = command("report", sweep, *others[:2]) + (" …" if len(others) > 2 else "")
        page.text(
            f"**{len(others)} finished runs in `{sweep.name}` belong to earlier requests** and are not in this report: "
            f"{listed([f'`{folder.name}`' for folder in others])}. `{again}` reports them too."
        )


def _add_worlds(page: Page, made: Material) -> None:
    over_worlds = add_worlds(page, made.found)
    if over_worlds:
        write_claims(over_worlds, made.target / "worlds.csv")


def _add_regimes(page: Page, made: Material) -> None:
    add_regimes(page, made.regimes)
    if made.regimes is not None:
        write_regimes(made.regimes.found, made.target / "regimes.csv")


def _add_rivals(page: Page, made: Material) -> None:
    """The ranking of mixes and rivals; its comparisons go beside those of the jobs."""
    groups = [(job.found, job.verdicts) for job in made.jobs]
    own = add_rivals(page, groups, made.found, _left_out(made.sweeps))
    of_jobs = [(job_name(job.found[0]), one) for job in made.jobs for one in job.verdicts]
    of_cells = made.regimes.verdicts if made.regimes is not None else ()
    write_verdicts([*of_jobs, *own, *of_cells], made.target / VERDICTS)


def _left_out(sweeps: Sequence[Path]) -> list[str]:
    """Which rivals the plans of some sweeps had to do without, and why."""
    return list(dict.fromkeys(text for sweep in sweeps for text in Ledger(sweep).description().get("left_out") or ()))


def _add_jobs(page: Page, made: Material) -> None:
    groups = [job.found for job in made.jobs]
    for job, stem in zip(made.jobs, stems(groups)):
        add_job(page, list(job.found), stem, job.title, job.verdicts)


def _add_scorer(page: Page, made: Material) -> None:
    add_scorer(page, made.runs)


def _add_choices(page: Page, made: Material) -> None:
    for folder in made.folders:
        add_choices(page, folder)


def _add_contest(page: Page, made: Material) -> None:
    told = add_contest(page, [job.found for job in made.jobs])
    if told:
        write_answers(told, made.target / ANSWERS)


def _add_looks(page: Page, made: Material) -> None:
    add_looks(page, [job.verdicts for job in made.jobs])


def _add_searches(page: Page, made: Material) -> None:
    for sweep in made.sweeps:
        add_search(page, sweep)


def _add_files(page: Page, made: Material) -> None:
    """Links to what lies beside the page and to every run."""
    page.section("Files")
    beside = ("summary.csv", "results.csv", "scores.csv.gz", "verdicts.csv", "worlds.csv", "regimes.csv", "report.md")
    page.files([(name, made.target / name) for name in beside])
    of_sweeps = ("sweep.yaml", "plan.jsonl", "results.csv", "events.jsonl")
    for sweep in made.sweeps:
        page.files([(f"{sweep.name}/{name}", sweep / name) for name in of_sweeps])
    rows = [
        [
            condition.label,
            run.seed,
            page.link(run.folder.name, run.folder),
            page.link("config.yaml", run.folder / "config.yaml"),
        ]
        for condition in made.found
        for run in condition.runs
    ]
    page.table(["condition", "seed", "run folder", "config"], rows, "Every run.", name="files")


def _add_checklist(page: Page, made: Material) -> None:
    add_checklist(page, made.found, made.sweeps, made.folders)


def _add_provenance(page: Page, made: Material) -> None:
    commands = [Ledger(sweep).description().get("command", "unknown") for sweep in made.sweeps]
    add_provenance(page, made.runs, commands)


# The sections of a report, in order: each adds what it has to say of its material, or nothing. A new one is a row here.
SECTIONS: tuple[Callable[[Page, Material], None], ...] = (
    _add_worlds,
    _add_regimes,
    _add_rivals,
    _add_jobs,
    _add_scorer,
    _add_contest,
    _add_looks,
    _add_choices,
    _add_searches,
    _add_checklist,
    _add_files,
    _add_provenance,
)


def _read(found_in: Mapping[Path, Sequence[Path]]) -> tuple[dict[Path, Run], list[str]]:
    """The finished runs of some folders, each read once, and a sentence for each point of a sweep that is damaged.

    Raises:
        RunError: a run that was asked for by itself is damaged.
    """
    read: dict[Path, Run] = {}
    damaged = []
    for given, inside in found_in.items():
        for folder in inside:
            try:
                read[folder] = read.get(folder) or read_run(folder)
            except RunError as error:
                if folder == given:
                    raise
                damaged.append(str(error))
    return read, damaged


def mixed_inputs(runs: Sequence[Run]) -> list[str]:
    """What was under one name though its content differed between runs: data, policies, references, tasks."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        for name, checksum in (run.manifest.get("inputs") or {}).items():
            found.setdefault(name, {}).setdefault(checksum, run.folder.name)
        for task in run.tasks:
            found.setdefault(f"task {task['title']}", {}).setdefault(task["sha256"], run.folder.name)
    return [
        f"{name} had another content in {' than in '.join(by_content.values())}"
        for name, by_content in found.items()
        if len(by_content) > 1
    ]


def _default_target(folders: Sequence[Path]) -> Path:
    """Where a report goes: several folders have one of their own, which leaves that of each as it is."""
    if len(folders) == 1:
        return folders[0] / "report"
    names = "-".join(folder.resolve().name for folder in folders)
    return folders[0].resolve().parent / f"report-{names}"[:120]


def _name(folder: Path) -> str:
    """What a run or sweep is called: after its sweep file where it has one, else after its folder."""
    overrides = Ledger(folder).description().get("overrides", [])
    return next((text.partition("=")[2] for text in overrides if text.startswith("sweep=")), folder.resolve().name)


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
    page = Page(f"{condition.label}, seed {run.seed}", run.folder / "report")
    drawn = figures.learning_curves([condition])
    add_outcome(page, condition, drawn)
    notes = run.results.get("notes") or []
    if notes:
        page.text("\n".join(f"- {note}" for note in notes))
    page.section("Setting").text(_what(condition))
    page.section("Results")
    rows = [[f"`{n}`", v["mean"], v["ci_low"], v["ci_high"], v["n"]] for n, v in sorted(run.metrics.items())]
    page.table(
        ["metric", "mean", "95 % low", "95 % high", "n"],
        rows,
        "Means with 95 % bootstrap intervals over n held-out prompts or rows. One seed: nothing here says how much "
        "another seed would differ.",
        name="results",
    )
    add_scorer(page, [run])
    add_samples(page, [condition], "samples", 2)
    add_choices(page, run.folder)
    add_checklist(page, [condition], [], [run.folder])
    page.section("Files")
    names = (
        *("config.yaml", "overrides.txt", "manifest.json", "metrics.jsonl", "evaluation.jsonl", "answers.jsonl"),
        *("pairs.jsonl", "tasks.jsonl", "scorer.jsonl", "results.json", "evaluations", "logs", "policy"),
    )
    page.files([(name, run.folder / name) for name in names])
    add_provenance(page, [run])
    return page.write(run.folder / "report")


def add_checks(page: Page, found: list[Condition], against: Path, committed: Sequence[Row]) -> str:
    """Add the comparison with committed results, the rows of a CSV; returns its sentence."""
    checks = compare_with(committed, found)
    drawn = conclusions(checks, found)
    sentence = verdict(checks, drawn)
    page.text(f"## Against committed results\n\n{sentence}")
    rows = []
    for check in checks:
        old = check.committed
        new = plus_minus(check.new.interval) if check.new else "–"
        p = "–" if math.isnan(check.p_value) else f"{check.p_value:.2g}"
        rows.append([old.job, old.condition, old.metric, plus_minus(old.interval), new, p, check.word])
    commits = ", ".join(sorted({check.committed.commit for check in checks}))
    machines = "; ".join(sorted({check.committed.hardware for check in checks}))
    caption = (
        f"Committed: `{against.name}`, commit {commits}, {machines}. p: of the difference of both means, from the "
        "standard errors of both (Welch's t); of means that are the same, one in twenty differs by chance."
    )
    headers = ["job", "condition", "metric", "committed", "now", "p", "verdict"]
    page.table(headers, rows, caption, name="against-committed")
    if drawn:
        told = [[one.job, one.metric, one.first, one.second, one.committed, one.new] for one in drawn]
        caption = "Both judged as independent means, with Holm's correction: published rows are not paired."
        headers = ["job", "metric", "first", "second", "committed: the first is", "now"]
        page.table(headers, told, caption, name="conclusions-against-committed")
    return sentence


def _what(condition: Condition) -> str:
    run = condition.first
    facts = [f"Algorithm `{condition.algorithm}`, data `{run.experiment.data.path}`, seed {run.seed}."]
    r = condition.regularizer
    if r is not None and condition.regularized:
        weights = ", ".join(f"{w:g} × {name}" for name, w in zip(run.references, run.weights))
        alpha, routes = alpha_text(run.weights), condition.experiment.routes
        if routes is not None:
            weights, alpha = ", ".join(run.references), f"by {routes.title}"
        if condition.experiment.adaptive_weights:
            weights = ", ".join(one.name for one in condition.experiment.active_references)
            alpha = "made of each pair"
        estimator = "" if condition.estimator == "–" else f", estimator {condition.estimator}"
        facts.append(
            f"Regularizer `{r.title}` ({r.description}) "
            f"at level `{condition.level}`{estimator}; β = {condition.experiment.beta_words}; "
            f"references {weights} (α = {alpha})."
        )
        if condition.experiment.penalized:
            facts += [f"{one}." for one in (f"Objective at rest: {objective(condition.experiment)}",
                                            *deviations(condition.experiment))]  # fmt: skip
    return " ".join(facts)
