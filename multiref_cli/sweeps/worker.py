"""What every worker of every launcher does: take the next point that nobody holds, run it, until none is left."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiref_cli.config.schema import Experiment
from multiref_cli.errors import RunError
from multiref_cli.files import read_object, sentence_of, writing
from multiref_cli.sweeps.ledger import ENDED, Holder, Ledger, mark, read_status, write_marker
from multiref_cli.sweeps.plan import Pass, Plan, Point

# A point whose worker was killed, or that ran out of memory, is tried once more within a launch.
RETRIES = 1
BEAT_SECONDS = 10.0
POLL_SECONDS = 0.4
OUT_OF_MEMORY_EXIT = 75


@dataclass(frozen=True)
class Work:
    """Everything a worker needs; it can be pickled, and is the same for every launcher.

    `run(experiment, folder, resume, overrides)` trains one point into `folder`; `prepare(one)` does one pass.
    """

    folder: Path
    plan: Plan
    launch: str
    run: Callable[[Experiment, Path, bool, tuple[str, ...]], None]
    prepare: Callable[[Pass], None]
    beat_seconds: float = BEAT_SECONDS
    environment: dict[str, str] = field(default_factory=dict)

    def open_points(self) -> int:
        """How many points are neither done nor failed nor pruned."""
        ledger = Ledger(self.folder)
        return sum(ledger.state(point.name, point.id) not in ENDED for point in self.plan.points)


def work_off(work: Work) -> None:
    """Run passes and points until each is done, failed, or in no one's reach.

    Args:
        work: the plan and what to call for each of its parts.

    Raises:
        KeyboardInterrupt: stopped from outside; the running point wrote a checkpoint and can go on.
    """
    ledger, passes = Ledger(work.folder), Passes(work)
    open_points = list(work.plan.points)
    while True:
        # One look at every open point a round, and in a round each is tried once: the cost of a point does not grow
        # with their number.
        open_points = [point for point in open_points if not _is_finished(ledger, point)]
        if not open_points:
            return
        needed = {identity for point in open_points for identity in point.passes}
        wanted = [one for one in work.plan.passes if one.id in needed]
        worked, look = False, True
        for point in open_points:
            while look and any(_try_pass(work, ledger, passes, one) for one in wanted):
                worked = True
            look = _try_point(work, ledger, passes, point)
            worked |= look
        if not worked:
            time.sleep(POLL_SECONDS)


class Passes:
    """How the passes of a launch ended; what has ended is read once."""

    def __init__(self, work: Work) -> None:
        self.work, self.ledger = work, Ledger(work.folder)
        self.by_id = {one.id: one for one in work.plan.passes}
        self._ended: dict[str, dict[str, Any]] = {}

    def outcome(self, one: Pass) -> dict[str, Any] | None:
        """How a pass ended in this launch; None while it has not."""
        if one.id not in self._ended:
            try:
                content = read_object(pass_marker(self.ledger, one))
            except RunError:  # damaged: the pass is done again
                content = None
            if content and content.get("launch") == self.work.launch:
                self._ended[one.id] = content
        return self._ended.get(one.id)

    def needed_by(self, one: Pass | Point) -> list[dict[str, Any] | None]:
        """How those ended that a pass or a point waits for."""
        waits_for = one.needs if isinstance(one, Pass) else one.passes
        return [self.outcome(self.by_id[identity]) for identity in waits_for if identity in self.by_id]


def _is_finished(ledger: Ledger, point: Point) -> bool:
    return ledger.state(point.name, point.id) in ENDED


def pass_marker(ledger: Ledger, one: Pass) -> Path:
    """The file that says how a pass of the sweep ended."""
    return ledger.path / ".sweep" / "passes" / f"{one.id}.json"


def _try_pass(work: Work, ledger: Ledger, passes: Passes, one: Pass) -> bool:
    """Do a pass unless it is done, held by someone, or waits for another; whether it was done."""
    if passes.outcome(one) is not None or any(outcome is None for outcome in passes.needed_by(one)):
        return False
    with ledger.claim(f"pass-{one.id}", work.launch) as holder:
        if holder is None or passes.outcome(one) is not None:
            return False
        problem = "its worker was killed twice" if holder.deaths > RETRIES else None
        started = time.monotonic()
        if problem is None:
            ledger.event("pass", one.title, pid=os.getpid())
            with _printing_to(ledger.path / "logs" / f"pass-{one.id}.log"), _beating(work, ledger, f"pass-{one.id}"):
                try:
                    work.prepare(one)
                except Exception as error:  # whatever it is, the points that wait for this pass name it
                    _refuse_memory(error, holder)
                    traceback.print_exc()
                    problem = _reason(error)
        write_marker(pass_marker(ledger, one), {"launch": work.launch, "problem": problem, "title": one.title})
        seconds = time.monotonic() - started
        ledger.event("pass_failed" if problem else "pass_done", one.title, seconds=seconds, message=problem or "")
    return True


def _try_point(work: Work, ledger: Ledger, passes: Passes, point: Point) -> bool:
    """Run a point unless it is finished, held by someone, or waits for a pass; whether it was run."""
    needed = passes.needed_by(point)
    if any(outcome is None for outcome in needed) or _is_finished(ledger, point):
        return False
    with ledger.claim(point.name, work.launch) as holder:
        # Another launcher may have finished the point between the look and the claim.
        if holder is None or ledger.state(point.name, point.id) in ENDED:
            return False
        failed = next((outcome for outcome in needed if outcome and outcome["problem"]), None)
        if failed is not None:
            _fail(ledger, point, f"{failed['title']} could not be made: {failed['problem']}")
        elif holder.deaths > RETRIES:
            _fail(
                ledger,
                point,
                "its worker was killed twice without a new checkpoint (out of memory?)",
            )
        else:
            _run(work, ledger, point, holder)
    return True


def _run(work: Work, ledger: Ledger, point: Point, holder: Holder) -> None:
    ledger.clear(point.name)
    folder = ledger.folder(point.name)
    resume = folder.is_dir()
    started = time.monotonic()
    kind = "retried" if holder.deaths else "resumed" if resume else "started"
    ledger.event(kind, point.name, pid=os.getpid(), step=read_status(folder).get("step", 0))
    try:
        with _printing_to(ledger.log_path(point.name)), _beating(work, ledger, point.name):
            try:
                work.run(point.experiment, folder, resume, point.overrides)
            except Exception:  # printed here, where output goes to the point's log; handled below
                traceback.print_exc()
                raise
    except KeyboardInterrupt:
        if folder.is_dir() and read_status(folder).get("state") not in ("done", "stopped"):
            mark(folder, "stopped", "interrupted")
        ledger.event("stopped", point.name, step=read_status(folder).get("step", 0))
        raise
    except Exception as error:  # one failed point never ends a sweep
        _refuse_memory(error, holder, folder)
        _fail(ledger, point, _reason(error))
        return
    state = ledger.state(point.name, point.id)
    if state not in ("done", "pruned"):
        _fail(ledger, point, "it ended without results for this config")
        return
    ledger.event(state, point.name, seconds=time.monotonic() - started)


def _fail(ledger: Ledger, point: Point, reason: str) -> None:
    """Record a failure where the run, the sweep and a reader look for it."""
    mark(ledger.folder(point.name), "failed", reason)
    ledger.event("failed", point.name, message=reason, log=str(ledger.log_path(point.name)))


def _refuse_memory(error: Exception, holder: Holder, folder: Path | None = None) -> None:
    """End this process on the first lack of memory: leaving like a killed worker counts as one.

    Args:
        error: what ended the work, or was caused by what did.
        holder: of the claim.
        folder: of the run, which is to be gone on with.
    """
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    memory = any(isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError" for one in causes)
    if memory and holder.deaths < RETRIES:
        traceback.print_exc()
        sys.stderr.flush()
        if folder is not None and folder.is_dir():
            mark(folder, "stopped", _reason(error))
        # No clean-up on purpose: the claim that stays behind is what counts the attempt.
        os._exit(OUT_OF_MEMORY_EXIT)


def _reason(error: BaseException) -> str:
    return sentence_of(error).strip().splitlines()[0].rstrip(": ")[:500]


@contextmanager
def _beating(work: Work, ledger: Ledger, name: str) -> Iterator[None]:
    """Touch the claim while a point runs, however long one of its steps takes."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(work.beat_seconds):
            ledger.beat(name)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Send everything that this process prints, native code included, to the end of a file."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", buffering=1)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            # Python's streams need not be descriptors 1 and 2: submitit, Ray and notebooks put others there.
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            for target, source in zip((1, 2), saved):
                os.dup2(source, target)
                os.close(source)
