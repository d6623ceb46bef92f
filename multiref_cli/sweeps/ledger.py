"""A sweep's folder: the plan, who works on which point, and what state every point is in."""

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import (
    append_line,
    parse_lines,
    read_lines,
    read_object,
    read_yaml,
    write_json,
    write_lines,
    write_text,
    writing,
)
from multiref_cli.sweeps.plan import Plan
from multiref_cli.sweeps.request import Request
from multiref_cli.tracking.places import holds_something, make_place
from multiref_cli.tracking.run_dir import CHOICES, RunDir
from multiref_cli.tracking.rungs import PRUNED

# A holder on another machine that has not touched its claim for so long is dead (its own machine is asked by lock).
STALE_SECONDS = 120.0
# States of a point with which a launch has nothing left to do.
ENDED = ("done", "failed", "pruned")


@dataclass(frozen=True)
class Holder:
    """Who works on something: a process of a launch, and how many of that launch died on it without a new checkpoint.

    `checkpoint` is the newest one's name when the holder began, empty where there was none.
    """

    host: str
    pid: int
    launch: str
    deaths: int
    checkpoint: str = ""


class Ledger:
    """The folder of a sweep; several launchers may work on it at the same time, on several machines."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """Open an existing sweep folder.

        Raises:
            RequestError: it is none.
        """
        if not (Path(path) / "sweep.yaml").is_file():
            raise RequestError(f"{path} is not a sweep folder (it has no sweep.yaml); give the folder of a sweep.")
        return cls(path)

    def refuse_other(self) -> None:
        """Refuse a folder that is there and no sweep's.

        Raises:
            RequestError: it is something else.
        """
        if holds_something(self.path) and not (self.path / "sweep.yaml").is_file():
            raise RequestError(f"{self.path} exists and is not a sweep folder; choose another run.name or run.dir.")

    def write_plan(
        self, request: Request, plan: Plan, provenance: dict[str, Any], choices: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Make the folder or replace its plan; finished points stay, those that are no longer asked for are not read.

        Args:
            request: as asked for.
            plan: of it.
            provenance: further keys of sweep.yaml.
            choices: of alpha that the plan was made with, where rules chose it.

        Raises:
            RequestError: the folder exists and is something else.
        """
        self.refuse_other()
        for name in (".sweep/claims", "logs"):
            make_place(self.path / name)
        with FileLock(self.path / ".sweep" / "plan.lock"):
            self._sweep_claims()
            before = self.description().get("history", [])
            entry = {"at": _now(), "overrides": list(request.overrides)}
            if not before or before[-1]["overrides"] != entry["overrides"]:
                before = [*before, entry]
            description = {
                "overrides": list(request.overrides),
                "seeds": list(request.seeds),
                "baselines": request.baselines,
                **({"rivals": asdict(request.rivals), "left_out": list(plan.left_out)} if request.rivals else {}),
                "points": len(plan.points),
                "history": before,
                **provenance,
            }
            write_text(self.path / "sweep.yaml", yaml.safe_dump(description, sort_keys=False, allow_unicode=True))
            if choices or (self.path / CHOICES).is_file():
                write_json(self.path / CHOICES, list(choices))
            write_lines(self.path / "plan.jsonl", [point.line() for point in plan.points])

    def description(self) -> dict[str, Any]:
        """Content of sweep.yaml, empty where there is none."""
        path = self.path / "sweep.yaml"
        try:
            content = read_yaml(path) if path.is_file() else {}
        except RunError:  # damaged: it is written again with the plan
            return {}
        return content if isinstance(content.get("overrides", []), list) else {}

    def inputs(self, found: dict[str, str]) -> dict[str, str]:
        """Name -> sha256 of all that points of this sweep are made from; what is new of `found` is added."""
        path = self.path / ".sweep" / "inputs.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            try:
                known = read_object(path)
            except RunError:
                known = None
            if known is None:  # of an earlier version, or damaged
                known = self._inputs_of_points()
            if not found.keys() <= known.keys():
                write_json(path, found | known)
            return known

    def _inputs_of_points(self) -> dict[str, str]:
        known: dict[str, str] = {}
        for folder in self.run_folders():
            try:
                known |= (read_object(folder / "manifest.json") or {}).get("inputs") or {}
            except RunError:
                continue
        return known

    def planned(self) -> list[dict[str, Any]]:
        """The lines of plan.jsonl that are points."""
        rows, keys = read_lines(self.path / "plan.jsonl"), ("name", "id", "condition_id")
        return [row for row in rows if all(isinstance(row.get(key), str) for key in keys)]

    def folder(self, name: str) -> Path:
        """The run folder of a point."""
        return self.path / name

    def log_path(self, name: str) -> Path:
        """Where everything that a point prints goes."""
        return self.path / "logs" / f"{name}.log"

    def state(self, name: str, identity: str) -> str:
        """One of `RunDir`'s states, or pruned; a run that finished with another config counts as queued."""
        run = RunDir(self.folder(name))
        state = run.status().get("state", "queued")
        if state == "stopped" and (run.path / PRUNED).is_file():
            return "pruned"
        return "queued" if state == "done" and not run.is_done(identity) else state

    def run_folders(self) -> list[Path]:
        """Run folders of the planned points that are done, in the order of the plan."""
        return [self.folder(p["name"]) for p in self.planned() if self.state(p["name"], p["id"]) == "done"]

    def forget_failures(self, points: Iterable[tuple[str, str]]) -> int:
        """Set failed points back to queued so that they are taken up again.

        Args:
            points: (name, id) of the points.

        Returns:
            How many.
        """
        count = 0
        for name, identity in points:
            with self.claim(name, launch="retry") as holder:
                if holder is not None and self.state(name, identity) == "failed":
                    status = RunDir(self.folder(name)).status()
                    RunDir(self.folder(name)).write_status("queued", status.get("step", 0), status.get("total", 0))
                    count += 1
        return count

    @contextmanager
    def claim(self, name: str, launch: str) -> Iterator[Holder | None]:
        """Hold a point, or yield None if someone alive holds it.

        On one machine the operating system's lock decides, which ends with its process however that ends. Between
        machines whose file system does not share locks, the holder's file decides, by its age.

        Args:
            name: of the point or pass.
            launch: id of this launch; deaths are counted within one.
        """
        path = self.path / ".sweep" / "claims" / f"{name}.json"
        lock = FileLock(path.with_suffix(".lock"))
        try:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
        except Timeout:
            yield None
            return
        holder = None
        try:
            with writing(path):
                holder = self._take_over(path, launch)
            yield holder
        finally:
            # A killed process does not come here: the file that it leaves is how its death is noticed and counted.
            if holder is not None:
                path.unlink(missing_ok=True)
            lock.release()

    def beat(self, name: str) -> None:
        """Say that the holder of a point is alive."""
        path = self.path / ".sweep" / "claims" / f"{name}.json"
        if path.is_file():
            os.utime(path)

    def holder(self, name: str) -> Holder | None:
        """Who holds a point, dead or alive; a damaged claim counts as that of a dead holder of another launch."""
        try:
            content = read_object(self.path / ".sweep" / "claims" / f"{name}.json")
            return Holder(**content) if content else None
        except (RunError, TypeError):
            return Holder(socket.gethostname(), 0, "", 0)

    def clear(self, name: str) -> None:
        """Remove what a run left that was killed before its first status: nothing in it can be gone on with."""
        folder = self.folder(name)
        if folder.is_dir() and not is_begun(folder):
            shutil.rmtree(folder)

    def event(self, kind: str, name: str, **more: Any) -> None:
        """Append one line to events.jsonl; short appended lines of several processes do not mix."""
        append_line(self.path / "events.jsonl", {"at": time.time(), "kind": kind, "name": name, **more})

    def events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Events from a byte offset on, and the offset to go on from."""
        path = self.path / "events.jsonl"
        if not path.is_file():
            return [], offset
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        rows = [
            row for row in parse_lines(content) if isinstance(row.get("kind"), str) and "name" in row and "at" in row
        ]
        return rows, offset + len(content)

    def _take_over(self, path: Path, launch: str) -> Holder | None:
        """Write this process into the holder's file, unless a process on another machine is alive in it."""
        before, host = self.holder(path.stem), socket.gethostname()
        if before is not None:
            if before.host != host and self._age(path) < STALE_SECONDS:
                return None
            # Of several machines that see the same stale file one succeeds in moving it away.
            aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                path.rename(aside)
            except FileNotFoundError:
                return None
            aside.unlink()
        newest = max((p.name for p in (self.folder(path.stem) / "checkpoints").glob("step_*")), default="")
        deaths = 0
        if before is not None and before.launch == launch:
            deaths = 1 if newest > before.checkpoint else before.deaths + 1
        holder = Holder(host, os.getpid(), launch, deaths, newest)
        whole = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            whole.write_text(json.dumps(asdict(holder)))
            os.link(whole, path)  # appears with its content, and only if nobody else's is there
        except FileExistsError:
            return None
        finally:
            whole.unlink(missing_ok=True)
        return holder

    def _sweep_claims(self) -> None:
        """Delete what processes left beside claims that were killed while they took one over."""
        for path in sorted((self.path / ".sweep" / "claims").glob(".*")):
            if self._age(path) >= STALE_SECONDS:
                path.unlink(missing_ok=True)

    def _age(self, path: Path) -> float:
        """Seconds since a file was touched, by the clock of the file system that it is on."""
        probe = path.with_name(f".clock-{uuid.uuid4().hex}")
        probe.touch()
        try:
            # A clock that was set back must not make a dead holder look alive for as long.
            return abs(probe.stat().st_mtime - path.stat().st_mtime)
        except FileNotFoundError:
            return float("inf")
        finally:
            probe.unlink(missing_ok=True)


