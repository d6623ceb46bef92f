"""Checkpoints: everything that a bitwise resume needs, written atomically."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from multiref_cli.errors import RequestError, RunError


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `folder/step_<step>.pt` (temporary name, flush, rename) and delete all but the newest `keep`.

    Args:
        folder: the run's checkpoints/ folder.
        step: optimizer steps done.
        state: tensors and plain Python values.
        keep: checkpoints to keep, at least 1.
    """
    target = folder / f"step_{step:08d}.pt"
    temporary = folder / f".{target.name}.{os.getpid()}"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    for old in checkpoints(folder)[: -max(keep, 1)]:
        old.unlink(missing_ok=True)
    for rest in folder.glob(".step_*"):
        rest.unlink(missing_ok=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint, None if there is none (the run then starts from its beginning).

    Raises:
        RunError: checkpoints exist but none can be read.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (
            RuntimeError,
            EOFError,
            OSError,
            pickle.UnpicklingError,
        ):  # damaged or foreign: the one before may be whole
            continue
    if found:
        raise RunError(f"no checkpoint under {folder} can be read; delete the folder's files to start again.")
    return None


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
