"""Several processes for one run: starting them, joining them, and what is said when one of them is gone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from multiref_cli.config.schema import Experiment, Hardware
from multiref_cli.errors import RunError
from multiref_cli.files import sentence_of, write_text
from multiref_cli.parallel import ALONE, Lost, Parallel
from multiref_cli.tracking.places import command
from multiref_cli.tracking.provenance import usable_cores
from multiref_cli.tracking.run_dir import RunDir

# How long one process waits for what another has to say; one that dies is noticed at once.
PATIENCE = timedelta(hours=2)
# How long the others may take to end after the main process has.
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.05
# How long a process may take to notice that another is gone: gloo does at once; a sum of NCCL waits on a GPU, where no
# exception reaches it.
NOTICE_SECONDS = 30.0
_HOST = "127.0.0.1"
_CODE = "import sys; sys.path[:] = sys.argv[5:]; from multiref_cli.runs.run import join; join(*sys.argv[1:5])"


@contextlib.contextmanager
def started(experiment: Experiment, folder: Path) -> Iterator[Parallel]:
    """This process as the main one of a run, with the others that `hardware.processes` asks for.

    They read config.yaml of the run folder and what is otherwise this time, write `logs/process-<rank>.txt` when they
    fail, and end with the block.

    Args:
        experiment: of the run.
        folder: of the run.

    Raises:
        RunError: another process failed or is gone; it says which, and what that one had to say.
    """
    size = experiment.hardware.processes
    if size == 1:
        yield ALONE
        return
    store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    others: list[subprocess.Popen[bytes]] = []
    try:
        others.extend(_start(experiment, folder, rank, store.port) for rank in range(1, size))
        _wait_until_ready(store, others)
        with _watched(lambda: any(process.poll() for process in others), lambda: _give_up(others, folder)):
            yield _joined(store, 0, experiment.hardware)
            _await(others)
    except Lost as lost:
        raise RunError(_what_happened(others, folder, size)) from lost
    finally:
        for process in others:
            process.kill()
            process.wait()
        _leave()


def of_rank(experiment: Experiment, rank: int) -> Experiment:
    """The experiment as one process of several sees it: on a GPU each has a device of its own."""
    hardware = experiment.hardware
    if hardware.processes == 1 or hardware.device_name != "cuda":
        return experiment
    own = f"cuda:{rank}"
    beside = own if hardware.reference_device == "cuda" else hardware.reference_device
    return replace(experiment, hardware=replace(hardware, device=own, reference_device=beside))


def threads_of(hardware: Hardware) -> int | None:
    """Threads of one process: as asked for, else its part of the machine's cores; None: torch's own choice."""
    if hardware.threads or hardware.processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return hardware.threads
    return max(1, usable_cores() // hardware.processes)


@contextlib.contextmanager
def speaking_for(folder: Path, rank: int) -> Iterator[None]:
    """What one of the other processes of a run does; what goes wrong is left for the main process to say.

    Stopping is the main process's part: a signal that reaches the whole group must not end this one before. When that
    one is gone this one ends, whatever it waits for.

    Raises:
        SystemExit: the main process is gone, or something failed here.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    try:
        with _watched(lambda: os.getppid() != parent, lambda: os._exit(1)):
            yield
    except Lost:
        sys.exit(1)
    except Exception as error:  # whatever it is, the main process says it
        traceback.print_exc()
        write_text(_word(folder, rank), sentence_of(error))
        sys.exit(1)
    finally:
        _leave()


def connect(port: int, rank: int, hardware: Hardware) -> Parallel:
    """This process as one of the others of a run, ready to begin.

    Raises:
        Lost: the main process is gone.
    """
    try:
        store = dist.TCPStore(_HOST, port, is_master=False, timeout=PATIENCE)
        store.set(_ready(rank), "")
    except RuntimeError as error:
        raise Lost(str(error)) from error
    return _joined(store, rank, hardware)


@contextlib.contextmanager
def _watched(gone: Callable[[], bool], end: Callable[[], None]) -> Iterator[None]:
    """End this process when another has been gone for so long that the block must have noticed, and has not."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS * 10):
            if gone() and not over.wait(NOTICE_SECONDS):
                end()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _give_up(others: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """End the main process of a run, which waits for one that is gone: with a sentence, from a thread beside it."""
    sentence = _what_happened(others, folder, len(others) + 1)
    run = RunDir(folder)
    status = run.status()
    with contextlib.suppress(OSError, RunError):
        run.write_status("failed", status.get("step", 0), status.get("total", 0), sentence)
    for process in others:
        process.kill()
    print(f"multiref: {sentence} (go on with: {command('train', '--resume', folder)})", file=sys.stderr, flush=True)
    os._exit(1)


def _wait_until_ready(store: dist.TCPStore, others: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the others to have opened what the run asks for, or for one that could not."""
    missing = {_ready(rank) for rank in range(1, len(others) + 1)}
    while missing:
        missing -= {key for key in missing if store.check([key])}
        if any(process.poll() is not None for process in others):
            raise Lost("a process ended before the first step")
        time.sleep(POLL_SECONDS)


def _ready(rank: int) -> str:
    return f"ready {rank}"


def _joined(store: dist.Store, rank: int, hardware: Hardware) -> Parallel:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=hardware.processes, timeout=PATIENCE)
    except RuntimeError as error:
        raise Lost(str(error)) from error
    return Parallel(rank, hardware.processes, hardware.sharding == "full")


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _start(experiment: Experiment, folder: Path, rank: int, port: int) -> subprocess.Popen[bytes]:
    _word(folder, rank).unlink(missing_ok=True)
    # What `--resume` may change: where it computes, and where servers are.
    now = {key: experiment.plain[key] for key in ("hardware", "references", "rollout")}
    given = [str(folder), json.dumps(now), str(rank), str(port), *sys.path]
    with (folder / "logs" / f"process-{rank}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", _CODE, *given], stdout=log, stderr=log)


def _await(others: list[subprocess.Popen[bytes]]) -> None:
    """Wait for processes that have nothing left to do."""
    deadline = time.monotonic() + GRACE_SECONDS
    for process in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _what_happened(others: list[subprocess.Popen[bytes]], folder: Path, size: int) -> str:
    """Which of the other processes is gone, and its own sentence or how it ended.

    Whoever loses a peer ends too, without a word: the cause is who has one, else whom a signal ended.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        ended = {rank: code for rank, process in enumerate(others, 1) if (code := process.poll()) is not None}
        for rank in ended:
            with contextlib.suppress(OSError):
                return f"process {rank} of {size}: {_word(folder, rank).read_text()}"
        for rank, code in ended.items():
            if code < 0:
                return f"process {rank} of {size} was ended by signal {signal.Signals(-code).name}"
        if len(ended) == len(others) or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)  # who closed its connection may still be writing its sentence
    for rank in ended:
        return f"process {rank} of {size} ended without a word; see {folder}/logs/process-{rank}.log"
    return f"the {size} processes of the run lost each other"


def _word(folder: Path, rank: int) -> Path:
    """What a process that failed had to say."""
    return folder / "logs" / f"process-{rank}.txt"
