"""What a long pass of a reference has computed so far, kept part by part: a kill costs the part that was under way."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from multiref_cli.files import write_bytes

_SHA256_BYTES = 32


class Parts:
    """The finished parts of one pass, in order, in a folder of their own.

    What is computed in which part is for the caller to know: the folder's name must say everything that it depends on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self) -> Iterator[np.ndarray]:
        """The parts from the first to the last before one that is missing or damaged, (R, n) float32 each."""
        for number in range(10**9):
            values = self._read(self._path(number))
            if values is None:
                return
            yield values

    def write(self, number: int, values: np.ndarray) -> None:
        """Keep part `number`, (R, n) float32.

        Raises:
            RunError: it cannot be written.
        """
        shape = np.array(values.shape, dtype=np.int64).tobytes()
        content = shape + np.ascontiguousarray(values, dtype=np.float32).tobytes()
        write_bytes(self._path(number), hashlib.sha256(content).digest() + content)

    def forget(self) -> None:
        """Delete all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    def _read(self, path: Path) -> np.ndarray | None:
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        digest, content = raw[:_SHA256_BYTES], raw[_SHA256_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            return None
        rows, columns = np.frombuffer(content[:16], dtype=np.int64)
        return np.frombuffer(content[16:], dtype=np.float32).reshape(rows, columns)
