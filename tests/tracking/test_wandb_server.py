"""W&B online, with a server on this machine that accepts, refuses, is not there, hangs at once, or hangs later."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from multiref_cli.config.compose import compose
from multiref_cli.tracking.run_dir import RunDir

pytest.importorskip("wandb")
ROOT = Path(__file__).parents[2]
# Seconds that a run may be held up at its start, and at its end; and what Python and wandb take to start and stop.
PATIENCE, AROUND = 3, 20
WORKER = """
import json, os, sys, time
from pathlib import Path
from multiref_cli.tracking import wandb as mirror_module
mirror_module._SECONDS = int(sys.argv[2])
said, times = [], []
mirror = mirror_module.open_mirror(Path(sys.argv[1]), said.append)
for call in (mirror.update, mirror.update, mirror.finish):
    start = time.monotonic()
    call()
    times.append(time.monotonic() - start)
print(json.dumps({"said": said, "times": times}), flush=True)
"""


class Server:
    """As much of W&B's server as a run of one process needs; `received` holds what it was told."""

    def __init__(self, behavior):
        self.behavior, self.received = behavior, []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, path, body):
        """(status, content), after a wait where it hangs."""
        self.received.append((path, body))
        if self.behavior == "hangs" or (self.behavior == "hangs later" and "file_stream" in path):
            time.sleep(3600)
        if self.behavior == "refuses":
            return 401, b""
        if b"UpsertBucket" in body:
            entity = {"id": "Yw==", "name": "someone"}
            bucket = {"id": "YQ==", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0}
            bucket["project"] = {"id": "Yg==", "name": "multiref", "entity": entity}
            return 200, _json({"upsertBucket": {"bucket": bucket, "inserted": True}})
        if b"CreateRunFiles" in body:
            names = json.loads(body)["variables"]["files"]
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in names]
            return 200, _json({"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}})
        return 200, _json({})

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            """Every request alike."""

            def log_message(self, *_):
                """Says nothing."""

            def do_POST(self):
                """Reads all, answers."""
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content = server.answer(self.path, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST

        return Handler

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()


def _json(data):
    return json.dumps({"data": data}).encode()


def mirrored(folder, url):
    """What the mirror of a run of two steps said, how long each call took, and the process from start to end."""
    config = compose(["experiment=offline_toy", "tracking=wandb_offline", "tracking.mode=online"]).plain
    run = RunDir.create(folder, yaml.safe_dump(config), [], {"condition": "one", "started_at": "now"})
    for step in (1, 2):
        run.log({"step": step, "loss": 0.5 / step})
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    command = [sys.executable, "-c", WORKER, str(run.path), str(PATIENCE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=90)
    return json.loads(done.stdout.splitlines()[-1]) | {"whole": time.monotonic() - start}


@pytest.mark.slow
def test_a_server_that_accepts_is_told_every_step(tmp_path):
    with Server("accepts") as server:
        found = mirrored(tmp_path / "run", server.url)
    assert found["said"] == []
    told = b"".join(body for path, body in server.received if "file_stream" in path)
    assert all(rb"\"loss\":" + text in told for text in (b"0.5", b"0.25"))


@pytest.mark.slow
@pytest.mark.parametrize("behavior", ["refuses", "hangs", "hangs later", "is not there"])
def test_no_server_holds_a_run_up_for_longer_than_is_stated(tmp_path, behavior):
    """One warning, the run goes on, and no call lasts longer than the patience that it has."""
    with Server(behavior) as server:
        url = "http://127.0.0.1:9" if behavior == "is not there" else server.url
        found = mirrored(tmp_path / "run", url)
    assert len(found["said"]) == 1 and found["said"][0].startswith("W&B mirror given up")
    assert found["said"][0].endswith("the run goes on.") and max(found["times"]) < PATIENCE + 4
    assert found["whole"] < 2 * PATIENCE + AROUND
