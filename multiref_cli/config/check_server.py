"""Rules of a vLLM server that samples for a training run: where it is, or how it is started."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from multiref_cli.config.schema import STARTED
from multiref_cli.errors import require

if TYPE_CHECKING:
    from multiref_cli.config.schema import Rollout


def check_server(rollout: "Rollout") -> None:
    """Refuse a server of another engine, one that nobody can reach, and what only a server has that the run starts.

    Raises:
        RequestError: naming the key.
    """
    given = rollout.server
    for key in ("server", "python", "devices"):
        value = getattr(rollout, key)
        require(
            value is None or rollout.engine == "vllm", f"rollout.{key}={value} is of a vLLM server: add rollout=vllm"
        )
        require(
            key == "server" or value is None or rollout.starts_server,
            f"rollout.{key}={value} is of a server that the run starts: add rollout.server={STARTED}, or remove it",
        )
    parts = urlsplit(given or "")
    require(
        given is None or given == STARTED or (parts.scheme in ("http", "https") and bool(parts.hostname)),
        f"rollout.server={given} is no server: give {STARTED}, or the URL of a vLLM server, such as http://localhost:8000",
    )
    python = Path(rollout.python or sys.executable).expanduser()
    require(
        os.access(python, os.X_OK) and python.is_file(),
        f"rollout.python={rollout.python} is no program: give the python of an environment with vLLM",
    )
