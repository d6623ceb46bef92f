"""`multiref sweep` end to end on real (tiny) models, as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multiref_cli.files import read_json, read_lines
from multiref_cli.reports import figures as report_figures
from multiref_cli.sweeps import launch
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.worker import work_off

GRID = ["regularizer=mrpo", "alpha=0.4", "seeds=2", "run.dir=sweep"]


def _results(folder: Path) -> dict[str, dict]:
    return {path.parent.name: read_json(path)["metrics"] for path in folder.glob("*/results.json")}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands given here work in this process and draw nothing: imports and figures take most of a small sweep."""
    monkeypatch.setattr(launch, "launch", lambda work, *_: work_off(work))
    for name in ("metric_against_alpha", "reward_against_divergence", "learning_curves"):
        monkeypatch.setattr(report_figures, name, lambda *_: None)


def test_sweep_runs_and_compares(place, multiref, offline, capfd):
    assert multiref("sweep", *offline, *GRID, "--workers", 2) == 0, capfd.readouterr().err
    out, folder = capfd.readouterr().out, Path("sweep")
    assert "[6 of 6 done, 0 failed]" in out and out.count("making ") == 2 and "report: sweep/report/index.html" in out
    plan = read_lines(folder / "plan.jsonl")
    assert len(plan) == 6 and {p["role"] for p in plan} == {"grid", "single"}
    assert len((folder / "results.csv").read_text().splitlines()) == 7
    text = (folder / "report" / "report.md").read_text()
    assert "first, untrained, the start" in text and "J, toy_gold" in text and "significant" in text
    # The same numbers as a run by itself: what the workers share does not show.
    point = next(p for p in plan if p["condition"] == "dpo-mrpo-a0.4-b0.3" and p["seed"] == 1)
    assert multiref("train", *point["overrides"], "run.dir=alone") == 0
    assert read_json(Path("alone/results.json"))["metrics"] == _results(folder)[point["name"]]


def test_sweep_does_what_is_missing_and_nothing_else(place, multiref, offline, capfd, in_process):
    assert multiref("sweep", *offline, *GRID) == 0
    folder = Path("sweep")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    capfd.readouterr()
    assert multiref("sweep", *offline, *GRID) == 0
    assert "nothing is left" in capfd.readouterr().out
    assert multiref("sweep", "--resume", "sweep") == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    assert len(read_lines(folder / "events.jsonl")) == 2 * (2 + 6)
    # A larger grid keeps what is finished; a smaller one does not report what was left out.
    assert multiref("sweep", *offline, *GRID, "alpha=0.4,0.7", "seeds=1") == 0
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    assert before.items() <= kept.items() and len(kept) == 7
    assert len((folder / "results.csv").read_text().splitlines()) == 5
    assert multiref("report", "sweep", next(iter(before)).parent, "--out", "both") == 0
    assert (Path("both") / "index.html").is_file()


def test_dry_run_writes_nothing(place, multiref, offline, capsys):
    assert multiref("sweep", *offline, *GRID, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "6, 2 seeds each" in out and "2 single-reference baselines" in out and "first over" in out
    assert "dpo-mrpo-a0.4-b0.3 " in out and "seeds 0, 1" in out and "training time" in out
    assert "whole sweep, counted" in out and "once per machine" in out and ", with activations" in out
    assert not Path("sweep").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["regularizer=rlk,fkl"], "did you mean 'rkl'"),
        (["alpha=0.2,1.2"], "alpha is 1.2"),
        (["--launcher", "pbs"], "allowed: local, slurm, ray"),
        (["--resume", "nowhere"], "nowhere is not a sweep folder"),
    ],
)
def test_wrong_requests(place, multiref, offline, arguments, sentence, capsys):
    given = arguments if "--resume" in arguments else [*offline, "run.dir=sweep", *arguments]
    assert multiref("sweep", *given) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("sweep").exists() and not Path("nowhere").exists()


def _rows(name: str, *keys: str) -> str:
    Path(name).write_text("".join(json.dumps(dict.fromkeys(keys, f"add {i}")) + "\n" for i in range(20)))
    return name


