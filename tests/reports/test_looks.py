"""`seeds=auto`: who gets more seeds follows from the results so far; a report says when a comparison was decided."""

from collections.abc import Callable
from pathlib import Path

import pytest

from multiref_cli.reports.collect import conditions, read_run
from multiref_cli.reports.looks import add_looks, undecided
from multiref_cli.reports.page import Page
from multiref_cli.reports.verdicts import compare_job
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Plan, Point, make_plan, more_seeds
from multiref_cli.sweeps.request import Request, parse_request

MakeRun = Callable[[Path, Point, float], None]
GRID = ["experiment=offline_toy", "regularizer=rkl,mrpo,fkl", "alpha=0.5", "seeds=auto", "seeds_max=7", "steps=2"]


def _write(ledger: Ledger, request: Request, plan: Plan, write_run: MakeRun, spread: float) -> None:
    ledger.write_plan(request, plan, {"looks": list(request.looks)})
    for point in plan.points:
        if not ledger.folder(point.name).is_dir():
            write_run(ledger.folder(point.name), point, spread)


def _run(folder: Path, write_run: MakeRun, spread: float) -> tuple[list[int], Ledger]:
    """A whole sweep: number of conditions that are at work after each look."""
    request = parse_request([*GRID, f"run.dir={folder}"])
    plan, ledger, counts = make_plan(request), Ledger(folder), []
    _write(ledger, request, plan, write_run, spread)
    for before, seeds in zip(request.looks, request.looks[1:]):
        found = undecided(folder)
        plan = more_seeds(plan, found.conditions, range(before, seeds))
        counts.append(len(found.conditions))
        _write(ledger, request, plan, write_run, spread)
    return counts, ledger


def test_looks_and_bounds_of_a_request(tmp_path: Path) -> None:
    assert parse_request(GRID).looks == (3, 5, 7) and parse_request(GRID).seeds == (0, 1, 2)
    assert parse_request([*GRID, "seeds_max=10"]).looks == (3, 5, 7, 9, 10)
    assert parse_request([*GRID[:3], "seeds=auto"]).looks == (3, 5, 7, 9)
    assert parse_request([*GRID[:3], "seeds=2"]).looks == ()


def test_more_seeds_where_a_comparison_is_undecided(tmp_path: Path, make_run: MakeRun) -> None:
    counts, ledger = _run(tmp_path / "noisy", make_run, 0.02)
    assert counts[0] >= 2, "mrpo and rkl are too near for three seeds"
    found = conditions(map(read_run, ledger.run_folders()), looks=(3, 5, 7))
    assert {len(c.runs) for c in found} <= {3, 5, 7} and max(len(c.runs) for c in found) > 3
    verdicts = compare_job(found, ["gold", "reward_model"])
    for verdict in verdicts:
        assert verdict.looked is not None and (verdict.adjusted_p <= 0.05) == (verdict.looked.look > 0)
        if verdict.looked.look:
            assert verdict.looked.seeds == (3, 5, 7)[verdict.looked.look - 1]
            assert (
                f"Decided at look {verdict.looked.look} of 3, after {verdict.looked.seeds} seeds." in verdict.sentence()
            )
        else:
            assert "Undecided after" in verdict.sentence()
    page = Page("t")
    add_looks(page, [verdicts])
    page.write(tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    late = sum(str(one.looked) == str(verdicts[0].looked) for one in verdicts)
    assert f"- {verdicts[0].looked}: {late} of {len(verdicts)} comparisons." in text
    # Every condition that was stopped early is in decided comparisons alone.
    stopped = {c.experiment.condition_hash for c in found if len(c.runs) < 7}
    assert all(one.looked.look > 0 for one in verdicts if one.members & stopped)


def test_clear_differences_need_no_further_seed(tmp_path: Path, make_run: MakeRun) -> None:
    counts, ledger = _run(tmp_path / "clear", make_run, 1e-5)
    assert counts == [0, 0] and len(ledger.planned()) == 7 * 3


def test_a_look_reads_the_seeds_that_it_had(tmp_path: Path, make_run: MakeRun) -> None:
    # The plan is made again from its start, as after a kill: later seeds on disk change nothing of an early look.
    _, ledger = _run(tmp_path / "sweep", make_run, 0.02)
    request = parse_request([*GRID, f"run.dir={tmp_path / 'sweep'}"])
    names = [point["name"] for point in ledger.planned()]
    plan = make_plan(request)
    ledger.write_plan(request, plan, {"looks": list(request.looks)})
    for before, seeds in zip(request.looks, request.looks[1:]):
        plan = more_seeds(plan, undecided(ledger.path).conditions, range(before, seeds))
        ledger.write_plan(request, plan, {"looks": list(request.looks)})
    assert [point["name"] for point in ledger.planned()] == names


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["seeds=3", "seeds_max=7"], "seeds_max is the bound of seeds=auto"),
        (["seeds=auto", "seeds_max=3"], "give a whole number above 3"),
        (["seeds=auto", "seeds_max=many"], "seeds_max is 'many'"),
    ],
)
def test_wrong_requests(given: list[str], sentence: str) -> None:
    from multiref_cli.errors import RequestError

    with pytest.raises(RequestError, match=sentence):
        parse_request([*GRID[:3], *given])
