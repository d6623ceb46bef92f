"""Checkpoints: everything that a bitwise resume needs, written atomically; a file, or a folder of a sharded run."""

import copy
import os
import pickle
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import replacing
from multiref_cli.parallel import ALONE, Parallel
from multiref_cli.training.shards import STATE, is_damaged, read_parts, save_parts

# Size of the checkpoint that a disk is measured with.
_TRIAL_BYTES = 2**25


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `folder/step_<step>.pt` in one piece and delete all but the newest `keep`.

    Args:
        folder: the run's checkpoints/ folder.
        step: optimizer steps done.
        state: tensors and plain Python values.
        keep: checkpoints to keep, at least 1.
    """
    target = folder / f"step_{step:08d}.pt"
    with replacing(target) as file:
        torch.save(state, file)
    _keep(folder, keep)
    return target


def save_sharded(
    folder: Path, step: int, state: dict[str, Any], keep: int, parallel: Parallel = ALONE, group: Any = None
) -> Path:
    """Write `folder/step_<step>`, of every process its parts, and delete all but the newest `keep`; else as above."""
    target = folder / f"step_{step:08d}"
    save_parts(target, state, parallel, group)
    if parallel.main:
        _keep(folder, keep)
    return target


def _keep(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints, and what killed processes left."""
    for old in [*checkpoints(folder)[: -max(keep, 1)], *folder.glob(".step_*")]:
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


def write_speed(folder: Path) -> float | None:
    """Bytes a second at which a checkpoint would reach the disk of a folder, measured with a small nameless one.

    Args:
        folder: may not be there yet: the nearest one above it is measured.

    Returns:
        The faster of two; None where nothing can be written.
    """
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    tensor, best = torch.rand(_TRIAL_BYTES // 4, generator=torch.Generator().manual_seed(0)), float("inf")
    try:
        for _ in range(2):
            start = time.perf_counter()
            with tempfile.TemporaryFile(dir=place) as file:
                torch.save(tensor, file)
                file.flush()
                os.fsync(file.fileno())
                best = min(best, time.perf_counter() - start)
    except (OSError, RuntimeError):  # torch.save says RuntimeError of a full disk
        return None
    return _TRIAL_BYTES / best


class Writer:
    """Writes checkpoints of a run, one after the other, on request beside the training.

    What is written is the state as it was when it was handed over; a write that failed is raised by the next `write` or
    `wait`, and no later one is begun.

    Attributes:
        took: (bytes, seconds) of the last one that is on the disk.
    """

    def __init__(self, folder: Path, beside: bool, parallel: Parallel = ALONE) -> None:
        """Takes note.

        Args:
            folder: the run's checkpoints/ folder.
            beside: copy the state to main memory and write the copy in a thread.
            parallel: the processes of the run; the main one writes, or all of them their parts.
        """
        self.folder, self._write = folder, save_checkpoint
        self.took: tuple[int, float] | None = None
        if parallel.sharded:
            # Of their own: what is written beside the steps must not be mixed up with what these send.
            group = dist.new_group(backend="gloo")
            self._write = partial(save_sharded, parallel=parallel, group=group)
        self._pool = ThreadPoolExecutor(1, "checkpoint") if beside else None
        self._pending: Future[None] | None = None

    def write(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Write a checkpoint, or begin to, and delete all but the newest `keep`; waits for the one before."""
        self.wait()
        if self._pool is None:
            self._save(step, state, keep)
        else:
            self._pending = self._pool.submit(self._save, step, _copied(state), keep)

    def _save(self, step: int, state: dict[str, Any], keep: int) -> None:
        start = time.perf_counter()
        path = self._write(self.folder, step, state, keep)
        self.took = size_of(path), time.perf_counter() - start

    def wait(self) -> None:
        """Until what was begun is on the disk.

        Raises:
            RunError: it could not be written, as `save_checkpoint` says it.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()


def _copied(value: Any) -> Any:
    """The same with a copy of every tensor in main memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(one) for one in value)
    return copy.deepcopy(value)


def size_of(checkpoint: Path) -> int:
    """Bytes of a checkpoint, as far as it is there."""
    return sum(path.stat().st_size for path in (checkpoint, *checkpoint.glob("*")) if path.is_file())


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*"))


def load_checkpoint(
    folder: Path,
    problem: Callable[[dict[str, Any]], str | None] = lambda state: None,
    parallel: Parallel = ALONE,
    device: str = "cpu",
) -> dict[str, Any] | None:
    """The newest checkpoint that can be used, None if there is none (the run then starts from its beginning).

    Args:
        folder: the run's checkpoints/ folder.
        problem: says why a checkpoint that can be read must not be used, None if it may.
        parallel: the processes of the run; all of them come to the same checkpoint.
        device: of sharded models.

    Raises:
        RunError: checkpoints exist but none can be used.
    """
    reasons = []
    for path in reversed(checkpoints(folder)):
        try:
            state = _read(path, parallel)
            reason = problem(state)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
            reason = "it is damaged"  # or foreign; the one before may be whole
        reason = next(filter(None, parallel.gather(reason)), None)
        if reason is None:
            if path.is_dir():
                read_parts(path, state, device if parallel.sharded else None)
            return state
        reasons.append(f"{path.name}: {reason}")
    if reasons:
        raise RunError(
            f"no checkpoint under {folder} can be read and gone on from ({'; '.join(reasons)}); "
            "delete the folder's files to start again."
        )
    return None


def _read(path: Path, parallel: Parallel) -> dict[str, Any]:
    if path.is_dir():
        if is_damaged(path, parallel):
            raise zipfile.BadZipFile
        path = path / STATE
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:  # torch.load does not look at the checksums that torch.save wrote
            raise zipfile.BadZipFile
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError
    return state


def discard_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def check_same(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse to resume with another objective or other references than the checkpoint was made with.

    Raises:
        RequestError: naming the first thing that differs.
    """
    for key, value in current.items():
        if saved.get(key) != value:
            raise RequestError(
                f"cannot resume: {key} was {saved.get(key)!r} when the checkpoint was written, now {value!r}."
            )