def expand_folders(folders: Sequence[Path]) -> list[Path]:
    """Run folders of runs and sweeps: a sweep stands for its finished points.

    Raises:
        RequestError: a folder that is neither.
    """
    found: list[Path] = []
    for folder in folders:
        if (folder / "sweep.yaml").is_file():
            found += Ledger(folder).run_folders()
        elif (folder / "config.yaml").is_file():
            found.append(folder)
        else:
            raise RequestError(f"{folder} is neither a run nor a sweep: it has no config.yaml and no sweep.yaml.")
    return list(dict.fromkeys(found))


def is_begun(folder: Path) -> bool:
    """Whether a run folder holds what a run is gone on with: a config and a manifest that can be read."""
    try:
        return bool(read_yaml(folder / "config.yaml")) and read_object(folder / "manifest.json") is not None
    except RunError:
        return False


def read_status(folder: Path) -> dict[str, Any]:
    """Content of a run's status.json, empty where there is none."""
    return RunDir(folder).status()


def mark(folder: Path, state: str, message: str) -> None:
    """Set the state of a run from outside of it, keeping its step."""
    folder.mkdir(parents=True, exist_ok=True)
    status = RunDir(folder).status()
    RunDir(folder).write_status(state, status.get("step", 0), status.get("total", 0), message)


def write_marker(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file, with its folder, atomically."""
    write_json(path, content)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
