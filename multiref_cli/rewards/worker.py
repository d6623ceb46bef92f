"""Reward functions in a process of their own, so that one that hangs can be killed.

A thread would not do: Python cannot stop it, and a regular expression that backtracks for ever holds the interpreter.
The worker is a plain subprocess that speaks length-prefixed pickles over its standard streams; it imports neither the
caller's main module nor torch.
"""

import os
import pickle
import select
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
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                stream.close()  # type: ignore[union-attr]
        self._process, self._known = None, set()

    def _ask(self, request: tuple, seconds: float) -> Any:
        process = self._process or self._start()
        end = time.monotonic() + seconds
        try:
            _send(process.stdin, request)  # type: ignore[arg-type]
            kind, *answer = pickle.loads(_read(process.stdout, end))  # type: ignore[arg-type]
        except TimeoutError:
            self.close()
            raise RewardTimeout(f"no answer in {seconds:g} s") from None
        except (EOFError, BrokenPipeError) as error:
            code = process.wait()
            self.close()
            raise RunError(
                f"The process of the reward functions died with code {code}; see its output above."
            ) from error
        except BaseException:
            self.close()  # its answer would otherwise be taken for that of the next request
            raise
        if kind == "raised":
            raise RewardError(*answer)
        if kind == "wrong":
            raise WrongValue(*answer)
        return answer[0]

    def _start(self) -> subprocess.Popen:
        # The worker sees the modules that this process sees, a user's own folder included.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = [sys.executable, "-m", "multiref_cli.rewards.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        return self._process


def _send(stream: BinaryIO, message: object) -> None:
    data = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _read(stream: BinaryIO, end: float | None = None) -> bytes:
    (length,) = struct.unpack("<Q", _read_exactly(stream, 8, end))
    return _read_exactly(stream, length, end)


def _read_exactly(stream: BinaryIO, length: int, end: float | None) -> bytes:
    data = b""
    while len(data) < length:
        if end is not None and not _readable(stream, end - time.monotonic()):
            raise TimeoutError
        # Straight from the descriptor: what a buffered reader holds back, poll does not see.
        part = os.read(stream.fileno(), length - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _readable(stream: BinaryIO, seconds: float) -> bool:
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, also in the middle of a function that hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


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
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            request = pickle.loads(_read(requests))
        except (EOFError, KeyboardInterrupt):
            return
        _send(answers, _answer(request))


if __name__ == "__main__":
    main()
