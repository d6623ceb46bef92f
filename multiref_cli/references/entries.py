"""What the reference store keeps on disk: immutable folders named by the sha256 of what they were computed from."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import save_file

from multiref_cli.errors import RunError
from multiref_cli.files import read_object, sync_folder, sync_tree, write_text
from multiref_cli.models.files import file_sha256, safetensors_header
from multiref_cli.references.parts import Parts

FORMAT = 1
_TYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "U8": np.uint8}


@dataclass(frozen=True)
class Entry:
    """One stored result.

    Attributes:
        folder: where it lies; its name is the address.
        kind: logps, hidden, normalizers or samples.
        address: the content that it was computed from, as hashed.
        origin: where its models were found, for people and for `verify`; no part of the address.
        sha256: of its data file.
        rows: responses (logps, hidden, normalizers) or prompts (samples).
        tokens: of which something is stored each.
        created: seconds since the epoch.
        seconds: that building it took.
    """

    folder: Path
    kind: str
    address: dict[str, Any]
    origin: dict[str, Any]
    sha256: str
    rows: int
    tokens: int
    created: float
    seconds: float

    @property
    def key(self) -> str:
        """The address as hex digits."""
        return self.folder.name

    @property
    def bytes(self) -> int:
        """Size on disk, 0 where it vanished."""
        try:
            return sum(path.stat().st_size for path in self.folder.iterdir())
        except FileNotFoundError:
            return 0

    @property
    def used(self) -> float:
        """When it was last opened, seconds since the epoch; 0 where it vanished."""
        try:
            return (self.folder / "entry.json").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @property
    def made_with(self) -> str:
        """The version of transformers that computed it."""
        return self.origin.get("transformers", "unknown")

    @property
    def names(self) -> str:
        """The references it came from, as they were called then."""
        return " + ".join(member["name"] for member in self.origin["references"])


def address_key(address: Mapping[str, Any]) -> str:
    """sha256 of an address, the name of its folder."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **address}, sort_keys=True).encode()).hexdigest()


