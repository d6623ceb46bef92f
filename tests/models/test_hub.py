"""Models and data sets of a Hub that answers, refuses, breaks off and is gone: one sentence each, content pinned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.models.conftest import build

ROOT = Path(__file__).parents[2]
ROWS = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(40)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with a model in two commits, a gated one, and a data set in two commits."""

    with Hub() as found:
        for number, branch in enumerate(("old", "main")):
            folder = tmp_path_factory.mktemp(branch)
            build("llama", number, vocab_size=128).save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            commit = found.add("someone/model", files, branch)
            found.old = commit if branch == "old" else found.old
            found.add("someone/gated", files, branch, gated=True)
            found.add("someone/broken", files, branch)
            found.add("someone/hopeless", files, branch)
            found.add("someone/rows", {"train.jsonl": jsonl(ROWS[: 30 + 10 * number])}, branch, kind="datasets")
            found.add("someone/gated-rows", {"train.jsonl": jsonl(ROWS)}, branch, gated=True, kind="datasets")
        yield found


WORKER = """
import json, sys
from huggingface_hub import constants
from multiref_cli.config.schema import Model
from multiref_cli.data.rows import read_rows

from multiref_cli.models.files import cached, fingerprint, resolve
from multiref_cli.models.known import remote_parameters

constants.DOWNLOAD_CHUNK_SIZE = 4096  # a download goes on behind the last whole piece of this size

ACTIONS = {
    "model": lambda path, revision=None: fingerprint(Model(path=path, revision=revision)),
    "size": lambda path, revision=None: remote_parameters(Model(path=path, revision=revision)),
    "cached": lambda path, revision=None: cached(path, revision) is not None,
    "rows": lambda path, revision=None: len(read_rows(path, "train", revision)),
}
for line in sys.stdin:
    what, *arguments = json.loads(line)
    try:
        answer = ["ok", ACTIONS[what](*arguments)]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


class Client:
    """A process whose Hub is the stand-in."""

    def __init__(self, url, home, **more):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "MULTIREF_CACHE": str(home)}
        environment |= {
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            **more,
        }
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, *request):
        """(kind, answer)."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))

    def close(self):
        """Let it end."""
        self.process.stdin.close()
        self.process.wait(20)


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    found = Client(hub.url, tmp_path_factory.mktemp("home"))
    yield found
    found.close()


def test_a_revision_pins_a_model(client, hub):
    """Branch, commit and newest; what a commit holds is what its branch held."""
    newest, old, commit = (client.ask("model", "someone/model", revision) for revision in (None, "old", hub.old))
    assert newest[0] == old[0] == "ok" and newest[1] != old[1] == commit[1]


def test_a_revision_pins_a_data_set(client):
    assert client.ask("rows", "someone/rows") == ("ok", 40)
    assert client.ask("rows", "someone/rows", "old") == ("ok", 30)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (("model", "someone/missing"), "neither a folder nor a model on the Hub"),
        (("model", "someone/gated"), "is gated"),
        (("model", "someone/model", "nowhere"), "has no revision nowhere"),
        (("rows", "someone/missing"), "someone/missing"),
        (("rows", "someone/gated-rows"), "is gated"),
        (("rows", "someone/rows", "nowhere"), "nowhere"),
    ],
)
def test_what_is_not_given_is_one_sentence(client, request_, sentence):
    kind, said = client.ask(*request_)
    assert kind == "RequestError" and sentence in said and said.count(". ") == 0 and "Traceback" not in said


def cut(hub, name, forgiving, after):
    """Cut the connection of a model's weights after some bytes; returns the path that is asked for."""
    repository = hub.repositories[f"models/{name}"]
    path = f"/{name}/resolve/{repository.branches['main']}/model.safetensors"
    hub.broken[path], hub.forgiving = after, forgiving
    return path


def test_an_interrupted_download_goes_on_where_it_stopped(hub, client):
    whole, path = client.ask("model", "someone/model"), cut(hub, "someone/broken", True, 20_000)
    assert client.ask("model", "someone/broken") == whole
    first, second = [wanted for method, asked, wanted in hub.asked if method == "GET" and asked == path]
    assert first is None and 0 < int(second.removeprefix("bytes=").split("-")[0]) <= 20_000


def test_a_download_that_never_ends_is_one_sentence(hub, client):
    path = cut(hub, "someone/hopeless", False, 100)
    kind, said = client.ask("model", "someone/hopeless")
    assert kind == "HubUnreachable" and "someone/hopeless" in said and said.count(". ") == 0
    del hub.broken[path]
    assert client.ask("model", "someone/hopeless") == client.ask("model", "someone/model")


def test_sizes_are_read_without_the_weights(hub, client):
    """Of a model that is in no table the header alone is asked for, by its place in the file."""
    before = len(hub.asked)
    parameters = sum(p.numel() for p in build("llama", 0, vocab_size=128).parameters())
    assert client.ask("size", "someone/model", "old") == ("ok", parameters)
    asked = [wanted for method, path, wanted in hub.asked[before:] if method == "GET" and "/resolve/" in path]
    assert asked and all(wanted == "bytes=0-100000" for wanted in asked)
    assert client.ask("size", "someone/missing") == ("ok", None)


def test_what_was_fetched_is_there_without_a_hub(hub, client):
    """The same cache, and nobody at the Hub's address."""
    whole = client.ask("model", "someone/model", hub.old)
    alone = Client("http://127.0.0.1:9", client.home)
    assert alone.ask("model", "someone/model", hub.old) == whole
    alone.close()
    assert client.ask("cached", "someone/model", hub.old) == ("ok", True)
    assert client.ask("cached", "someone/gated") == ("ok", False)
    assert whole[0] == "ok"


def test_no_hub_at_all_is_one_sentence(tmp_path):
    alone = Client("http://127.0.0.1:9", tmp_path)
    kind, said = alone.ask("model", "someone/model")
    alone.close()
    assert kind == "HubUnreachable" and "cannot be reached" in said and said.count(". ") == 0
