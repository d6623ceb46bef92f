"""The search stage of `multiref sweep`: what it tunes, what it costs, its rounds, and what each arm chose."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from multiref_cli.cli import display
from multiref_cli.tracking.progress import duration, memory_text

if TYPE_CHECKING:
    from multiref_cli.sweeps.cost import Needs
    from multiref_cli.sweeps.ledger import Ledger
    from multiref_cli.sweeps.plan import Plan
    from multiref_cli.sweeps.request import Request
    from multiref_cli.sweeps.search import Tuning

_SHOWN = 60


def show_search(tuning: "Tuning", seeds: Sequence[int]) -> None:
    """Print what is tuned, by what, and how many runs that is beside those of the report."""
    search, arms = tuning.search, tuning.arms
    total = sum(map(tuning.budget, arms))
    tried = {state: sum(trial.state == state for trial in tuning.trials) for state in ("done", "pruned", "failed")}
    trials = total * len(search.seeds)
    pruning = search.pruning + (f", by {search.curve}" if search.curve else "")
    rows = [
        *([f"tuned: {axis.key}", str(axis)] for axis in search.space),
        ["trials alone", " ".join(search.tuning)],
        ["arms", str(len(arms))],
        ["search", f"{search.trials} trials an arm, {search.batch} at a time, by {search.sampler}: {trials} runs"],
        ["pruning", pruning],
        ["tuning seeds", ", ".join(map(str, search.seeds))],
        ["done, pruned, failed", ", ".join(str(count) for count in tried.values())],
        ["report", f"{len(arms)} arms at their own best x {len(seeds)} seeds: {len(arms) * len(seeds)} runs"],
    ]
    display.table("search", ["what", "value"], rows)


def show_arms(tuning: "Tuning") -> None:
    """Print one line an arm."""
    rows = [
        [arm.name, ", ".join(axis.key for axis in arm.axes) or "nothing", " ".join(arm.asked.overrides)]
        for arm in tuning.arms
    ]
    display.table("arms, compared at their own best", ["arm", "tuned", "overrides"], rows[:_SHOWN])
    if len(rows) > _SHOWN:
        display.line(f"… and {len(rows) - _SHOWN} more")


def middle(tuning: "Tuning", seeds: Sequence[int]) -> tuple["Plan", "Plan"]:
    """A trial of every arm, and what is reported of it, at the middle of its ranges."""
    from multiref_cli.sweeps.plan import arrange

    params = [(arm, {axis.key: axis.at(0.5) for axis in arm.axes}) for arm in tuning.arms]
    trials = arrange([tuning.asked(arm, one) for arm, one in params], tuning.search.seeds)
    return trials, arrange([tuning.asked(arm, one, tuning=False) for arm, one in params], seeds)


def price(tuning: "Tuning", seeds: Sequence[int], workers: int) -> None:
    """Print what one trial and the whole search take, counted; every trial as at the middle of its ranges."""
    from multiref_cli.runs.forecast import forecast
    from multiref_cli.sweeps.cost import counted
    from multiref_cli.sweeps.estimate import MAKING

    trials, report = middle(tuning, seeds)
    found = forecast(trials.points[0].experiment)
    display.table(f"one trial: {trials.points[0].name}", ["what", "value"], found.rows)
    stages: list[Needs | None] = [counted(trials), counted(report)]
    searching, reporting = stages
    if searching is None or reporting is None:
        display.line("the sweep's time and memory can be counted once its models and data are on this machine")
        return
    each = searching.seconds / len(trials.points)
    runs = sum(map(tuning.budget, tuning.arms)) * len(tuning.search.seeds)
    bound = "at most " if tuning.search.pruning != "none" else ""
    worlds = max(searching.worlds, reporting.worlds)
    rows = [
        *([["embedded worlds to be made first", f"{worlds} x about {duration(MAKING)} of one core"]] if worlds else []),
        ["search", f"{bound}{runs} x {duration(each)}: {duration(runs * each / workers)} on {workers} workers"],
        ["report", f"{len(report.points)} runs: {duration(reporting.seconds / workers)} on {workers} workers"],
        ["reference passes", f"{duration(searching.references + reporting.references)}, once per machine"],
        ["memory", f"{workers} x {memory_text(max(searching.memory, reporting.memory))}"],
    ]
    display.table("search and report, counted: an order of magnitude", ["what", "value"], rows)


def search_stage(
    request: "Request",
    tuning: "Tuning",
    facts: dict[str, Any],
    retry_failed: bool,
    run: Callable[["Ledger", "Plan"], None],
) -> "Plan":
    """Try what is left to try, and return the plan of the report: every arm at its own best.

    Args:
        request: of the sweep.
        tuning: its search.
        facts: provenance of sweep.yaml.
        retry_failed: run failed trials again.
        run: what is missing of a plan, in a ledger.
    """
    import dataclasses

    from multiref_cli.sweeps.ledger import Ledger
    from multiref_cli.sweeps.plan import Plan, arrange
    from multiref_cli.sweeps.search import tune

    inner = dataclasses.replace(request, folder=tuning.folder, seeds=tuning.search.seeds)
    ledger = Ledger(tuning.folder)

    def write(plan: "Plan") -> None:
        ledger.write_plan(inner, plan, {**facts, "search_of": str(request.folder)})

    def execute(plan: "Plan") -> None:
        """One round: the ledger's plan grows, and what is missing of it is run."""
        write(plan)
        display.line(f"search: {tuning.left} of {sum(map(tuning.budget, tuning.arms))} trials are left")
        run(ledger, plan)

    if not (tuning.folder / "sweep.yaml").is_file():
        write(Plan((), ()))
    if retry_failed:
        tuning.try_again()
    tune(tuning, execute)
    rows = []
    for arm in tuning.arms:
        best = tuning.best(arm)
        if best is not None:
            settings = " ".join(f"{key}={value}" for key, value in best.params.items())
            rows.append([arm.name, settings, f"{best.value:.4g}", f"{best.number + 1} of {len(tuning.of(arm))}"])
    display.table("each arm's best trial", ["arm", "settings", "value", "trial"], rows[:_SHOWN])
    return arrange(tuning.chosen(), request.seeds)
