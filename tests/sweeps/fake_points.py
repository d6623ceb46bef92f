"""Points that behave like runs and cost nothing: steps, checkpoints, a status, results that depend on every step."""

import hashlib
import os
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from multiref_cli.errors import RunError
from multiref_cli.files import read_json, write_json
from multiref_cli.sweeps.plan import Pass, Plan, Point
from multiref_cli.sweeps.pool import run_local
from multiref_cli.sweeps.worker import Work
from multiref_cli.tracking.run_dir import RunDir


class Config(dict[str, Any]):
    """Of a point: what `run` reads, and the processes and the device that a launcher asks after."""

    @property
    def hardware(self) -> SimpleNamespace:
        return SimpleNamespace(processes=self.get("processes", 1), device=self.get("device", "cpu"))


def point(name: str, steps: int = 5, passes: tuple[str, ...] = (), **behavior: Any) -> Point:
    """A point of `steps` steps; `behavior` is read by `run`."""
    config = Config({"id": f"id-{name}", "steps": steps, "seconds": 0.0, **behavior})
    return Point(f"id-{name}", name, f"c-{name}", f"cid-{name}", 0, "grid", (f"name={name}",), passes, (), config)


def run(config: dict[str, Any], folder: Path, resume: bool, overrides: tuple[str, ...]) -> None:
    """Walk a chain of hashes, one link a step, with a checkpoint behind each link."""
    directory = RunDir(folder)
    if not resume:
        directory = RunDir.create(folder, "fake: true\n", list(overrides), {"command": "fake"})
    state = read_json(folder / "checkpoints" / "last.json") or {"step": 0, "value": config["id"]}
    directory.forget_after(state["step"])
    print(f"running {config['id']} from step {state['step']}")
    while state["step"] < config["steps"]:
        time.sleep(config["seconds"])
        if state["step"] == config.get("kill_at") and _first_time(config, folder):
            os.kill(os.getpid(), 9)
        if state["step"] == config.get("fail_at") and _first_time(config, folder):
            raise RunError("the loss is nan")
        if state["step"] == config.get("memory_at") and _first_time(config, folder):
            directory.write_status("failed", state["step"], config["steps"], "out of memory")  # as a run does
            raise RunError("out of memory") from MemoryError("out of memory")
        value = hashlib.sha256(state["value"].encode()).hexdigest()
        state = {"step": state["step"] + 1, "value": value}
        directory.log({"step": state["step"], "loss": int(value[:6], 16) / 16**6})
        write_json(folder / "checkpoints" / "last.json", state)
        directory.write_status("running", state["step"], config["steps"])
    number = int(state["value"][:8], 16) / 16**8
    metrics = {"reward": {"mean": number, "ci_low": number, "ci_high": number, "n": 1}}
    directory.write_results(metrics, config["id"], 0, "fake")
    directory.write_status("done", config["steps"], config["steps"])


def _first_time(config: dict[str, Any], folder: Path) -> bool:
    """Whether this misfortune strikes: always with `always`, else once a point."""
    marker = folder / "struck"
    if config.get("always") or not marker.exists():
        marker.touch()
        return True
    return False


def prepare(one: Pass) -> None:
    """Count how often a pass is done, in the file that its config names."""
    time.sleep(one.experiment.get("seconds", 0.0))
    with Path(one.experiment["count"]).open("a") as file:
        file.write(f"{one.id}\n")
    if one.experiment.get("fail"):
        raise RunError("no such reference")


def work(folder: Path, points: list[Point], passes: tuple[Pass, ...] = ()) -> Work:
    """A launch of fake points in a sweep folder."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return Work(folder, Plan(tuple(points), passes), uuid.uuid4().hex, run, prepare, beat_seconds=0.5)


if __name__ == "__main__":
    # A sweep in a process of its own, to be killed: FOLDER POINTS STEPS SECONDS WORKERS.
    target, (count, length, workers) = Path(sys.argv[1]), (int(sys.argv[i]) for i in (2, 3, 5))
    import fake_points  # under its own name, so that the workers can unpickle its functions

    points = [fake_points.point(f"p{i}", length, seconds=float(sys.argv[4])) for i in range(count)]
    run_local(fake_points.work(target, points), workers, lambda: None)
