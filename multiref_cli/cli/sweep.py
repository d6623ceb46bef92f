"""`multiref sweep`: plan a grid, run what is missing of it, compare."""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiref_cli.cli import display
from multiref_cli.cli.choosing import Chooser
from multiref_cli.errors import RequestError, RunError
from multiref_cli.sweeps.estimate import MAKING, measured
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Plan, make_plan
from multiref_cli.sweeps.request import Request, key_of, parse_request
from multiref_cli.sweeps.watch import Snapshot, Watcher, event_line
from multiref_cli.tracking.places import check_place, command
from multiref_cli.tracking.progress import duration, memory_text
from multiref_cli.tracking.run_dir import read_choices

# More rows than this say nothing on a terminal; plan.jsonl has every point.
_SHOWN = 60


def sweep(
    overrides: list[str],
    *,
    dry_run: bool,
    resume: str | None,
    retry_failed: bool,
    workers: int | None,
    launcher: str,
    plain: bool,
) -> None:
    """Run a sweep, go on with one, or print its plan.

    Raises:
        RequestError: the request is wrong; nothing was written.
        RunError: some points failed; the others are done and reported.
        KeyboardInterrupt: stopped; its text says how to go on.
    """
    from multiref_cli.sweeps.launch import check_launcher

    request = _request(overrides, resume)
    check_place(request.folder, "the sweep's folder")
    if not dry_run:
        Ledger(request.folder).refuse_other()
    display.line(f"sweep in {request.folder}")
    check_launcher(launcher, request.launcher)
    chooser = Chooser(dry_run, plain, read_choices(request.folder))
    running = _Running(request, launcher, workers, plain)
    plan = _searched(request, chooser, running, retry_failed) if request.search else make_plan(request, chooser)
    if plan is None:
        return
    ledger, workers = Ledger(request.folder), running.workers_of(plan)
    _show(request, plan, ledger, Watcher(ledger, plan).snapshot(), workers, launcher, dry_run)
    if dry_run:
        return _show_cost(plan, workers)
    running.check_new(plan)
    facts = _facts(request) | ({"looks": list(request.looks)} if request.looks else {})
    ledger.write_plan(request, plan, facts, chooser.choices)
    if retry_failed:
        ledger.forget_failures((point.name, point.id) for point in plan.points)
    running(ledger, plan)
    for before, seeds in zip(request.looks, request.looks[1:]):
        longer = _look(ledger, plan, before, seeds)
        if longer == plan:
            break
        plan = longer
        ledger.write_plan(request, plan, facts, chooser.choices)
        running(ledger, plan)
    _finish(ledger, Watcher(ledger, plan).snapshot())


def _look(ledger: Ledger, plan: Plan, before: int, seeds: int) -> Plan:
    """The plan with more seeds of the conditions whose comparisons are undecided; a function of the results so far."""
    from multiref_cli.reports.looks import undecided
    from multiref_cli.sweeps.plan import more_seeds

    found = undecided(ledger.path)
    longer = more_seeds(plan, found.conditions, range(before, seeds))
    left = f": {seeds - before} more of each of {len(found.conditions)} conditions" if found.conditions else ""
    display.line(f"{found.undecided} of {found.comparisons} comparisons are undecided after {before} seeds{left}")
    return longer


@dataclasses.dataclass(frozen=True)
class _Running:
    """How plans of a sweep are run, and shown meanwhile."""

    request: Request
    launcher: str
    workers: int | None
    plain: bool

    def workers_of(self, plan: Plan) -> int:
        """As asked for, or as many as this machine has room for."""
        from multiref_cli.sweeps.pool import default_workers

        device = plan.points[0].experiment.hardware.device
        return self.workers or default_workers(len(plan.points), device, plan.processes)

    def check_new(self, *plans: Plan) -> None:
        """Refuse a new sweep of which a point can be known not to begin; one that goes on was checked so before."""
        from multiref_cli.sweeps.opening import check_points

        if not (self.request.folder / "sweep.yaml").is_file():
            points = [point for plan in plans for point in plan.points]
            with display.progress(self.plain) as progress:
                check_points(points, self.launcher == "local", progress)

    def __call__(self, ledger: Ledger, plan: Plan) -> None:
        """Run what is missing of a plan.

        Raises:
            KeyboardInterrupt: stopped; its text says how to go on.
        """
        from multiref_cli.sweeps.launch import run_sweep

        watcher, options = Watcher(ledger, plan), dict(self.request.launcher)
        try:
            with display.sweep_progress(self.plain) as progress:

                def tick() -> None:
                    """Show what happened since the last look."""
                    snapshot = watcher.snapshot()
                    for event in watcher.events():
                        important = "failed" in event["kind"] or "pass" in event["kind"]
                        progress.event(event_line(event, snapshot.counts), important)
                    progress.update(snapshot)

                run_sweep(ledger, plan, self.launcher, self.workers_of(plan), options, tick)
                tick()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; go on with: {_resume(self.request.folder)}") from None