class EntryFolder:
    """A folder of entries that any number of processes may read and write.

    An entry is written under another name and renamed when it is whole, so a killed process leaves nothing that looks
    like one; who builds an entry holds its lock, so others wait for it instead of building it again.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def find(self, key: str) -> Entry | None:
        """The entry at an address, if it is there; one whose description is damaged or of another address is not."""
        try:
            content = read_object(self.root / key / "entry.json")
            entry = Entry(self.root / key, **content) if content is not None else None
        except (RunError, TypeError):
            return None
        return entry if entry is not None and address_key(entry.address) == key else None

    def read(self, entry: Entry) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, memory-mapped and read-only; its checksum is verified and its use noted.

        While one of them is in use `remove` leaves the entry.

        Returns:
            None where the entry is damaged, or was deleted since it was found: it is to be built again.
        """
        path = entry.folder / "data.safetensors"
        try:
            file = path.open("rb")
        except OSError:
            return None
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not self.is_whole(entry):
            file.close()
            return None
        with contextlib.suppress(OSError):  # a store that is only readable still serves
            os.utime(entry.folder / "entry.json")
        header, start = safetensors_header(path)
        if not any(np.prod(one["shape"]) for one in header.values()):
            file.close()
            return {name: np.zeros(one["shape"], _TYPES[one["dtype"]]) for name, one in header.items()}
        mapped: Any = np.memmap(file, np.uint8, mode="r", offset=start)
        weakref.finalize(mapped._mmap, file.close)  # with the last array that is read from it
        whole = np.asarray(mapped)
        return {
            name: whole[slice(*one["data_offsets"])].view(_TYPES[one["dtype"]]).reshape(one["shape"])
            for name, one in header.items()
        }

    def is_whole(self, entry: Entry) -> bool:
        """Whether the data file has the checksum that it was written with."""
        try:
            return file_sha256(entry.folder / "data.safetensors") == entry.sha256
        except OSError:
            return False

    @contextmanager
    def building(self, keys: list[str]) -> Iterator[list[str]]:
        """Holds the locks of some addresses and says which of them nobody has written yet, or are damaged.

        Raises:
            RunError: nothing can be written there.
        """
        try:
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"the store {self.root} cannot be written ({error.strerror}).") from error
        with ExitStack() as stack:
            for key in sorted(set(keys)):  # one order for everybody: no deadlock
                stack.enter_context(FileLock(self.root / ".locks" / f"{key}.lock"))
            for key in keys:
                self._sweep(key)
            found = {key: self.find(key) for key in keys}
            yield [key for key, entry in found.items() if entry is None or not self.is_whole(entry)]

    def write(
        self, address: Mapping[str, Any], arrays: Mapping[str, np.ndarray], origin: Mapping[str, Any], seconds: float
    ) -> Entry:
        """Writes an entry whose lock the caller holds.

        Args:
            address: what it was computed from, with its kind.
            arrays: name -> values; `offsets` (rows + 1,) marks the rows in the flat ones.
            origin: where the models were found.
            seconds: that computing it took.
        """
        key = address_key(address)
        try:
            return self._write(key, address, arrays, origin, seconds)
        except (OSError, SafetensorError) as error:  # a full disk: nothing half-written is left to take up room
            self._sweep(key)
            raise RunError(f"the store {self.root} cannot be written ({error}): make room there.") from error

    def _write(
        self,
        key: str,
        address: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        origin: Mapping[str, Any],
        seconds: float,
    ) -> Entry:
        writing = self.root / f".writing-{key}-{os.getpid()}"
        writing.mkdir(parents=True)
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, writing / "data.safetensors")
        entry = {
            "kind": address["kind"],
            "address": dict(address),
            "origin": dict(origin),
            "sha256": file_sha256(writing / "data.safetensors"),
            "rows": len(arrays["offsets"]) - 1,
            "tokens": int(arrays["offsets"][-1]),
            "created": time.time(),
            "seconds": seconds,
        }
        write_text(writing / "entry.json", json.dumps(entry, indent=1))  # as hashed: infinite orders stay
        sync_tree(writing)
        if (self.root / key).exists():  # damaged, or `find` would have given it
            os.replace(self.root / key, self.root / f".writing-{key}-{os.getpid()}-damaged")
        os.replace(writing, self.root / key)
        sync_folder(self.root)
        self._sweep(key)
        return Entry(self.root / key, **entry)

    def parts(self, key: str, signature: str) -> Parts:
        """What is kept of a pass that will write the entry at `key`, divided as `signature` says."""
        return Parts(self.root / f".parts-{key}-{signature[:16]}")

    def room(self, key: str) -> Path:
        """A folder for what a pass that will write the entry at `key` has beside its parts; it goes with them."""
        return self.root / f".parts-{key}-room"

    def forget_parts(self, key: str, before: float = float("inf")) -> None:
        """Delete what is kept of unfinished passes for an entry, unless it was written to since `before` (epoch)."""
        for path in self.root.glob(f".parts-{key}-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    Parts(path).forget()

    def unreadable(self) -> int:
        """How many folders and files are no entry that this version reads: damaged, of a later version, or strays."""
        return len([key for key in self._keys() if self.find(key) is None])

    def _keys(self) -> Sequence[str]:
        return [p.name for p in self.root.iterdir() if not p.name.startswith(".")] if self.root.is_dir() else []

    def list(self) -> list[Entry]:
        """All entries, the last used first."""
        keys = self._keys()
        entries = [entry for key in keys if (entry := self.find(key)) is not None]
        return sorted(entries, key=lambda entry: -entry.used)

    def remove(self, entry: Entry) -> bool:
        """Deletes an entry unless somebody builds it or has it open."""
        try:
            (self.root / ".locks").mkdir(exist_ok=True)
            with FileLock(self.root / ".locks" / f"{entry.key}.lock", timeout=0):
                if _is_open(entry.folder / "data.safetensors"):
                    return False
                removing = self.root / f".writing-{entry.key}-{os.getpid()}"
                with contextlib.suppress(FileNotFoundError):  # another prune was faster
                    os.replace(entry.folder, removing)
                    shutil.rmtree(removing)
        except Timeout:
            return False
        return True

    def sweep_leftovers(self, before: float = float("-inf")) -> None:
        """Deletes what killed processes left half-written, unless somebody works on it; of unfinished passes, which can
        be gone on with, those that were written to before some time (seconds since the epoch) alone."""
        for path in [*self.root.glob(".writing-*"), *self.root.glob(".parts-*")]:
            key = path.name.split("-")[1]
            with contextlib.suppress(Timeout), FileLock(self.root / ".locks" / f"{key}.lock", timeout=0):
                self._sweep(key)
                self.forget_parts(key, before)

    def _sweep(self, key: str) -> None:
        for path in self.root.glob(f".writing-{key}-*"):
            shutil.rmtree(path, ignore_errors=True)


def _is_open(path: Path) -> bool:
    """Whether a process of this machine reads a data file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # gone, or a file system without locks
        return False
    return False
