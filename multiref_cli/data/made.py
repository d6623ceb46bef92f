"""What becomes of each row of a source: the same bytes in the same order, whether one process makes them or several.

The first rows are made here and timed. Where the others would take longer than helpers take to start, helpers make
them: plain processes that are given the tokenizer and the settings of the data, prove by their recipe that these are
the same, and read and answer pickles. A chunk whose helper is gone is made here.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, BinaryIO, Generic, TypeAlias, TypeVar, cast

from multiref_cli.config.schema import Data
from multiref_cli.data.held_out import random_place
from multiref_cli.data.parsed import recipe_of
from multiref_cli.data.shelf import pickled
from multiref_cli.data.template import Attached, attach, attached_to
from multiref_cli.errors import RequestError
from multiref_cli.types import Tokenizer

T = TypeVar("T")
Numbered: TypeAlias = tuple[int, dict[str, Any]]
# Rows that are made at once, by one process.
CHUNK = 256
# Helpers must save more seconds than this: each imports its libraries first.
WORTH_SECONDS = 5.0
# More helpers than this wait for the process that hands out rows and keeps what comes back.
MOST_HELPERS = 16
# Attributes of usable rows that hold token ids.
_IDS = ("ids", "prompt", "completion", "chosen", "rejected")
_START = "import sys; sys.path[:] = sys.argv[1:]; from multiref_cli.data.made import help_out; help_out()"


class BadRow(Exception):
    """One row cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Encoder(Generic[T]):
    """How a row becomes one of token ids; another process that is sent it does the same.

    Args:
        read: (row number, row, data, tokenizer) -> usable row; raises BadRow with the reason otherwise.
        data: settings of the data.
        tokenizer: of the policy.
    """

    read: Callable[[int, dict[str, Any], Data, Any], T]
    data: Data
    tokenizer: Tokenizer

    def __call__(self, number: int, row: dict[str, Any]) -> T:
        """The usable row."""
        return self.read(number, row, self.data, self.tokenizer)

    @property
    def recipe(self) -> str | None:
        """What decides, beside a row's content, what is made of it; see `recipe_of`."""
        return recipe_of(self.data, self.tokenizer, f"{self.read.__module__}.{self.read.__qualname__}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.read, self.data, self.tokenizer, attached_to(self.tokenizer))


def _received(read: Any, data: Data, tokenizer: Tokenizer, attached: Attached) -> Encoder:
    attach(tokenizer, attached.rendering, attached.ends)
    return Encoder(read, data, tokenizer)


@dataclass(frozen=True)
class Made:
    """What became of one row.

    Args:
        number: of the row.
        problem: why it cannot be used; None where it can.
        content: the usable row, pickled.
        key: of its prompt, see `random_place`.
        tokens: all its ids.
        truncated: completions that were cut.
        margin: difference of its scores, where it has some.
    """

    number: int
    problem: str | None = None
    content: bytes = b""
    key: bytes = b""
    tokens: int = 0
    truncated: int = 0
    margin: float | None = None


@dataclass(frozen=True)
class Maker(Generic[T]):
    """Makes rows.

    Args:
        parse: (row number, row) -> usable row; raises BadRow or RequestError with the reason otherwise.
        prompt: usable row -> the text that identifies its prompt.
        split_seed: of the places of prompts.
    """

    parse: Callable[[int, dict[str, Any]], T]
    prompt: Callable[[T], str]
    split_seed: int

    def __call__(self, number: int, row: dict[str, Any]) -> Made:
        """What becomes of one row."""
        try:
            parsed = self.parse(number, row)
            content, key = pickled(parsed), random_place(self.prompt(parsed), self.split_seed)
        except BadRow as problem:
            return Made(number, str(problem))
        except RequestError as problem:
            return Made(number, f"refused: {problem}")
        tokens = sum(len(getattr(parsed, name, ())) for name in _IDS)
        truncated, margin = getattr(parsed, "truncated", 0), getattr(parsed, "margin", None)
        return Made(number, None, content, key, tokens, truncated, margin)


def made(rows: Sequence[Numbered], maker: Maker, recipe: str | None) -> Iterator[list[Made]]:
    """What becomes of each row, in order, a chunk at a time.

    Args:
        rows: (number, row).
        maker: makes one.
        recipe: of the maker's Encoder; None where no other process can be told how.
    """
    chunks = (rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK))
    count = 1 if recipe is None else helpers()
    start = time.monotonic()
    for done, chunk in enumerate(chunks, 1):
        yield [maker(*row) for row in chunk]
        saved = (time.monotonic() - start) / done * (len(rows) / CHUNK - done) * (1 - 1 / count)
        if saved > WORTH_SECONDS:
            break
    else:
        return
    with contextlib.closing(Helpers(maker, cast(str, recipe), count)) as others:
        yield from others.made(chunks)


