"""`multiref push` against a stand-in of the Hub: what is committed is the run's policy; every fault is one sentence."""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from multiref_cli.cli.app import app, run_guarded
from multiref_cli.files import read_json, write_json


class Hub(BaseHTTPRequestHandler):
    """Repositories, branches, preupload, LFS objects and commits, as the Hub's API has them."""

    def log_message(self, *_):
        """Nothing."""

    def do_POST(self):
        """Everything but the bytes of large files."""
        here = f"http://127.0.0.1:{self.server.server_port}"
        state, body = self.server.state, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        state["asked"].append(path)
        if path == "/api/validate-yaml":
            return self.say(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer right":
            return self.say(401, {"error": "Invalid credentials"})
        if state["status"]:
            return self.say(state["status"], {"error": "not today"})
        if path == "/api/repos/create":
            state["repo"] = json.loads(body)
            return self.say(200, {"url": f"{here}/me/model"})
        if path == "/api/models/me/model/branch/try":
            return self.say(200, {})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if f["path"].endswith("safetensors") else "regular" for f in files}
            answer = [{"path": p, "uploadMode": mode, "shouldIgnore": False, "oid": None} for p, mode in modes.items()]
            return self.say(200, {"files": answer})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{**one, "actions": {"upload": {"href": f"{here}/lfs/{one['oid']}"}}} for one in objects]
            return self.say(200, {"objects": actions})
        if "/commit/" in path:
            state["commit"] = [json.loads(line) for line in body.splitlines()]
            state["branch"] = path.rpartition("/")[2]
            return self.say(200, {"commitUrl": f"{here}/me/model/commit/1", "commitOid": "1" * 40, "success": True})
        return self.say(404, {"error": f"no {path}"})

    def do_PUT(self):
        """The bytes of a large file."""
        self.server.state["lfs"][self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.say(200, {})

    def say(self, status, content):
        """Answer."""
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the Hub, the token it takes, and what it was told."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.state = {"asked": [], "lfs": {}, "repo": None, "commit": None, "branch": None, "status": None}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server.state
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The folder of a finished run with a LoRA adapter."""
    folder = tmp_path_factory.mktemp("trained")
    given = [
        *(
            "policy=folder",
            f"policy.path={world}/one",
            "policy.lora.rank=2",
            "data=jsonl",
            f"data.path={world}/pairs.jsonl",
        ),
        *("references=pair", f"first={world}/one", f"second={world}/two", "tracking=off", "hardware=cpu", "steps=1"),
        *("evaluation=none", f"hardware.cache_dir={folder}/cache", f"run.dir={folder}/run", "algorithm.batch_pairs=8"),
    ]
    assert run_guarded(lambda: app(["train", *given], standalone_mode=True)) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it, in `run`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    return Path("run")


def committed(state):
    """Path -> bytes of the last commit."""
    files = {}
    for line in state["commit"]:
        if line["key"] == "file":
            files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "lfsFile":
            files[line["value"]["path"]] = state["lfs"][line["value"]["oid"]]
            assert hashlib.sha256(files[line["value"]["path"]]).hexdigest() == line["value"]["oid"]
    return files


def test_what_is_shown_is_what_is_sent(hub, run, multiref, capsys):
    assert multiref("push", run, "me/model") == 0
    out = capsys.readouterr().out
    assert hub["asked"] == [] and "would go to me/model; --yes uploads them." in out
    sizes = {
        line.split()[0]: int(line.split()[1].replace(",", ""))
        for line in out.splitlines()
        if line.startswith(("model.", "README", "adapter/"))
    }
    assert "note: README.md names a place of this machine: /" in out and "the card says no license" in out

    assert multiref("push", run, "me/model", "--yes", "--private") == 0, capsys.readouterr().err
    assert "/me/model/commit/1" in capsys.readouterr().out
    assert hub["repo"]["name"] == "model" and hub["repo"]["organization"] == "me" and hub["branch"] == "main"
    assert hub["repo"].get("visibility") == "private" or hub["repo"].get("private") is True
    files = committed(hub)
    here = {path.relative_to(run / "policy").as_posix(): path for path in (run / "policy").rglob("*") if path.is_file()}
    assert (
        set(files) == set(here) >= {"model.safetensors", "config.json", "tokenizer.json", "adapter/adapter_config.json"}
    )
    for name, path in here.items():
        if name != "README.md":
            assert files[name] == path.read_bytes()
    card = files["README.md"].decode()
    assert 'from_pretrained("me/model")' in card and "FOLDER_OR_REPOSITORY" not in card
    assert {name: len(files[name]) for name in sizes} == sizes and len(sizes) > 3


def test_the_adapter_alone_and_a_branch(hub, run, multiref, capsys):
    assert multiref("push", run, "me/model", "--adapter", "--revision", "try", "--yes") == 0, capsys.readouterr().err
    files = committed(hub)
    assert hub["branch"] == "try" and "/api/models/me/model/branch/try" in hub["asked"]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert "model.safetensors" not in files and "config.json" not in files
    assert files["adapter_model.safetensors"] == (run / "policy/adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("status", "token", "code", "sentence"),
    [
        (None, "wrong", 2, "the Hub knows no token, or not this one: `hf auth login`, or set HF_TOKEN."),
        (403, "right", 2, "the token may not write to me/model: give it the right to, or another owner than me."),
        (404, "right", 2, "the token may not write to me/model"),
        (400, "right", 2, "the Hub refuses me/model: not today."),
        (501, "right", 1, "the Hub failed"),
    ],
)
def test_answers_of_the_hub(hub, run, multiref, capsys, monkeypatch, status, token, code, sentence):
    hub["status"] = status
    monkeypatch.setenv("HF_TOKEN", token)
    assert multiref("push", run, "me/model", "--yes") == code
    error = capsys.readouterr().err
    assert sentence in error and len(error.strip().splitlines()) == 1 and hub["commit"] is None


def test_no_token_and_no_network(hub, run, multiref, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert multiref("push", run, "me/model", "--yes") == 1
    assert "the Hub cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert multiref("push", run, "me/model", "--yes") == 1
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/mo del", "me/", "/model", "me/--x", "me/x.git", "http://x/y"])
def test_names_that_no_repository_has(hub, run, multiref, capsys, name):
    assert multiref("push", run, name, "--yes") == 2
    assert "is no name of a repository: write owner/name" in capsys.readouterr().err and hub["asked"] == []


def test_runs_that_are_not_finished_or_damaged(hub, run, multiref, capsys):
    assert multiref("push", "nowhere", "me/model") == 2 and "is no run folder" in capsys.readouterr().err
    status = read_json(run / "status.json")
    write_json(run / "status.json", status | {"state": "stopped"})
    assert multiref("push", run, "me/model") == 2
    assert "run is not finished: `multiref train --resume run` goes on with it." in capsys.readouterr().err
    write_json(run / "status.json", status)
    weights = run / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert multiref("push", run, "me/model", "--yes") == 2
    assert "its policy is damaged" in capsys.readouterr().err and hub["asked"] == []
    (run / "policy" / "adapter").rename(run / "elsewhere")
    assert multiref("push", run, "me/model", "--adapter") == 2
