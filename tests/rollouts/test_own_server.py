"""A server that a run starts: its command line, and that none outlives the run, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multiref_cli.config.schema import Rollout
from multiref_cli.errors import RunError
from multiref_cli.references.client import Client
from multiref_cli.rollouts.own_server import OwnServer, arguments

ROOT = Path(__file__).parents[2]
# Answers on the port that it is told, with a child of its own; notes both processes.
SERVER = """
import http.server, json, os, pathlib, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        body = json.dumps({"data": [{"id": "policy"}], "env": dict(os.environ)}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
pathlib.Path(NOTE).write_text(f"{os.getpid()} {child.pid}")
server.serve_forever()
"""


def python_of(tmp_path, code):
    """A program that takes a python's arguments and runs this code with them."""
    script = tmp_path / "server.py"
    script.write_text(code.replace("NOTE", repr(str(tmp_path / "note"))))
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    return str(program)


def noted(tmp_path):
    """The processes of a server, once it answers."""
    note, deadline = tmp_path / "note", time.time() + 60
    while not note.is_file() or len(note.read_text().split()) < 2:
        assert time.time() < deadline
        time.sleep(0.02)
    return [int(one) for one in note.read_text().split()]


def gone(processes, seconds=20.0):
    """Whether all of them end within some seconds."""
    deadline = time.time() + seconds
    while any(running(process) for process in processes):
        if time.time() > deadline:
            return False
        time.sleep(0.05)
    return True


def running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody has asked how


def started(tmp_path, code=SERVER, **keys):
    rollout = Rollout(engine="vllm", server="start", python=python_of(tmp_path, code), **keys)
    return OwnServer(rollout, tmp_path / "model", "float32", tmp_path)


def test_a_server_answers_and_ends_with_everything_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    server = started(tmp_path, devices="1,2")
    client = Client(server.url, None, 1, 5.0)
    server.wait(client)
    environment = client.get("/v1/models")["env"]
    assert (environment["VLLM_SERVER_DEV_MODE"], environment["CUDA_VISIBLE_DEVICES"]) == ("1", "1,2")
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment
    processes = noted(tmp_path)
    assert all(running(process) for process in processes)
    server.refuse_dead()
    server.close()
    assert gone(processes)


def test_a_server_does_not_outlive_a_run_that_is_killed(tmp_path):
    """kill -9 of the process that started it: the guard sees it and ends server and child."""
    python = python_of(tmp_path, SERVER)
    code = (
        "import sys, time; from pathlib import Path; from multiref_cli.config.schema import Rollout\n"
        "from multiref_cli.rollouts.own_server import OwnServer\n"
        f"rollout = Rollout(engine='vllm', server='start', python={python!r})\n"
        f"server = OwnServer(rollout, Path('model'), 'float32', Path({str(tmp_path)!r}))\n"
        "time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    trainer = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        processes = noted(tmp_path)
        assert all(running(process) for process in processes)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    assert gone(processes)


def test_what_a_server_said_last_is_said_where_it_ends_by_itself(tmp_path):
    code = "import sys; print('INFO starting'); print('ValueError: no such device.'); print('bye'); sys.exit(3)"
    server = started(tmp_path, code)
    with pytest.raises(RunError, match=r"ended by itself \(exit code 3; ValueError: no such device\)\.$"):
        server.wait(Client(server.url, None, 1, 5.0))
    with pytest.raises(RunError, match="exit code 3"):
        server.refuse_dead()
    server.close()


def test_options_are_written_as_vllms_server_reads_them():
    options = {"max_model_len": 64, "enforce_eager": True, "enable_prefix_caching": False, "sleep": True}
    options["compilation_config"] = {"level": 0}
    found = arguments(Rollout(engine="vllm", batch_size=5, options=options), Path("/m"), "bfloat16", 81)
    text = " ".join(found)
    assert "--model /m --served-model-name policy --host 127.0.0.1 --port 81 --dtype bfloat16 --max-num-seqs 5" in text
    assert "--logprobs-mode processed_logprobs --generation-config vllm --enable-sleep-mode" in text
    assert '--max-model-len 64 --enforce-eager --no-enable-prefix-caching --compilation-config {"level": 0}' in text
