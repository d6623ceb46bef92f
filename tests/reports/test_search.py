"""The section on a search: which sentences follow from which trials."""

from pathlib import Path

import pytest

from multiref_cli.config.plain import to_plain
from multiref_cli.files import write_json, write_lines
from multiref_cli.reports.page import Page
from multiref_cli.reports.search import add_search, at_end, edges
from multiref_cli.sweeps.search import FOLDER, SETTINGS, TRIALS
from multiref_cli.sweeps.space import Axis

BETA, NAME = Axis("beta", 0.01, 100.0, "log"), Axis("optimizer.name", choices=("adamw", "muon"))


def _trial(arm: str, number: int, beta: str, value: float | None, state: str = "done") -> dict:
    reached = [5, 0.25] if state == "pruned" else None
    params = {"beta": beta, "optimizer.name": "muon"}
    return dict(arm=arm, number=number, params=params, state=state, value=value, reached=reached, metric="toy_gold")


def _arms(*names: str) -> list[dict]:
    return [{"id": name, "name": name, "tuned": ["beta", "optimizer.name"]} for name in names]


@pytest.mark.parametrize(
    # Four decades: a twentieth of them is a fifth of a decade, a factor of 1.585.
    ("value", "end"),
    [
        ("0.01", "lower"),
        ("0.0158", "lower"),
        ("0.0159", ""),
        ("1", ""),
        ("63", ""),
        ("63.2", "upper"),
        ("100", "upper"),
    ],
)
def test_the_end_of_a_range_is_a_twentieth_on_its_own_scale(value: str, end: str) -> None:
    assert at_end(BETA, value) == end


def test_linear_ranges_and_choices() -> None:
    assert at_end(Axis("beta", 0.0, 2.0), "0.1") == "lower" and at_end(Axis("beta", 0.0, 2.0), "0.11") == ""
    assert at_end(NAME, "muon") == ""


def test_sentences_follow_from_the_best_trials() -> None:
    trials = [_trial("rkl", 0, "90", 1.0), _trial("rkl", 1, "1", 0.9), _trial("fkl", 0, "0.01", 0.1)]
    trials += [_trial("fkl", 1, "2", 0.1 + 1e-9), _trial("js", 0, "1", None, "failed")]
    assert edges(_arms("fkl"), [BETA, NAME], trials) == ["No arm's best value lies at an end of its range."]
    high, none = edges(_arms("rkl", "fkl", "js"), [BETA, NAME], trials)
    assert "rkl: the best `beta`, 90, lies at the upper end of its range (0.01 to 100, log scale)" in high
    assert none == "js: no trial is done, nothing was found."


def test_the_section_counts_what_was_tried(tmp_path: Path) -> None:
    trials = [_trial("rkl", 0, "1", 0.5), _trial("rkl", 1, "2", None, "pruned"), _trial("rkl", 2, "3", None, "failed")]
    settings = dict(space=to_plain([BETA, NAME]), arms=_arms("rkl"), seeds=[1000], sampler="tpe", batch=4)
    settings |= dict(pruning="median", curve="reward", tuning=["data.held_out_split=dev"])
    write_json(tmp_path / FOLDER / SETTINGS, settings)
    write_lines(tmp_path / FOLDER / TRIALS, trials)
    page = Page("t")
    add_search(page, tmp_path)
    page.write(tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "Each of 1 arms had 3 trials of `beta` (0.01 to 100, log scale), `optimizer.name` (one of adamw, muon)" in text
    )
    assert "Maximized: `toy_gold`, on seed 1000" in text and "Pruned by median of `reward`" in text
    assert "| rkl | 3 | 1 | 1 | 1 | muon | 0.5 | 1 |" in text
    assert "pruned at step 5" in text and "| failed |" in text
    untouched = Page("u")
    add_search(untouched, tmp_path / "report")
    assert untouched._parts == []
