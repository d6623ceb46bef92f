"""Local workers: processes that live as long as the sweep, so that imports are paid once, and that may be killed."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from multiref_cli.errors import RunError
from multiref_cli.files import full_disk
from multiref_cli.sweeps.worker import OUT_OF_MEMORY_EXIT, Work, work_off
from multiref_cli.tracking.provenance import usable_cores

TICK_SECONDS = 0.25
# How long a worker may take to write its checkpoint after Ctrl-C, or after its parent is gone.
GRACE_SECONDS = 120.0
# Workers that end so often in a row, not killed at a point, have another problem than their points.
FRUITLESS_DEATHS = 3
# How a worker ends that can write nothing any more, its own log least of all.
NO_ROOM_EXIT = 74


def run_local(work: Work, workers: int, tick: Callable[[], None]) -> None:
    """Run a sweep with worker processes of this machine.

    Args:
        work: what to do.
        workers: number of processes; GPUs are given out by index, one after the other, to each as many as a point has
            processes.
        tick: called a few times a second, to draw progress.

    Raises:
        KeyboardInterrupt: Ctrl-C; the workers were asked to stop and have.
        RunError: the workers themselves fail, again and again, or the disk is full.
    """
    gpus = visible_gpus()
    running = {index: _start(work, index, gpus) for index in range(workers)}
    fruitless = 0
    try:
        while running:
            wait([process.sentinel for process in running.values()], timeout=TICK_SECONDS)
            tick()
            for index, process in list(running.items()):
                if process.is_alive():
                    continue
                del running[index]
                if process.exitcode == 0:
                    continue
                if process.exitcode == NO_ROOM_EXIT:
                    raise RunError(
                        f"no room is left in {work.folder} or the cache: make some, then run the same again."
                    )
                killed = process.exitcode < 0 or process.exitcode == OUT_OF_MEMORY_EXIT
                fruitless = 0 if killed and _took_up(work, process.pid) else fruitless + 1
                if fruitless >= FRUITLESS_DEATHS:
                    raise RunError(f"workers cannot work; see {work.folder}/logs/worker-{index}.log.")
                running[index] = _start(work, index, gpus)
    except BaseException:
        _stop(list(running.values()), tick)
        raise


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device.strip() for device in given.split(",") if device.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def default_workers(points: int, device: str, processes: int = 1) -> int:
    """One worker for every GPU, else core, that this process may use, or for as many as a point has processes; never
    more than points."""
    gpus = [] if device == "cpu" else visible_gpus()
    return max(1, min(points, (len(gpus) or usable_cores()) // processes))


def _start(work: Work, index: int, gpus: list[str]) -> Any:
    environment = dict(work.environment)
    if gpus:
        each = work.plan.processes
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[(index * each + i) % len(gpus)] for i in range(each))
    else:
        # Two threads on a busy core are slower than one; on a GPU machine the process keeps its default.
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.setdefault("MKL_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_main, args=(work, index, environment), name=f"multiref-worker-{index}")
    process.start()
    return process


def _main(work: Work, index: int, environment: dict[str, str]) -> None:
    """The life of a worker process."""
    os.environ.update(environment)
    os.setsid()  # the terminal's Ctrl-C goes to the parent alone, which passes it on once
    # A job in the background of a script inherits an ignored SIGINT; here it is how the parent says stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_follow_parent, daemon=True).start()
    sys.exit(_exit_code(work, index))


def _exit_code(work: Work, index: int) -> int:
    """Work, printing into the worker's log; how the process ends."""
    try:
        log = os.open(work.folder / "logs" / f"worker-{index}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work_off(work)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if full_disk(error) is None:
            raise
        return NO_ROOM_EXIT
    return 0


def _follow_parent() -> None:
    """Stop like on Ctrl-C when the parent is gone, so that a killed sweep leaves nobody working behind its back."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE_SECONDS)
        os._exit(1)


def _took_up(work: Work, pid: int | None) -> bool:
    """Whether a process that died had taken up a point or a pass."""
    from multiref_cli.sweeps.ledger import Ledger

    events, _ = Ledger(work.folder).events()
    return any(event.get("pid") == pid for event in events)


def _stop(processes: list[Any], tick: Callable[[], None]) -> None:
    """Ask workers to stop, wait for their checkpoints, and end whoever does not; a second Ctrl-C does not wait."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            wait([process.sentinel for process in processes if process.is_alive()], timeout=TICK_SECONDS)
            tick()
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