@pytest.mark.parametrize(
    "search",
    [[], ["search.space.beta=[0.1,1,log]", "search.tuning=evaluation.split=train", "search.trials=2"]],
)
def test_what_no_point_can_begin_with_is_said_before_the_folder(place, multiref, offline, search, capsys):
    given = [text for text in offline if not text.startswith(("data.path=", "beta=") if search else "data.path=")]
    given += [f"data.path={_rows('wrong.jsonl', 'question', 'good', 'bad')}", "alpha=0.3,0.5", "run.dir=sweep", *search]
    assert multiref("sweep", *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("multiref: data.path=wrong.jsonl has no usable training row: 0 of 20 rows kept")
    assert error.count("\n") == 1 and "in the points" not in error and not Path("sweep").exists()


def test_of_several_kinds_of_points_the_wrong_one_is_named(place, multiref, offline, capsys):
    wrong = _rows("wrong.jsonl", "question", "good", "bad")
    given = [text for text in offline if not text.startswith("data.path=")]
    given += [f"data.path={place}/pairs.jsonl,{wrong}", "baselines=false", "run.dir=sweep"]
    assert multiref("sweep", *given) == 2
    error = capsys.readouterr().err
    assert "has no usable training row" in error and error.endswith("(in the points with data.path=wrong.jsonl)\n")
    assert not Path("sweep").exists()


def test_failed_points_are_named_and_retried(place, multiref, offline, capfd, in_process):
    # A reward that fails ends its point on the way; the other one is done.
    Path("two_rewards.py").write_text(
        "def good(samples):\n    return [0.0] * len(samples)\n\n\n"
        "def bad(samples):\n    return [1 / 0 if one.completion else 0.0 for one in samples]\n"  # the probe's is empty
    )
    own = ["reward=custom", "reward.terms.mine.function._target_=two_rewards.good,two_rewards.bad"]
    arguments = [*offline, *own, "evaluation.prompts=2", "evaluation.scorer=null", "run.dir=sweep"]
    assert multiref("sweep", *arguments, "baselines=false") == 1
    error = capfd.readouterr().err
    assert "1 of 2 points failed" in error and "sweep/logs/" in error and "--retry-failed" in error
    states = [Ledger(Path("sweep")).state(p["name"], p["id"]) for p in read_lines(Path("sweep/plan.jsonl"))]
    assert sorted(states) == ["done", "failed"]
    assert multiref("sweep", "--resume", "sweep") == 1
    assert multiref("sweep", "--resume", "sweep", "--retry-failed") == 1
    kinds = [e["kind"] for e in read_lines(Path("sweep/events.jsonl"))]
    assert kinds.count("failed") == 2 and kinds.count("done") == 1


def _start(arguments: list[str], log: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", "from multiref_cli.cli.app import main; main()", "sweep", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stdout=log.open("a"), stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_killed_and_interrupted_sweeps_end_in_the_same_numbers(place, multiref, offline, in_process, figures):
    arguments = [*offline, "regularizer=rkl", "alpha=0.4", "steps=60", "hardware.checkpoint_every=10"]
    arguments = [*arguments, "evaluation.prompts=4", "run.dir=sweep", "--workers", "1"]
    log, folder = Path("log"), Path("sweep")
    # Of 180 steps: the worker is killed, then the parent; the next launch is interrupted; the last one ends it.
    first = _start(arguments, log)
    _after(20, folder, first)
    os.kill(json.loads(_claims(folder)[0].read_text())["pid"], signal.SIGKILL)
    _after(70, folder, first)
    first.kill()
    first.wait()
    second = _start(arguments, log)
    _after(120, folder, second)
    second.send_signal(signal.SIGINT)
    assert second.wait() == 130, log.read_text()
    assert "go on with: multiref sweep --resume sweep" in log.read_text()
    assert multiref("sweep", "--resume", "sweep") == 0
    kinds = [event["kind"] for event in read_lines(folder / "events.jsonl")]
    assert "retried" in kinds and "stopped" in kinds and kinds.count("done") == 3
    for point in read_lines(folder / "plan.jsonl"):
        assert multiref("train", *point["overrides"], f"run.dir=undisturbed/{point['name']}") == 0
    assert _results(folder) == _results(Path("undisturbed"))
    logged = {path.name: figures(path) for path in Path("undisturbed").iterdir()}
    assert {name: figures(folder / name) for name in logged} == logged


def _start(arguments: list[str], log: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", "from multiref_cli.cli.app import main; main()", "sweep", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stdout=log.open("a"), stderr=subprocess.STDOUT)


def _claims(folder: Path) -> list[Path]:
    return list(folder.glob(".sweep/claims/dpo-*.json"))


def _after(steps: int, folder: Path, process: subprocess.Popen) -> None:
    """Wait until all points together have made so many steps and one is at work."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = sum(len(read_lines(path)) for path in folder.glob("*/metrics.jsonl"))
        if rows > steps and _claims(folder):
            return
        time.sleep(0.02)
    pytest.fail(f"no {steps} steps: {process.poll()}")


def test_a_search_comes_before_what_is_compared(place, multiref, offline, capfd, in_process):
    given = [text for text in offline if not text.startswith(("beta=", "optimizer."))]
    given += ["regularizer=rkl,fkl", "alpha=0.4", "baselines=false", "seeds=2", "run.dir=sweep"]
    tuned = ["search.space.beta=[0.1,1,log]", "search.space.optimizer.learning_rate=[1e-4,1e-2,log]"]
    tuned += ["search.tuning=evaluation.split=train", "search.trials=3", "search.batch=2", "search.sampler=random"]
    assert multiref("sweep", *given, *tuned, "--dry-run") == 0
    out = capfd.readouterr().out
    assert "3 trials an arm, 2 at a time, by random: 6 runs" in out and "2 arms at their own best x 2 seeds" in out
    assert "one trial: dpo-rkl-a0.4" in out and "search and report, counted" in out and not Path("sweep").exists()
    assert multiref("sweep", *given, *tuned) == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    assert "[6 of 6 done" in out and "[4 of 4 done" in out and "each arm's best trial" in out
    trials = read_lines(Path("sweep/search/trials.jsonl"))
    assert [one["state"] for one in trials] == ["done"] * 6
    text = Path("sweep/report/report.md").read_text()
    assert "## How each arm was tuned" in text
    # Arms of different beta and learning rate are one job, and compared.
    assert (
        re.search(r"\| toy_gold \| rkl α=0\.4 β=\S+ \|.*\| fkl α=0\.4 β=\S+ \|", text) and text.count("## Setting") == 1
    )
    assert "beta 0.1 to 1, log scale, optimizer.learning_rate 0.0001 to 0.01, log scale |" in text
    assert (
        "beta and optimizer.learning_rate of each arm are those of its best trial, of 6 by random over 2 arms" in text
    )
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("results.json")}
    assert multiref("sweep", "--resume", "sweep/search") == 0
    assert "nothing is left" in capfd.readouterr().out
    assert (
        before == {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("results.json")} and len(before) == 10
    )


def test_a_trial_ends_at_its_rung(place, offline):
    from multiref_cli.config.compose import compose
    from multiref_cli.tracking.rungs import Rungs, read_pruned, write_rungs

    experiment = compose(offline)
    for name, least in (("held", -1e9), ("stopped", 1e9)):
        write_rungs(Path("search") / name, Rungs("accuracy", ((0.5, least),)))
        launch.train_point(experiment, Path("search") / name, False, tuple(offline))
    ledger = Ledger(Path("search"))
    assert len(read_lines(Path("search/held/metrics.jsonl"))) == 5
    assert len(read_lines(Path("search/stopped/metrics.jsonl"))) == 3 and ledger.state("stopped", "") == "pruned"
    told, rows = read_pruned(Path("search/stopped")), read_lines(Path("search/stopped/metrics.jsonl"))
    # The last quarter of three steps is the third alone.
    assert told is not None and told["step"] == 3 and told["value"] == rows[2]["accuracy"]
    assert "pruned after step 3 of 5" in read_json(Path("search/stopped/status.json"))["message"]
