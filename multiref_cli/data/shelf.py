"""Rows that need little memory: what does not fit into a page lies in a temporary file."""

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, overload

from multiref_cli.errors import RequestError
from multiref_cli.files import writing

T = TypeVar("T")
_PAGE = 2**22  # bytes; small data sets never leave memory


class _Pages:
    """Bytes one behind the other, the last page in memory, those before it in a file that ends with the process."""

    def __init__(self) -> None:
        self._file: Any = None
        self._written, self._waiting = 0, bytearray()

    def add(self, content: bytes) -> int:
        """Append; returns where it begins."""
        start = self._written + len(self._waiting)
        self._waiting += content
        if len(self._waiting) >= _PAGE:
            with writing(Path(tempfile.gettempdir())):
                self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                while self._waiting:
                    count = self._file.write(self._waiting)
                    self._written += count
                    del self._waiting[:count]
        return start

    @classmethod
    def of_file(cls, file: BinaryIO) -> "_Pages":
        """The bytes of an open file, which nobody changes any more."""
        found = cls()
        found._file, found._written = file, os.fstat(file.fileno()).st_size
        return found

    def read(self, start: int, size: int) -> bytes:
        """What `add` appended there."""
        if start >= self._written:
            return bytes(self._waiting[start - self._written : start - self._written + size])
        return os.pread(self._file.fileno(), size, start)


def pickled(row: object) -> bytes:
    """A row as a shelf keeps it.

    Raises:
        RequestError: it holds what cannot be kept, such as a function.
    """
    try:
        return pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"a row holds what cannot be kept: {error}") from error


class Shelf(Sequence[T], Generic[T]):
    """A sequence of rows, each an object of its own whenever it is asked for: a million need 12 MiB of memory.

    Args:
        rows: anything that can be pickled.
    """

    def __init__(self, rows: Iterable[T] = ()) -> None:
        self._pages, self._starts, self._sizes = _Pages(), array("q"), array("i")
        for row in rows:
            self.append(row)

    def append(self, row: T) -> None:
        """Add a row behind the others.

        Raises:
            RequestError: it holds what cannot be kept, such as a function.
            RunError: the folder of temporary files is full.
        """
        self.add(pickled(row))

    def add(self, content: bytes) -> None:
        """Add a row that is `pickled` already; raises as `append`."""
        self._starts.append(self._pages.add(content))
        self._sizes.append(len(content))

    def raw(self) -> Iterator[bytes]:
        """Every row as bytes, for `of_file`."""
        for start, size in zip(self._starts, self._sizes):
            yield self._pages.read(start, size)

    @classmethod
    def of_file(cls, file: BinaryIO, begin: int, sizes: array) -> "Shelf[T]":
        """Rows that lie one behind the other in an open file from a place on, as `raw` gave them."""
        found: Shelf[T] = Shelf()
        found._pages, found._sizes = _Pages.of_file(file), sizes
        for size in sizes:
            found._starts.append(begin)
            begin += size
        return found

    def chosen(self, numbers: Iterable[int]) -> "Shelf[T]":
        """Some of the rows, by their places from 0 on, in that order; they are not copied."""
        found: Shelf[T] = Shelf()
        found._pages = self._pages
        for number in numbers:
            found._starts.append(self._starts[number])
            found._sizes.append(self._sizes[number])
        return found

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        row: T = pickle.loads(self._pages.read(self._starts[place], self._sizes[place]))
        return row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
