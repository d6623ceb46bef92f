"""A vLLM server that lives as long as this process does."""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from multiref_cli.config.schema import Rollout
from multiref_cli.errors import RunError
from multiref_cli.references.client import Client
from multiref_cli.rollouts import guard

_MODULE = "vllm.entrypoints.openai.api_server"
_HOST = "127.0.0.1"
# vLLM compiles and measures before it answers: minutes on a GPU, more on a busy CPU.
_START_SECONDS = 1800.0
_POLL_SECONDS = 0.5
# Ports below those of outgoing connections, and how many of them are tried.
_PORTS, _TRIES = range(20_000, 32_000), 100
# Longer than the guard's own patience with a server.
_END_SECONDS = 15.0
# What vLLM takes in a process of the trainer's, and not as an argument of its server.
_NOT_ARGUMENTS = ("sleep",)


class OwnServer:
    """The server's process, behind a guard that ends it when this process is gone."""

    def __init__(self, rollout: Rollout, model: Path, kind: str, folder: Path) -> None:
        """Starts it.

        Args:
            rollout: with options of vLLM, the python that has vLLM, and the devices.
            model: folder that it opens.
            kind: type that it computes in.
            folder: where its log is written.
        """
        port = _free_port()
        self.url, self.log = f"http://{_HOST}:{port}", folder / "server.txt"
        python = str(Path(rollout.python).expanduser()) if rollout.python else sys.executable
        command = [sys.executable, guard.__file__, str(os.getpid()), python, "-m", _MODULE]
        command += arguments(rollout, model, kind, port)
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
        # A setting of vLLM in the trainer's process, which a server cannot have.
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        if rollout.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = rollout.devices
        with self.log.open("wb") as log:
            # In a session of its own: Ctrl-C is for the trainer, which ends a step before it ends its server.
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, client: Client) -> None:
        """Until it answers.

        Raises:
            RunError: it ends, or does not answer within half an hour.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self.refuse_dead()
            try:
                client.get("/v1/models", tries=1)
                return
            except RunError as error:
                if time.monotonic() > deadline:
                    text = f"the vLLM server gives no answer after {_START_SECONDS:g} s: see {self.log}."
                    raise RunError(text) from error
            time.sleep(_POLL_SECONDS)

    def refuse_dead(self) -> None:
        """Say that it has ended, where it has.

        Raises:
            RunError: with what it said last.
        """
        code = self._process.poll()
        if code is not None:
            raise RunError(f"the vLLM server ended by itself (exit code {code}{self._last_words()}).")

    def close(self) -> None:
        """End it and everything that it started."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        """The last error in its log, in half a sentence."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            said = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b: ", line)] or lines
            if said:
                return f"; {said[-1].strip()[-300:].rstrip('.')}"
        return ""


def arguments(rollout: Rollout, model: Path, kind: str, port: int) -> list[str]:
    """What vLLM's server is told; `rollout.options` as it writes them on a command line."""
    found = ["--model", str(model), "--served-model-name", "policy", "--host", _HOST, "--port", str(port)]
    found += ["--dtype", kind, "--max-num-seqs", str(rollout.batch_size)]
    # Temperature first, so that what comes back is the policy that is sampled; no defaults of the model's folder.
    found += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    if rollout.options.get("sleep"):
        found.append("--enable-sleep-mode")
    for name, value in rollout.options.items():
        if name not in _NOT_ARGUMENTS:
            found += _argument(name.replace("_", "-"), value)
    return found


def _argument(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]


def _free_port() -> int:
    """A port that nobody uses, of those that systems hand out to nobody: the server binds it a minute later."""
    for port in random.SystemRandom().sample(_PORTS, _TRIES):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind((_HOST, port))
            return port
    raise RunError(f"none of {_TRIES} ports from {_PORTS.start} to {_PORTS.stop - 1} is free on {_HOST}.")