def _searched(request: Request, chooser: Chooser, running: _Running, retry_failed: bool) -> Plan | None:
    """Tune every arm, and return the plan of what is reported; None of a dry run while there is no such plan."""
    from multiref_cli.cli.searching import middle, price, search_stage, show_arms, show_search
    from multiref_cli.sweeps.plan import arrange
    from multiref_cli.sweeps.search import open_tuning

    tuning = open_tuning(request, chooser)
    show_search(tuning, request.seeds)
    if chooser.dry_run:
        show_arms(tuning)
        if tuning.left == 0:
            return arrange(tuning.chosen(), request.seeds)
        first = arrange([tuning.asked(arm, {}) for arm in tuning.arms], tuning.search.seeds)
        price(tuning, request.seeds, running.workers_of(first))
        return None
    running.check_new(*reversed(middle(tuning, request.seeds)))
    facts = _facts(request)
    # What --resume goes on with, from the first trial on.
    Ledger(request.folder).write_plan(request, Plan((), ()), facts, chooser.choices)
    return search_stage(request, tuning, facts, retry_failed, running)


def _facts(request: Request) -> dict[str, Any]:
    from multiref_cli.tracking.provenance import git_state, versions

    return {"git": git_state(), "versions": versions(), "command": _command(request)}


def _request(overrides: list[str], resume: str | None) -> Request:
    if resume is None:
        return parse_request(overrides)
    if overrides:
        raise RequestError(f"--resume goes on with the sweep as it was asked for; drop {overrides[0]}.")
    description = Ledger.open(Path(resume)).description()
    asked, resume = description.get("overrides"), description.get("search_of", resume)
    if asked is None:
        raise RequestError(
            f"{resume}/sweep.yaml is damaged (it does not say what was asked for): give the sweep's own command again, "
            f"with run.dir={resume}."
        )
    return dataclasses.replace(parse_request(asked), folder=Path(resume))


def _command(request: Request) -> str:
    return shlex.join(["multiref", "sweep", *request.overrides])


def _resume(folder: Path) -> str:
    return command("sweep", "--resume", folder)


def _show(
    request: Request, plan: Plan, ledger: Ledger, now: Snapshot, workers: int, launcher: str, whole: bool
) -> None:
    """Print the plan: what is compared, how often, what is shared, what is done already."""
    said = {
        "grid": "of the grid",
        "single": "single-reference baselines",
        "beta0": "without penalty",
        "rival": "rivals",
    }
    counts = {role: plan.count(role) for role in said}
    conditions = " + ".join(f"{count} {said[role]}" for role, count in counts.items() if count)
    seeds = len(request.seeds)
    more = f"; up to {request.looks[-1]} seeds where a comparison is undecided" if request.looks else ""
    untrained = ", one of what is not trained" * (
        seeds > 1 and any(not p.experiment.algorithm.trains for p in plan.points)
    )
    rows = [
        ["conditions", f"{len(plan.conditions)}: {conditions}"],
        ["points", f"{len(plan.points)}, {seeds} seed{'s' * (seeds > 1)} each{untrained}{more}"],
        ["done, failed, begun", f"{now.counts['done']}, {now.counts['failed']}, {now.counts['stopped']}"],
        ["workers", f"{workers} ({launcher})"],
        ["time left", _time_left(plan, ledger, now, workers)],
    ]
    display.table("sweep", ["what", "value"], rows)
    # The dozen parts of an embedded world are one thing.
    made = ", ".join(dict.fromkeys(re.sub(r"^toy:.* of (world \d+)$", r"\1", one.title) for one in plan.passes))
    if made:
        display.line(f"made once, before the points that need it: {made}")
    for sentence in plan.left_out:
        display.line(sentence)
    if whole:
        _show_conditions(plan, request.seeds)


