"""Checkpoints of a sharded run: a folder into which every process writes its parts (torch.distributed.checkpoint).

What is in parts is a list of tensors; everything else is in state.pt, with the places of these tensors. A run on any
number of processes reads it: each its own parts, or the whole where models are not sharded.
"""

import io
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from multiref_cli.files import replacing, sync_folder, writing
from multiref_cli.parallel import Parallel
from multiref_cli.sharding import empty_parts, is_part

STATE = "state.pt"
# In STATE: for every tensor in parts its place, the keys that lead to it, and its number among the stored ones.
_PLACES = "places"


def save_parts(target: Path, state: dict[str, Any], parallel: Parallel, group: Any) -> None:
    """Write a folder in one piece: under another name first, then renamed by the main process.

    Args:
        target: of the checkpoint.
        state: nested dicts and lists with parts of tensors, other tensors and plain values; the main process's counts.
        parallel: the processes; every one calls this.
        group: of processes that nothing else uses meanwhile.

    Raises:
        RunError: it cannot be written.
    """
    from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, save

    temporary = target.with_name(f".{target.name}")
    if parallel.main:
        shutil.rmtree(temporary, ignore_errors=True)
    dist.barrier(group)
    places, tensors = _parts(state)
    with writing(target):
        try:
            writer = FileSystemWriter(str(temporary))
            save({str(i): tensor for i, tensor in enumerate(tensors)}, storage_writer=writer, process_group=group)
        except CheckpointException as error:  # no Exception, but a BaseException of every process at once
            cause, _ = next(iter(error.failures.values()))
            raise cause from error
        if parallel.main:
            with replacing(temporary / STATE) as file:
                torch.save(_without(state) | {_PLACES: places}, file)
            sync_folder(temporary)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one of this step, which was not gone on from
            os.replace(temporary, target)
            sync_folder(target.parent)


def read_parts(folder: Path, state: dict[str, Any], device: str | None) -> None:
    """Put the tensors of a checkpoint at their places in the content of its STATE.

    Args:
        folder: of the checkpoint.
        state: content of STATE; changed.
        device: of the sharded models, whose processes all call this and get their parts; None: whole tensors.
    """
    from torch.distributed.checkpoint import FileSystemReader, load

    reader = FileSystemReader(str(folder))
    stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
    names = sorted(stored, key=int)
    shapes = [(stored[name].size, stored[name].properties.dtype) for name in names]
    if device is None:
        tensors = [torch.empty(size, dtype=kind) for size, kind in shapes]
    else:
        tensors = empty_parts(shapes, device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads, as it is meant to
        load(dict(zip(names, tensors)), storage_reader=reader, no_dist=device is None)
    for place, number in state.pop(_PLACES):
        inner: Any = state
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = tensors[number]


def is_damaged(folder: Path, parallel: Parallel) -> bool:
    """Whether this process's share of the stored tensors is not what was written."""
    from torch.distributed.checkpoint import FileSystemReader

    try:
        pieces: dict[Any, Any] = FileSystemReader(str(folder)).read_metadata().storage_data
    except Exception:  # a damaged pickle raises anything
        return True
    own = parallel.share(sorted(pieces.values(), key=lambda piece: (piece.relative_path, piece.offset)))
    for piece in own:
        with (folder / piece.relative_path).open("rb") as file:
            file.seek(piece.offset)
            content = file.read(piece.length)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if len(content) < piece.length or archive.testzip() is not None:
                return True
    return False


def _parts(state: dict[str, Any]) -> tuple[list[tuple[list[Any], int]], list[Tensor]]:
    """Places of all tensors in parts, each with a number, and the tensors by number; tied weights are one tensor."""
    places: list[tuple[list[Any], int]] = []
    tensors: list[Tensor] = []
    numbers: dict[int, int] = {}
    for place, tensor in _found(state, []):
        memory = tensor.to_local().data_ptr()
        number = numbers.get(memory) if memory else None
        if number is None:
            number = len(tensors)
            tensors.append(tensor)
            numbers[memory] = number
        places.append((place, number))
    return places, tensors


def _found(value: Any, place: list[Any]) -> Iterator[tuple[list[Any], Any]]:
    if isinstance(value, Tensor):
        if is_part(value):
            yield place, value
    elif isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _found(inner, [*place, key])


def _without(value: Any) -> Any:
    """The same with None in place of tensors in parts."""
    if isinstance(value, Tensor):
        return None if is_part(value) else value
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without(inner) for inner in value]
    return value
