"""What is shown of a sweep: counts, points at work, failures, time left; with hundreds of points too."""

import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

import fake_points

from multiref_cli.cli.display import LiveSweep, clock
from multiref_cli.sweeps.ledger import Ledger, mark
from multiref_cli.sweeps.plan import Plan
from multiref_cli.sweeps.watch import Snapshot, Watcher, event_line, last_line
from multiref_cli.sweeps.worker import work_off
from multiref_cli.tracking.progress import duration
from multiref_cli.tracking.run_dir import RunDir


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    """Ten points: one done, one failed, one at work at step 4 of 8, one left behind by a dead worker, six queued."""
    points = [fake_points.point("done"), fake_points.point("bad", fail_at=1)]
    work_off(fake_points.work(tmp_path, points))
    points += [fake_points.point(f"p{i}") for i in range(8)]
    ledger = Ledger(tmp_path)
    watcher = Watcher(ledger, Plan(tuple(points), ()))
    for name in ("p0", "p1"):
        run = RunDir.create(ledger.folder(name), "", [], {})
        run.log({"step": 4, "loss": 0.25, "reward": 0.5})
        run.write_status("running", 4, 8, "train")
    return watcher


def test_snapshot(watcher: Watcher) -> None:
    with watcher.ledger.claim("p0", "launch"):
        now = watcher.snapshot()
        assert now.counts == {"done": 1, "running": 1, "queued": 6, "stopped": 1, "failed": 1} and now.total == 10
        (row,) = now.running
        assert (row.name, row.step, row.total, row.phase, row.metric) == ("p0", 4, 8, "train", "reward 0.5")
        assert row.steps_per_second is None and now.seconds_left is None
        (failure,) = now.failures
        assert failure.name == "bad" and failure.reason == "the loss is nan" and failure.log.is_file()
        time.sleep(0.05)
        RunDir(watcher.ledger.folder("p0")).write_status("running", 6, 8, "train")
        later = watcher.snapshot()
        (row,) = later.running
        assert row.steps_per_second > 0 and row.seconds_left == pytest.approx(2 / row.steps_per_second)
        # A quarter of a point was done since the first look; 8 - 6/8 - 4/8 points are left.
        assert later.seconds_left > 0


def test_event_lines(watcher: Watcher) -> None:
    assert watcher.events() == [], "what happened before this launch is not told again"
    watcher.ledger.event("done", "p0", seconds=75.0)
    watcher.ledger.event("failed", "p1", message="the loss is nan", log="logs/p1.log")
    watcher.ledger.event("resumed", "p2", pid=1, step=40)
    counts = watcher.snapshot().counts
    lines = [event_line(event, counts).split(" ", 1)[1] for event in watcher.events()]
    assert lines == [
        "done p0 in 1 min 15 s [1 of 10 done, 1 failed]",
        "FAILED p1: the loss is nan (log: logs/p1.log) [1 of 10 done, 1 failed]",
        "resumed p2 at step 40",
    ]
    assert watcher.events() == []


def _drawn(snapshot: Snapshot, width: int = 100) -> str:
    live, console = (
        LiveSweep(),
        Console(file=StringIO(), width=width, height=40, force_terminal=True, color_system=None),
    )
    live.update(snapshot)
    console.print(live)
    return console.file.getvalue()


def test_live_table(watcher: Watcher) -> None:
    with watcher.ledger.claim("p0", "launch"):
        text = _drawn(watcher.snapshot())
    assert "1 done, 1 running, 6 queued, 1 stopped, 1 failed" in text and "1/10" in text
    assert "p0" in text and "4/8" in text and "reward 0.5" in text and "bad: the loss is nan" in text


def test_three_hundred_points_stay_readable(tmp_path: Path) -> None:
    points = [fake_points.point(f"dpo-rkl-a0.5-b1-s{i}") for i in range(300)]
    ledger = Ledger(tmp_path)
    for point in points[:40]:
        mark(ledger.folder(point.name), "failed", "x" * 50)
    for point in points[40:100]:
        mark(ledger.folder(point.name), "running", "train")
        (tmp_path / ".sweep" / "claims").mkdir(parents=True, exist_ok=True)
        (tmp_path / ".sweep" / "claims" / f"{point.name}.json").write_text(
            '{"host": "h", "pid": 1, "launch": "l", "deaths": 0}'
        )
    text = _drawn(Watcher(ledger, Plan(tuple(points), ())).snapshot(), width=160)
    assert len(text.splitlines()) < 36 and "and 44 more at work" in text and "0/300" in text


def test_last_line_of_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_line(path) == {}
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert last_line(path) == {"step": 2}


def test_durations() -> None:
    assert [duration(s) for s in (1.25, 59.94, 61, 3700)] == ["1.2 s", "59.9 s", "1 min 01 s", "1 h 01 min"]
    assert [clock(s) for s in (5, 65, 3605)] == ["0:05", "1:05", "1:00:05"]
