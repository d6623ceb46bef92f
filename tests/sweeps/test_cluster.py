"""Slurm and Ray workers: the same ledger and results as local ones (submitit's local executor, Ray on loopback)."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_points
import fake_trials

from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_json
from multiref_cli.sweeps import cluster
from multiref_cli.sweeps.cluster import _ray_needs
from multiref_cli.sweeps.launch import launch
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.worker import Work, work_off


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def _results(folder: Path) -> dict[str, object]:
    return {path.parent.name: read_json(path) for path in sorted(folder.glob("*/results.json"))}


def _undisturbed(folder: Path, count: int, steps: int) -> dict[str, object]:
    work_off(fake_points.work(folder, [fake_points.point(f"p{i}", steps) for i in range(count)]))
    return _results(folder)


def _check(folder: Path, launcher: str, options: dict[str, object]) -> None:
    points = [fake_points.point(f"p{i}", 10, seconds=0.02) for i in range(6)]
    points.append(fake_points.point("bad", fail_at=1))
    launch(fake_points.work(folder, points), launcher, 2, options, lambda: None)
    ledger = Ledger(folder)
    assert ledger.state("bad", "id-bad") == "failed"
    assert _results(folder) == _undisturbed(folder / "undisturbed", 6, 10)
    starts = [event["name"] for event in ledger.events()[0] if event["kind"] == "started"]
    assert sorted(starts) == sorted(point.name for point in points)


def test_submitit_local_executor(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    _check(tmp_path, "slurm", {"cluster": "local", "timeout_min": 5})


def test_submitit_replaces_a_killed_job(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    points = [fake_points.point("once", kill_at=3), fake_points.point("fine")]
    launch(fake_points.work(tmp_path, points), "slurm", 1, {"cluster": "local", "timeout_min": 5}, lambda: None)
    kinds = [event["kind"] for event in Ledger(tmp_path).events()[0] if event["name"] == "once"]
    assert kinds == ["started", "retried", "done"]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with a processor each, whose tasks find the modules of these tests."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def test_ray_with_two_nodes(two_nodes: str, tmp_path: Path) -> None:
    _check(tmp_path, "ray", {"address": two_nodes})
    pids = {event["pid"] for event in Ledger(tmp_path).events()[0] if event["kind"] == "started"}
    assert len(pids) == 2


@pytest.mark.slow
def test_a_search_by_ray_tries_what_any_other_tries(
    two_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiref_cli.sweeps.plan._check_parts", lambda experiments: None)
    given = ["regularizer=rkl", "search.trials=4", "search.batch=2", "search.sampler=random"]
    rounds = []

    def start(work: Work, workers: int) -> None:
        """One round, by Ray."""
        rounds.append(len(work.plan.points))
        launch(work, "ray", workers, {"address": two_nodes}, lambda: None)

    alone = fake_trials.search(fake_trials.request_of(tmp_path / "alone", *given))
    found = fake_trials.search(fake_trials.request_of(tmp_path / "ray", *given), 2, start=start)
    assert found.trials == alone.trials and [trial.state for trial in found.trials] == ["done"] * 4
    assert rounds == [2, 4]


def test_ray_stops_with_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    points = [fake_points.point(f"p{i}", 400, seconds=0.05) for i in range(3)]

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*/status.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        launch(fake_points.work(tmp_path, points), "ray", 2, {}, lambda: None)
    thread.join()
    states = [read_json(path)["state"] for path in tmp_path.glob("*/status.json")]
    assert states == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("launcher", "options", "sentence"),
    [("pbs", {}, "allowed: local, slurm, ray"), ("local", {"partition": "gpu"}, "launcher.partition has no meaning")],
)
def test_wrong_requests(tmp_path: Path, launcher: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        launch(fake_points.work(tmp_path, [fake_points.point("p")]), launcher, 1, options, lambda: None)


@pytest.mark.parametrize(("launcher", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_missing_engine_is_one_sentence(
    tmp_path: Path, launcher: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RequestError, match=f"pip install {module}"):
        launch(fake_points.work(tmp_path, [fake_points.point("p")]), launcher, 1, {}, lambda: None)


def test_unknown_engine_options(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(RequestError, match="submitit refuses"):
        options = {"cluster": "local", "no_such_option": 1}
        launch(fake_points.work(tmp_path, [fake_points.point("p")]), "slurm", 1, options, lambda: None)


def test_a_job_of_slurm_has_room_for_the_processes_of_a_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit, asked = pytest.importorskip("submitit"), {}
    points = [fake_points.point("p", processes=4)]
    with pytest.raises(RequestError, match="gpus_per_node is 2, but a point has 4 processes"):
        launch(fake_points.work(tmp_path, points), "slurm", 1, {"cluster": "local", "gpus_per_node": 2}, lambda: None)

    def stop(self: object, **options: object) -> None:
        asked.update(options)
        raise ValueError("seen")

    monkeypatch.setattr(submitit.AutoExecutor, "update_parameters", stop)
    with pytest.raises(RequestError, match="seen"):
        launch(fake_points.work(tmp_path, points), "slurm", 1, {"cluster": "local", "gpus_per_node": 4}, lambda: None)
    assert (asked["cpus_per_task"], asked["gpus_per_node"]) == (4, 4)


@pytest.mark.parametrize(
    ("processes", "device", "options", "expected"),
    [
        (1, "auto", {}, (1, 1)),  # Ray would hide every GPU from a task that asks for none
        (1, "cpu", {}, (1, 0)),
        (1, "auto", {"num_gpus": 0.5}, (1, 0.5)),
        (4, "auto", {}, (4, 4)),
        (4, "auto", {"num_cpus": 16, "num_gpus": 8}, (16, 8)),
        (16, "auto", {}, (16, 0)),  # no node has sixteen
        (4, "auto", {"num_gpus": 2}, "4 processes"),
        (64, "cpu", {}, "no node of the Ray cluster has 64 CPUs and 0 GPUs"),
        (1, "auto", {"num_gpus": 9}, "no node of the Ray cluster has 1 CPUs and 9 GPUs"),
    ],
)
def test_a_task_of_ray_has_room_for_the_processes_of_a_point(
    tmp_path: Path, processes: int, device: str, options: dict[str, float], expected: tuple[float, float] | str
) -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 32.0, "GPU": 8.0}]
    work = fake_points.work(tmp_path, [fake_points.point("p", processes=processes, device=device)])
    if isinstance(expected, str):
        with pytest.raises(RequestError, match=expected):
            _ray_needs(work, nodes, options)
    else:
        assert _ray_needs(work, nodes, options) == {"num_cpus": expected[0], "num_gpus": expected[1]}


def test_a_worker_that_was_just_started_is_stopped_too_when_too_many_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, whose ten successors end one after the other; then the last ones end at once."""
    monkeypatch.setattr(cluster, "TICK_SECONDS", 0.0)
    started, ticks, stopped = [0, 1], [0], []

    def start() -> int:
        started.append(len(started))
        return started[-1]

    def is_over(job: int) -> bool:
        return job == started[-1] if ticks[0] < cluster.REPLACEMENTS * 2 else True

    work = fake_points.work(tmp_path, [fake_points.point("p")])
    with pytest.raises(RunError, match="workers end while points are left"):
        cluster._watch(work, [0, 1], start, is_over, stopped.extend, lambda: ticks.__setitem__(0, ticks[0] + 1))
    assert started[-1] in stopped
