"""A tiny world for end-to-end tests: random models of 5 k parameters over the embedded tokenizer, in real files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from multiref_cli.cli.app import app, run_guarded
from multiref_cli.files import read_json, read_lines
from multiref_cli.reports import page
from multiref_cli.world import problems as toy
from multiref_cli.world import tokenizer as toy_tokenizer

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# A suite started in the background of a script ignores Ctrl-C, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
SPEC = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folders `one`, `two` (language models), `judge` (reward model) and the files pairs.jsonl, prompts.jsonl."""
    from multiref_cli.models.load import new_causal_lm
    from multiref_cli.models.save import save_policy

    folder = tmp_path_factory.mktemp("world")
    tokenizer = toy_tokenizer.tokenizer()
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = new_causal_lm({"architecture": "qwen2", "max_position_embeddings": 128, **SPEC}, tokenizer)
        with torch.no_grad():  # far enough apart for the mixed reference to differ from both
            for parameter in model.parameters():
                parameter.mul_(3.0)
        save_policy(model, tokenizer, folder / name)
    save_policy(_classifier(folder / "one"), tokenizer, folder / "judge")
    generator, problems = random.Random(0), toy.problems(0, 40)
    good, bad = toy.Style(), toy.Style(slip=0.9, repeat=0.5)
    pairs = [
        {"prompt": p.text, "chosen": toy.solve(p, good, generator), "rejected": toy.solve(p, bad, generator)}
        for p in problems
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy.prompt_rows(problems)))
    return folder


def _classifier(folder):
    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_reward_model

    torch.manual_seed(2)
    return load_reward_model(Model(path=str(folder)), trainable=True)


# Pictures that this process has drawn, by name.
_DRAWN = {}


@pytest.fixture(autouse=True)
def _each_picture_drawn_once(request, monkeypatch):
    """Half of the time of a small run is the drawing of its report: outside of tests/reports, which look at pictures,
    a second picture of a name is the first one."""
    if "reports" not in request.path.parts:
        draw = page._draw
        monkeypatch.setattr(
            page, "_draw", lambda part: _DRAWN.get(part.name) or _DRAWN.setdefault(part.name, draw(part))
        )


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    """An empty working directory and an own cache; returns the world's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path / "cache"))
    return world


@pytest.fixture
def server(world, monkeypatch):
    """A completions server that began with the tiny world's second model and takes a policy's weights, as vLLM does."""
    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_causal_lm, load_tokenizer
    from multiref_cli.references import client
    from tests.references.fake_server import serving

    monkeypatch.setattr(client, "_PAUSES", (0.01,) * 3)
    model = Model(path=str(world / "two"))
    with serving(load_causal_lm(model), load_tokenizer(model), "policy") as found:
        yield found


@pytest.fixture
def multiref():
    """The command line, in process: arguments in, exit code out."""
    return lambda *arguments: run_guarded(lambda: app([str(a) for a in arguments], standalone_mode=True))


@pytest.fixture
def figures():
    """The logged figures of a run folder, without times and speeds, which no two runs share."""

    def read(folder):
        rows = read_lines(folder / "metrics.jsonl")
        return [{k: v for k, v in row.items() if "time/" not in k and "per_second" not in k} for row in rows]

    return read


@pytest.fixture
def same():
    """Asserts that metrics and results of two runs are equal but for rounding (0: to the bit); times are left out."""

    def compare(first, second, within):
        rows, others = read_lines(first / "metrics.jsonl"), read_lines(second / "metrics.jsonl")
        assert [row["step"] for row in rows] == [row["step"] for row in others]
        for row, other in zip(rows, others):
            known = {name: value for name, value in row.items() if not name.startswith(("time/", "tokens_per"))}
            assert {name: other[name] for name in known} == pytest.approx(known, rel=within, abs=within)
        found = [read_json(folder / "results.json")["metrics"] for folder in (first, second)]
        means = [{name: one["mean"] for name, one in metrics.items()} for metrics in found]
        assert means[0] == pytest.approx(means[1], rel=min(within, 1e-5), abs=min(within, 1e-5))

    return compare


@pytest.fixture
def killed_train():
    """`multiref train` in a process of its own, killed with SIGKILL once it has logged so many steps."""

    def start_and_kill(arguments, folder, steps):
        command = [sys.executable, "-c", "from multiref_cli.cli.app import main; main()", "train", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.time() + 120
        while len(read_lines(folder / "metrics.jsonl")) < steps and time.time() < deadline:
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert read_json(folder / "status.json")["state"] == "running"

    return start_and_kill


@pytest.fixture
def offline(world):
    """Overrides of a small offline run on the tiny world."""
    return [
        "policy=folder", f"policy.path={world}/one", "references=pair", f"first={world}/one", f"second={world}/two",
        "data=jsonl", f"data.path={world}/pairs.jsonl", "data.held_out=0.2", "reward=toy_gold", "hardware=cpu",
        "tracking=off", "algorithm.batch_pairs=8", "steps=5", "beta=0.3",
        "optimizer.learning_rate=1e-3", "evaluation.prompts=6", "evaluation.max_new_tokens=8",
        f"evaluation.scorer.path={world}/judge", "evaluation.bootstrap=50",
    ]  # fmt: skip


@pytest.fixture
def online(world):
    """Overrides of a small online run on the tiny world."""
    return [
        "experiment=online_toy", "policy=folder", f"policy.path={world}/one", "references=pair", f"first={world}/one",
        f"second={world}/two", f"data.path={world}/prompts.jsonl", "data.held_out_split=null", "data.held_out=0.2",
        "tracking=off", "steps=4", "algorithm.batch_prompts=3", "rollout.group_size=4", "rollout.max_new_tokens=6",
        "evaluation.prompts=4", "evaluation.max_new_tokens=6", "evaluation.bootstrap=50",
    ]  # fmt: skip
