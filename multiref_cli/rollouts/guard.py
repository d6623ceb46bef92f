"""Runs a server for as long as the process that started it lives: a trainer that is killed leaves none behind.

python guard.py PARENT COMMAND ...

The guard is the server's parent. It ends the server, and whatever that has started, when it is told to (SIGTERM), when
PARENT is its own parent no longer, or when the server's first process is gone. It imports nothing but the standard
library, and is run as a file.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

_POLL_SECONDS = 0.2
# How long a server may take to end by itself.
_GRACE_SECONDS = 10.0


def main() -> int:
    """Start the command in a group of its own, wait, end the group; the command's exit code."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.append(number))
    server = subprocess.Popen(command, start_new_session=True)
    while server.poll() is None and os.getppid() == parent and not asked:
        time.sleep(_POLL_SECONDS)
    _send(server, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(_GRACE_SECONDS)
    _send(server, signal.SIGKILL)  # what the first process has left behind, if anything
    return server.wait()


def _send(server: "subprocess.Popen[bytes]", number: int) -> None:
    """A signal to the server's group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, number)


if __name__ == "__main__":
    sys.exit(main())