def _show_conditions(plan: Plan, seeds: Sequence[int]) -> None:
    """Print one line a condition; what all of them share is said once."""
    conditions = {point.condition_id: point for point in plan.points}.values()
    asked = [[o for o in point.overrides if key_of(o) != "seed"] for point in conditions]
    shared = [override for override in asked[0] if all(override in one for one in asked)]
    rows = [
        [point.condition, point.role, " ".join(o for o in one if o not in shared)]
        for point, one in zip(conditions, asked)
    ]
    if shared:
        display.line(f"all points: {' '.join(shared)}")
    title = f"conditions, each with seeds {', '.join(map(str, seeds))}"
    display.table(title, ["condition", "role", "overrides"], rows[:_SHOWN])
    if len(rows) > _SHOWN:
        display.line(f"… and {len(rows) - _SHOWN} more")


def _time_left(plan: Plan, ledger: Ledger, now: Snapshot, workers: int) -> str:
    """How long the missing points take, where finished ones tell."""
    left, seconds = now.total - now.counts["done"], measured(plan, ledger)
    if left == 0:
        return "nothing is left"
    if not seconds:
        return "told once a point is done; counted by --dry-run"
    each = sum(seconds) / len(seconds)
    whole = duration(left * each / workers)
    return f"{left} x {duration(each)}: {whole} on {workers} workers (measured on {len(seconds)} points)"


def _show_cost(plan: Plan, workers: int) -> None:
    """Print one point as `train --dry-run` does, and what the whole sweep takes, counted."""
    from multiref_cli.runs.forecast import forecast
    from multiref_cli.sweeps.cost import counted

    found = forecast(plan.points[0].experiment)
    display.table(f"one point: {plan.points[0].name}", ["what", "value"], found.rows)
    needs = counted(plan)
    if needs is None:
        display.line("the sweep's time and memory can be counted once its models and data are on this machine")
        return
    kinds = [
        [
            kind.title,
            str(kind.points),
            duration(kind.cost.training + kind.cost.evaluation),
            memory_text(kind.cost.total),
        ]
        for kind in needs.kinds
    ]
    display.table("points that take the same, each, on this machine", ["what", "points", "time", "memory"], kinds)
    making = f"{needs.worlds} x about {duration(MAKING)} of one core, once per machine"
    rows = [
        *([["embedded worlds to be made first", making]] if needs.worlds else []),
        ["all points", f"{duration(needs.seconds / workers)} on {workers} workers"],
        ["reference passes", f"{duration(needs.references)}, once per machine"],
        ["memory", f"{workers} x {memory_text(needs.memory)}, {'with' if needs.whole else 'without'} activations"],
    ]
    display.table("the whole sweep, counted: an order of magnitude", ["what", "value"], rows)
    if needs.cards:
        cards = [
            [
                one.name,
                f"{len(plan.points) - one.lacking} of {len(plan.points)}",
                f"{one.seconds / 3600:.1f}",
                memory_text(one.memory),
                " ".join(one.overrides),
            ]
            for one in needs.cards
        ]
        display.table(
            "the whole sweep on one device",
            ["device", "points that fit", "hours", "memory", "points made smaller by"],
            cards,
        )


def _finish(ledger: Ledger, snapshot: Snapshot) -> None:
    """Write results.csv and the report; end with an error if points failed."""
    from multiref_cli.reports.report import write_report

    folder = ledger.path
    if snapshot.counts["done"]:
        page = write_report([folder], show=lambda headers, rows: display.table("results", headers, rows))
        display.line(f"report: {page}")
    seconds = sum(event.get("seconds", 0) for event in ledger.events()[0] if event["kind"] == "done")
    display.line(f"{snapshot.counts['done']} of {snapshot.total} points done, {duration(seconds)} of work")
    if snapshot.failures:
        shown = "\n".join(f"  {f.name}: {f.reason} (log: {f.log})" for f in snapshot.failures[:10])
        raise RunError(
            f"{len(snapshot.failures)} of {snapshot.total} points failed; after mending, go on with: "
            f"{_resume(folder)} --retry-failed\n{shown}"
        )
    if snapshot.counts["done"] < snapshot.total:
        raise RunError(f"some points are not done; go on with: {_resume(folder)}")
