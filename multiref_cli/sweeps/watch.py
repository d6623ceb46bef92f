"""What a sweep is doing, read from its folder: plain data for whoever draws it."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiref_cli.sweeps.ledger import ENDED, Ledger
from multiref_cli.sweeps.plan import Plan, Point
from multiref_cli.tracking.progress import duration
from multiref_cli.tracking.run_dir import RunDir

# The first of these that a run logs is shown for it.
_KEY_METRICS = ("reward", "accuracy", "loss")


@dataclass(frozen=True)
class Running:
    """A point at work."""

    name: str
    step: int
    total: int
    phase: str
    metric: str
    steps_per_second: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class Failure:
    """A point that failed, why, and where everything that it printed lies."""

    name: str
    reason: str
    log: Path


@dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment; `counts` has done, running, queued, stopped and failed, and pruned where there are any.

    `making` are the passes at work that points wait for, each with its seconds so far.
    """

    counts: dict[str, int]
    running: list[Running]
    failures: list[Failure]
    seconds_left: float | None
    making: tuple[tuple[str, float], ...] = ()

    @property
    def total(self) -> int:
        """Number of points."""
        return sum(self.counts.values())


class Watcher:
    """Reads a sweep's folder again and again: every point once, then those alone that events name or that run."""

    def __init__(self, ledger: Ledger, plan: Plan) -> None:
        self.ledger, self.plan = ledger, plan
        _, self._offset = ledger.events(0)
        self._read = self._offset
        self._points = {point.name: point for point in plan.points}
        self._states: dict[str, str] = {}
        self._shares: dict[str, float] = {}
        self._failures: list[Failure] = []
        self._making: dict[str, float] = {}
        self._first_seen: dict[str, tuple[float, int]] = {}
        self._started = time.monotonic()
        self._work_at_start: float | None = None

    def snapshot(self) -> Snapshot:
        """The state of every point now."""
        running = []
        for point in self._moved():
            state = self.ledger.state(point.name, point.id)
            if state == "running" and self.ledger.holder(point.name) is None:
                state = "stopped"
            status = {} if state == "done" else RunDir(self.ledger.folder(point.name)).status()
            self._shares[point.name] = status.get("step", 0) / max(status.get("total", 0), 1)
            if state in ENDED:
                self._shares[point.name] = 1.0
            if state == "running":
                running.append(self._running(point.name, status))
            if state == "failed" and self._states.get(point.name) != "failed":
                reason, log = status.get("message", ""), self.ledger.log_path(point.name)
                self._failures.append(Failure(point.name, reason, log))
            self._states[point.name] = state
        counts = dict.fromkeys(("done", "running", "queued", "stopped", "failed"), 0)
        counts.update(Counter(self._states.values()))
        left, now = self._seconds_left(math.fsum(self._shares.values())), time.time()
        making = tuple((title, max(0.0, now - since)) for title, since in self._making.items())
        return Snapshot(counts, running, self._failures, left, making)

    def _moved(self) -> Iterable[Point]:
        """Points whose state may be another than at the last look, in the order of the plan."""
        found, self._read = self.ledger.events(self._read)
        for event in found:
            if event["kind"] == "pass":
                self._making[event["name"]] = event["at"]
            elif event["kind"] in ("pass_done", "pass_failed"):
                self._making.pop(event["name"], None)
        if not self._states:
            return self.plan.points
        names = {event["name"] for event in found} | {n for n, state in self._states.items() if state == "running"}
        return [self._points[name] for name in self._points if name in names]

    def events(self) -> list[dict[str, Any]]:
        """What happened since the last call."""
        found, self._offset = self.ledger.events(self._offset)
        return found

    def _running(self, name: str, status: dict[str, Any]) -> Running:
        step, total, now = status.get("step", 0), status.get("total", 0), time.monotonic()
        since, first = self._first_seen.setdefault(name, (now, step))
        speed = (step - first) / (now - since) if step > first else None
        left = (total - step) / speed if speed else None
        phase = str(status.get("message") or "train")
        return Running(name, step, total, phase, self._metric(name), speed, left)

    def _metric(self, name: str) -> str:
        last = last_line(self.ledger.folder(name) / "metrics.jsonl")
        found = next((key for key in _KEY_METRICS if last.get(key) is not None), None)
        return f"{found} {last[found]:.3g}" if found else ""

    def _seconds_left(self, work: float) -> float | None:
        """From the work of this launch so far: a point counts one, a running one its share of steps."""
        if self._work_at_start is None:
            self._work_at_start = work
        done = work - self._work_at_start
        elapsed = time.monotonic() - self._started
        return (len(self.plan.points) - work) * elapsed / done if done > 0 else None


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a .jsonl file, read from its end; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16_384))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines[:-1]):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue
    return {}


def event_line(event: dict[str, Any], counts: dict[str, int]) -> str:
    """One plain line for one event, with the counts of the sweep where they changed."""
    at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    kind, name = event["kind"], event["name"]
    if kind in ("done", "pass_done"):
        text = f"{'done' if kind == 'done' else 'made'} {name} in {duration(event['seconds'])}"
    elif kind == "pruned":
        text = f"pruned {name} after {duration(event['seconds'])}"
    elif kind in ("failed", "pass_failed"):
        text = f"FAILED {name}: {event['message']}" + (f" (log: {event['log']})" if "log" in event else "")
    elif kind == "pass":
        text = f"making {name}"
    else:
        text = f"{kind} {name}" + (f" at step {event['step']}" if event.get("step") else "")
    if kind in ENDED:
        text += f" [{counts['done']} of {sum(counts.values())} done, {counts['failed']} failed]"
    return f"{at} {text}"