def helpers() -> int:
    """How many processes read rows at once: one for each thread that this process may use."""
    import torch

    from multiref_cli.tracking.provenance import usable_cores

    return min(MOST_HELPERS, torch.get_num_threads(), usable_cores())


class Helpers:
    """Processes that make rows for this one."""

    def __init__(self, maker: Maker, recipe: str, count: int) -> None:
        """Start them; each is first seen to be ready by the chunk that waits for it.

        Args:
            maker: what they do.
            recipe: what each must find its tokenizer, settings and code to be.
            count: how many.
        """
        self._maker, self._recipe, self._told = maker, recipe, b""
        with contextlib.suppress(pickle.PicklingError, TypeError, AttributeError, RecursionError):
            self._told = pickle.dumps(maker)
        self._all = [_started() for _ in range(count if self._told else 0)]
        self._free: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        self._new = set(self._all)
        for one in self._all:
            self._free.put(one)
        if not self._all:
            self._free.put(None)
        self._threads = ThreadPoolExecutor(max(1, len(self._all)))
        self._closed = False

    def made(self, chunks: Iterator[Sequence[Numbered]]) -> Iterator[list[Made]]:
        """What becomes of chunks of rows, in order."""
        waiting: deque[Future[list[Made]]] = deque()
        for chunk in chunks:
            waiting.append(self._threads.submit(self._make, list(chunk)))
            if len(waiting) > 2 * len(self._all):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._closed = True
        for one in self._all:
            one.kill()
        self._threads.shutdown(cancel_futures=True)
        for one in self._all:
            one.communicate()

    def _make(self, chunk: list[Numbered]) -> list[Made]:
        """By a helper that is free; here where it is gone."""
        one = self._free.get()
        try:
            if one is not None:
                return self._asked(one, chunk)
        except (OSError, EOFError, pickle.UnpicklingError):
            one = None
        finally:
            self._free.put(one)
        return [] if self._closed else [self._maker(*row) for row in chunk]

    def _asked(self, one: "subprocess.Popen[bytes]", chunk: list[Numbered]) -> list[Made]:
        ask, answer = cast(BinaryIO, one.stdin), cast(BinaryIO, one.stdout)
        if one in self._new:
            self._new.remove(one)
            ask.write(self._told)
            ask.flush()
            if pickle.load(answer) != self._recipe:
                raise EOFError
        pickle.dump(chunk, ask)
        ask.flush()
        found: list[Made] = pickle.load(answer)
        return found


def _started() -> "subprocess.Popen[bytes]":
    """A helper; of its own session, since this process is who ends it, and with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-c", _START, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def help_out() -> None:
    """The life of a helper: it ends with its input."""
    read, write = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        maker = pickle.load(read)
        pickle.dump(maker.parse.recipe, write)
        write.flush()
        while True:
            chunk = pickle.load(read)
            pickle.dump([maker(*row) for row in chunk], write)
            write.flush()
