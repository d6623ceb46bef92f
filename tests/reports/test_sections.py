"""Samples side by side, the checklist, earlier requests of a sweep's folder: from what runs left on disk."""

import json
import shutil
from pathlib import Path

import pytest

from multiref_cli.reports.checklist import spent
from multiref_cli.reports.collect import conditions, read_run, telling
from multiref_cli.reports.report import write_report
from multiref_cli.reports.samples import ARMS, answering
from multiref_cli.sweeps.ledger import Ledger


@pytest.fixture
def sweep(offline: Ledger, tmp_path: Path, undrawn: None) -> Ledger:
    """A copy that may be changed."""
    shutil.copytree(offline.path, tmp_path / "sweep")
    return Ledger(tmp_path / "sweep")


def _page(sweep: Ledger) -> str:
    return (write_report([sweep.path]).parent / "report.md").read_text()


def _answers(run: Path, text: str, number: int = 8) -> None:
    row = {
        "answer": "13",
        "responses": [text, "another"],
        "scores": {"gold": [0.25, 0.75], "reward_model": [1.5, 2.0]},
        "kl": {"instruct": [-0.125, 1.0], "instruct_large": [0.5, 1.0]},
        "references": {"instruct": {"responses": ["I am the *start*"], "scores": {"gold": [0.125]}}},
    }
    lines = [json.dumps({"prompt": f"p{i} | <b>", **row}) for i in range(number)]
    (run / "answers.jsonl").write_text("".join(line + "\n" for line in lines))


def test_answers_stand_side_by_side_with_score_and_kl(sweep: Ledger) -> None:
    for run in sweep.run_folders():
        _answers(run, f"says `{run.name.split('-s')[0]}` [x](https://example.org)")
    text = _page(sweep)
    assert text.count("*Prompt ") == 6 and "*Prompt 1, answer 13: p0" in text
    part = text.split("*Prompt 1,")[1].split("*Prompt 2,")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert rows[0].startswith("| instruct, untrained | I am the *start* |") and "| 0 |" in rows[0]
    assert rows[1].startswith("| instruct alone (") and rows[2].startswith("| instruct_large alone (")
    assert all("| 1.5 | 0.25 | −0.125 | 0.5 |" in row for row in rows[1:])
    html = (sweep.path / "report" / "index.html").read_text()
    assert "example.org" in html and 'href="https://example.org"' not in html and "<b>" not in html


def test_the_best_of_every_line_answers(offline: Ledger) -> None:
    found = conditions(read_run(folder) for folder in offline.run_folders())
    chosen = answering(found)
    assert [one.role for one in chosen] == ["single", "single", "grid", "grid", "grid"] and len(chosen) <= ARMS
    lines = [one for one in found if one.label.startswith("rkl α")]
    best = max(lines, key=lambda one: one.interval("gold").mean)
    assert best.label in [one.label for one in chosen]


def test_without_responses_there_are_no_samples(sweep: Ledger) -> None:
    assert "Samples" not in _page(sweep)


def test_compute_counts_what_failed_was_stopped_or_killed() -> None:
    def event(at: float, kind: str, name: str) -> dict[str, object]:
        return {"at": at, "kind": kind, "name": name}

    events = [
        *(event(0, "pass", "m"), event(4, "pass_done", "m")),
        *(event(4, "started", "a"), event(10, "done", "a")),
        *(event(10, "started", "b"), event(13, "failed", "b"), event(20, "retried", "b"), event(21, "failed", "b")),
        *(event(21, "started", "c"), event(30, "retried", "c"), event(32, "stopped", "c")),
    ]
    assert spent(events) == ({"passes made once": 4.0, "done": 6.0, "failed": 4.0, "stopped": 2.0}, 1)


def test_the_checklist_says_what_was_searched_and_spent(sweep: Ledger) -> None:
    point = sweep.planned()[0]
    sweep.event("started", point["name"])
    events = (sweep.path / "events.jsonl").read_text()
    at = json.loads(events)["at"]
    with (sweep.path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"at": at + 90, "kind": "failed", "name": point["name"]}) + "\n")
    status = sweep.folder(point["name"]) / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "failed"}))
    text = _page(sweep).split("## Reproducibility checklist")[1]
    for fact in (
        "| ranges searched | regularizer (fkl, mrpo, rkl), alpha (0.3, 0.5, 0.7) |",
        "all 13 conditions that finished are reported",
        "3 seeds (0, 1, 2)",
        "500 prompts",
        "1 failed of 39 points.",
        "1 min 30 s of work: points that failed 1 min 30 s; on some processor, 2 cores.",
        "commit 0123456789ab",
        "toy: models are part of multiref",
    ):
        assert fact in text, fact


def test_points_of_an_earlier_request_are_named(sweep: Ledger) -> None:
    lines = (sweep.path / "plan.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "-fkl-" not in json.loads(line)["name"]]
    (sweep.path / "plan.jsonl").write_text("".join(kept))
    text = _page(sweep)
    assert f"**{len(lines) - len(kept)} finished runs in `sweep` belong to earlier requests**" in text
    assert f"{len(kept)} runs in" in text and "multiref report" in text


def test_as_many_keys_are_named_as_tell_settings_apart():
    settings = [{"a": 1, "b": 2, "c": 3, "d": n % 2, "e": n // 2} for n in range(4)]
    assert list(telling(["d", "e", "a"], settings)) == ["d", "e", "a"]
    assert list(telling(["a", "b", "c", "d", "e"], settings)) == ["a", "b", "c", "d", "e"]
    assert list(telling(["d", "a", "b", "e", "c"], settings)) == ["d", "a", "b", "e"]
    assert list(telling(["a"], settings)) == ["a"] and list(telling([], settings)) == []
