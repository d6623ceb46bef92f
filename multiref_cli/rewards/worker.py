"""Reward functions in a process of their own, so that one that hangs can be killed.

A thread would not do: Python cannot stop it, and a regular expression that backtracks for ever holds the interpreter.
The worker is a plain subprocess that reads length-prefixed pickles and answers in length-prefixed JSON, so that nothing
that a function does is run here. It imports neither the caller's main module nor torch, and looks for modules in the
working directory last.
"""

import contextlib
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, BinaryIO

from multiref_cli.errors import RunError
from multiref_cli.rewards.call import WrongValue
from multiref_cli.rewards.sample import Sample

# The most that a worker may send back, and the share of this machine's memory that it may fill.
_LONGEST_ANSWER = 2**30
_PATIENCE = 5.0  # seconds to wait for the end of a process that should have ended
_MEMORY_SHARE = 0.5
_START = "import sys; sys.path[:] = sys.argv[1:]; from multiref_cli.rewards.worker import main; main()"


class RewardTimeout(Exception):
    """The function did not answer in time; its process was killed."""


class RewardError(Exception):
    """The function raised; the message is its exception, `trace` its traceback."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace


class Worker:
    """A process that calls reward functions by name; started when first needed, and again after a timeout."""

    def __init__(self, start_seconds: float = 120.0) -> None:
        """Args: start_seconds: how long the process may take to start and to import a function."""
        self.start_seconds = start_seconds
        self._process: subprocess.Popen | None = None
        self._known: set[str] = set()

    def call(self, name: str, samples: Sequence[Sample], options: dict[str, Any], seconds: float) -> list[float | None]:
        """Call a function.

        Args:
            name: dotted path of the function.
            samples: (B,) responses.
            options: keyword arguments.
            seconds: how long it may take.

        Returns:
            What it returns.

        Raises:
            RewardTimeout: it took longer, and its process is gone.
            RewardError: it raised.
            WrongValue: it gave something else than numbers.
            RunError: the process died.
        """
        if name not in self._known:
            self._ask(("import", name), self.start_seconds)
            self._known.add(name)
        return self._ask(("call", name, list(samples), options), seconds)

    def close(self) -> None:
        """End the process, and what it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # what was not sent any more
                    stream.close()  # type: ignore[union-attr]
        self._process, self._known = None, set()

    def __del__(self) -> None:
        """Who is not needed any more has no process: Python keeps the pipes of one that still runs open for ever."""
        with contextlib.suppress(Exception):  # half of this module may be gone when Python ends
            self.close()

    def _ask(self, request: tuple, seconds: float) -> Any:
        process = self._process or self._start()
        end = time.monotonic() + seconds
        try:
            _send(process.stdin, pickle.dumps(request), end)  # type: ignore[arg-type]
            kind, *answer = _understood(_read(process.stdout, end))  # type: ignore[arg-type]
        except TimeoutError:
            self.close()
            raise RewardTimeout(f"no answer in {seconds:g} s") from None
        except (EOFError, BrokenPipeError) as error:
            try:
                end_of_it = f"died with code {process.wait(_PATIENCE)}"
            except subprocess.TimeoutExpired:
                end_of_it = "closed its pipe and lived on; it was killed"
            self.close()
            raise RunError(f"The process of the reward functions {end_of_it}; see its output above.") from error
        except BaseException:
            self.close()  # its answer would otherwise be taken for that of the next request
            raise
        if kind == "raised":
            raise RewardError(*answer)
        if kind == "wrong":
            raise WrongValue(*answer)
        return answer[0]

    def _start(self) -> subprocess.Popen:
        # The worker sees the modules that this process sees, a user's own folder included but behind all others: a
        # file of the working directory that is called like a module of the standard library is not run.
        paths = [path for path in sys.path if path] + [os.getcwd()]
        command = [sys.executable, "-I", "-c", _START, *dict.fromkeys(paths)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        os.set_blocking(self._process.stdin.fileno(), False)  # type: ignore[union-attr]
        return self._process


def _understood(content: bytes) -> list[Any]:
    """An answer: ["done", None or a list of numbers and None], ["raised", message, traceback] or ["wrong", message].

    Raises:
        RunError: it is anything else.
    """
    try:
        found = json.loads(content)
        kind, *rest = found
        numbers = rest[0] if kind == "done" else None
        texts = rest if kind in ("raised", "wrong") else []
        if all(one is None or isinstance(one, float) for one in numbers or []) and all(
            isinstance(one, str) for one in texts
        ):
            return found
    except (ValueError, TypeError, IndexError, RecursionError):
        pass
    raise RunError("The process of the reward functions gave an answer that is no list of numbers.")


def _send(stream: BinaryIO, data: bytes, end: float | None = None) -> None:
    """Write a message of its length and itself, to a process that reads it before `end`.

    Raises:
        TimeoutError: it does not read.
    """
    left = memoryview(struct.pack("<Q", len(data)) + data)
    while left:
        if end is not None and not _ready(stream, select.POLLOUT, end - time.monotonic()):
            raise TimeoutError
        left = left[os.write(stream.fileno(), left) :]


def _read(stream: BinaryIO, end: float | None = None) -> bytes:
    (length,) = struct.unpack("<Q", _read_exactly(stream, 8, end))
    if end is not None and length > _LONGEST_ANSWER:
        raise RunError(f"The process of the reward functions announced an answer of {length} bytes.")
    return _read_exactly(stream, length, end)


def _read_exactly(stream: BinaryIO, length: int, end: float | None) -> bytes:
    data = bytearray()
    while len(data) < length:
        if end is not None and not _ready(stream, select.POLLIN, end - time.monotonic()):
            raise TimeoutError
        # Straight from the descriptor: what a buffered reader holds back, poll does not see.
        part = os.read(stream.fileno(), min(length - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _ready(stream: BinaryIO, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(stream, event)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, also in the middle of a function that hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _limit_memory() -> None:
    """Let a function that fills memory fail by itself, before the system kills whoever is largest: the trainer."""
    import resource

    limit = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _MEMORY_SHARE)
    with contextlib.suppress(OSError, ValueError):  # a lower limit of the system's own stays
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _answer(request: tuple) -> tuple:
    from multiref_cli.rewards.call import call
    from multiref_cli.rewards.resolve import resolve

    try:
        function = resolve(request[1])
        return ("done", None if request[0] == "import" else call(function, request[2], request[3]))
    except WrongValue as error:
        return ("wrong", str(error))
    except Exception as error:  # a user's function raises anything; the caller raises it again with its row
        return ("raised", f"{type(error).__name__}: {error}", traceback.format_exc())


def main() -> None:
    """Answer requests on standard input until it closes; what a function prints goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _limit_memory()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            request = pickle.loads(_read(requests))
        except (EOFError, KeyboardInterrupt):
            return
        answer = _answer(request)
        with contextlib.suppress(OSError, ValueError):  # whatever a function did to the streams
            sys.stdout.flush()
        _send(answers, json.dumps(answer).encode())


if __name__ == "__main__":
    main()
