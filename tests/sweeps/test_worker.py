"""Points are run once each whatever happens to the processes that run them, and end in the same results."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_points

from multiref_cli.errors import RunError
from multiref_cli.files import read_json, write_json
from multiref_cli.sweeps import ledger as ledgers
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Pass
from multiref_cli.sweeps.pool import run_local
from multiref_cli.sweeps.worker import work_off
from multiref_cli.tracking.run_dir import RunDir


def _results(folder: Path) -> dict[str, object]:
    return {path.parent.name: read_json(path) for path in sorted(folder.glob("*/results.json"))}


def _kinds(folder: Path, name: str) -> list[str]:
    return [e["kind"] for e in Ledger(folder).events()[0] if e["name"] == name]


def test_points_run_once_and_a_second_launch_does_nothing(tmp_path: Path) -> None:
    points = [fake_points.point(f"p{i}", steps=2) for i in range(3)]
    work_off(fake_points.work(tmp_path, points))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("p?/*")}
    work_off(fake_points.work(tmp_path, points))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("p?/*")}
    assert len(_results(tmp_path)) == 3 and _kinds(tmp_path, "p0") == ["started", "done"]
    assert "running id-p1" in (tmp_path / "logs" / "p1.log").read_text()
    assert not list(tmp_path.glob(".sweep/claims/*.json"))


def test_failure_is_recorded_and_others_go_on(tmp_path: Path) -> None:
    points = [fake_points.point("bad", fail_at=1), fake_points.point("good")]
    work_off(fake_points.work(tmp_path, points))
    ledger = Ledger(tmp_path)
    assert ledger.state("bad", "id-bad") == "failed" and ledger.state("good", "id-good") == "done"
    event = next(e for e in ledger.events()[0] if e["kind"] == "failed")
    assert event["message"] == "the loss is nan" and "the loss is nan" in Path(event["log"]).read_text()
    work_off(fake_points.work(tmp_path, points))
    assert ledger.state("bad", "id-bad") == "failed", "a failed point waits for --retry-failed"
    assert ledger.forget_failures([("bad", "id-bad"), ("good", "id-good")]) == 1
    work_off(fake_points.work(tmp_path, points))
    assert ledger.state("bad", "id-bad") == "done" and _kinds(tmp_path, "bad")[-2:] == ["resumed", "done"]


def test_another_config_in_the_folder_is_not_taken_for_done(tmp_path: Path) -> None:
    work_off(fake_points.work(tmp_path, [fake_points.point("p")]))
    assert Ledger(tmp_path).state("p", "id-other") == "queued"


def test_passes_come_first_and_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    one = Pass("a", "reference a", None, (), {"count": str(count)})
    two = Pass("b", "normalizers", None, ("a",), {"count": str(count)})
    unneeded = Pass("c", "reference c", None, (), {"count": str(count)})
    points = [fake_points.point(f"p{i}", passes=("a", "b")) for i in range(2)]
    work_off(fake_points.work(tmp_path, points, (two, one, unneeded)))
    assert count.read_text().split() == ["a", "b"]
    kinds = [e["kind"] for e in Ledger(tmp_path).events()[0]]
    assert kinds[:4] == ["pass", "pass_done", "pass", "pass_done"]
    work_off(fake_points.work(tmp_path, points, (two, one)))
    assert count.read_text().split() == ["a", "b"], "nothing is missing, so nothing is prepared"


def test_failed_pass_fails_its_points_only(tmp_path: Path) -> None:
    broken = Pass("a", "reference a", None, (), {"count": str(tmp_path / "count"), "fail": True})
    points = [fake_points.point("needs", passes=("a",)), fake_points.point("free")]
    work_off(fake_points.work(tmp_path, points, (broken,)))
    status = RunDir(tmp_path / "needs").status()
    assert status["state"] == "failed" and status["message"] == "reference a could not be made: no such reference"
    assert Ledger(tmp_path).state("free", "id-free") == "done"


def test_remains_of_a_run_killed_at_birth_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "p" / "logs").mkdir(parents=True)
    (tmp_path / "p" / "config.yaml").write_text("half")
    work_off(fake_points.work(tmp_path, [fake_points.point("p")]))
    assert Ledger(tmp_path).state("p", "id-p") == "done"


def test_claims_exclude_each_other(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    with first.claim("p", "launch") as holder:
        assert holder is not None and holder.pid == os.getpid() and holder.deaths == 0
        with second.claim("p", "other") as nobody:
            assert nobody is None
        assert first.holder("p") == holder
    with second.claim("p", "other") as holder:
        assert holder is not None
    assert first.holder("p") is None


def test_holder_on_another_machine_is_believed_while_it_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, path = Ledger(tmp_path), tmp_path / ".sweep" / "claims" / "p.json"
    path.parent.mkdir(parents=True)
    write_json(path, {"host": "elsewhere", "pid": 1, "launch": "launch", "deaths": 0})
    with ledger.claim("p", "launch") as holder:
        assert holder is None
    assert path.is_file()
    os.utime(path, (1, 1))
    with ledger.claim("p", "launch") as holder:
        assert holder is not None and holder.deaths == 1
    monkeypatch.setattr(ledgers.socket, "gethostname", lambda: "elsewhere")
    with ledger.claim("p", "launch") as holder:
        assert holder is not None and holder.deaths == 0


def test_killed_worker_costs_one_retry(tmp_path: Path) -> None:
    points = [fake_points.point("once", kill_at=3), fake_points.point("twice", kill_at=2, always=True)]
    points += [fake_points.point("memory", memory_at=1), fake_points.point("fine")]
    run_local(fake_points.work(tmp_path, points), 1, lambda: None)
    ledger = Ledger(tmp_path)
    assert [ledger.state(p.name, p.id) for p in points] == ["done", "failed", "done", "done"]
    assert _kinds(tmp_path, "once") == ["started", "retried", "done"]
    assert "from step 3" in ledger.log_path("once").read_text()
    assert _kinds(tmp_path, "twice") == ["started", "retried", "failed"]
    assert _kinds(tmp_path, "memory") == ["started", "retried", "done"]
    undisturbed = tmp_path / "undisturbed"
    work_off(fake_points.work(undisturbed, [fake_points.point(n) for n in ("once", "memory", "fine")]))
    assert _results(tmp_path) == _results(undisturbed)


def test_workers_that_cannot_work_end_the_sweep(tmp_path: Path) -> None:
    work = fake_points.work(tmp_path, [fake_points.point("p")])
    (tmp_path / "p").write_text("a file where a folder should be")
    with pytest.raises(RunError, match="workers cannot work"):
        run_local(work, 1, lambda: None)


def _sweep_process(
    folder: Path, points: int, steps: int, seconds: float, workers: int, in_background: bool = False
) -> subprocess.Popen:
    """A sweep in a process of its own; in the background of a script, where a shell has SIGINT ignored."""
    arguments = [str(a) for a in (folder, points, steps, seconds, workers)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, str(Path(__file__).parent)])
    command = [sys.executable, str(Path(fake_points.__file__)), *arguments]
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if in_background else None
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, preexec_fn=ignore)


def _live_claims(folder: Path) -> list[int]:
    holders = [Ledger(folder).holder(path.stem) for path in folder.glob(".sweep/claims/*.json")]
    return [h.pid for h in holders if h is not None and _alive(h.pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_random_kills_of_workers_and_parent(tmp_path: Path) -> None:
    """MULTIREF_KILLS=100 for the long version; results must equal those of an undisturbed sweep."""
    kills, generator = int(os.environ.get("MULTIREF_KILLS", "5")), random.Random(0)
    points = [fake_points.point(f"p{i}", 40, seconds=0.02) for i in range(max(6, kills))]
    folder, done = tmp_path / "sweep", 0
    while done < kills:
        parent = _sweep_process(folder, len(points), 40, 0.02, 2)
        while parent.poll() is None and done < kills:
            time.sleep(generator.uniform(0.3, 1.2))
            workers = _live_claims(folder)
            victim = parent.pid if generator.random() < 0.3 else generator.choice(workers or [parent.pid])
            if parent.poll() is None and _alive(victim):
                os.kill(victim, signal.SIGKILL)
                done += 1
            if victim == parent.pid:
                break
        if parent.poll() is None:
            break
        parent.wait()
        Ledger(folder).forget_failures([(p.name, p.id) for p in points])
        assert done < kills or len(_results(folder)) <= len(points)
    if parent.poll() is None:
        parent.wait()
    Ledger(folder).forget_failures([(p.name, p.id) for p in points])
    assert _sweep_process(folder, len(points), 40, 0.02, 2).wait() == 0
    undisturbed = tmp_path / "undisturbed"
    work_off(fake_points.work(undisturbed, [fake_points.point(p.name, 40) for p in points]))
    assert _results(folder) == _results(undisturbed)
    for p in points:
        metrics = [(r / p.name / "metrics.jsonl").read_text() for r in (folder, undisturbed)]
        assert metrics[0] == metrics[1]


def test_interrupt_stops_workers_with_a_checkpoint(tmp_path: Path) -> None:
    process = _sweep_process(tmp_path, 4, 200, 0.05, 2)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("p*/status.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = _live_claims(tmp_path)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert workers and not any(_alive(pid) for pid in workers)
    states = [RunDir(path.parent).status()["state"] for path in tmp_path.glob("p*/status.json")]
    assert states == ["stopped", "stopped"] and not list(tmp_path.glob(".sweep/claims/*.json"))


@pytest.mark.parametrize("in_background", [False, True])
def test_workers_stop_when_their_parent_is_killed(tmp_path: Path, in_background: bool) -> None:
    process = _sweep_process(tmp_path, 2, 400, 0.05, 1, in_background)
    deadline = time.monotonic() + 30
    while not _live_claims(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    (worker,) = _live_claims(tmp_path)
    process.kill()
    process.wait()
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)


def test_two_launchers_share_a_sweep(tmp_path: Path) -> None:
    processes = [_sweep_process(tmp_path, 8, 10, 0.02, 1) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(_results(tmp_path)) == 8
    for i in range(8):
        assert _kinds(tmp_path, f"p{i}") == ["started", "done"]
    pids = {e["pid"] for e in Ledger(tmp_path).events()[0] if e["kind"] == "started"}
    assert len(pids) == 2


def test_no_children_are_left() -> None:
    assert multiprocessing.active_children() == []
