"""One run divided among two processes: the numbers of one, and checkpoints that any number of them goes on from."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multiref_cli import parallel, sharding
from multiref_cli.files import read_lines
from multiref_cli.runs import processes
from multiref_cli.training.loop import Loop

SHARDED = ["hardware.processes=2", "hardware.sharding=full"]


def kill_the_other_one(folder, steps):
    """SIGKILL to the second process of the run that this process is in, once it has logged so many steps."""
    metrics = (folder / "metrics.jsonl").absolute()
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < steps:
        time.sleep(0.01)
    (child,) = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()[-1:]
    os.kill(int(child), signal.SIGKILL)


def weights(folder):
    return load_file(folder / "policy" / "model.safetensors")


def test_dpo_killed_goes_on_with_both_or_with_one(place, multiref, offline, same, capsys, monkeypatch):
    several = [*offline, "steps=12", "hardware.checkpoint_every=1", "evaluation.prompts=3"]
    several.append(f"hardware.cache_dir={Path.cwd()}/own")
    assert multiref("train", *several, "run.dir=one") == 0
    divided = []
    monkeypatch.setattr(parallel, "shard", lambda model, device: divided.append(model) or sharding.shard(model, device))
    several[-1] = f"hardware.cache_dir={Path.cwd()}/both"
    killer = threading.Thread(target=kill_the_other_one, args=(Path("two"), 3), daemon=True)
    killer.start()
    assert multiref("train", *several, *SHARDED, "run.dir=two") == 1
    killer.join()
    assert "process 1 of 2 was ended by signal SIGKILL" in capsys.readouterr().err
    assert len(divided) == 3  # the references, for their passes, and the policy
    assert len(read_lines(Path("two/metrics.jsonl"))) < 12
    newest = sorted(Path("two/checkpoints").iterdir())[-1]
    assert sum(path.name.endswith(".distcp") for path in newest.iterdir()) == 2
    shutil.copytree("two", "alone")
    assert multiref("train", "--resume", "two") == 0
    assert multiref("train", "--resume", "alone", "hardware.processes=1") == 0
    for name in ("two", "alone"):
        same(Path("one"), Path(name), 1e-5)
    norms = [read_lines(Path(f"{name}/metrics.jsonl"))[0]["gradient_norm"] for name in ("one", "two")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    own, others = weights(Path("one")), weights(Path("two"))
    assert own.keys() == others.keys()
    assert all(torch.allclose(own[name], others[name], atol=1e-5) for name in own)


# What the second process of a run does, of which a step fails in the middle of its forward pass.
_FAILING = """
import sys
sys.path[:] = sys.argv[5:]
from multiref_cli.algorithms.dpo import Dpo
from multiref_cli.runs.run import join

steps, loss = [], Dpo._logps

def failing(self, model, packed):
    steps.append(packed)
    if len(steps) > 60:
        model.model.layers[1].register_forward_pre_hook(lambda *given: 1 / 0)
    return loss(self, model, packed)

Dpo._logps = failing
join(*sys.argv[1:5])
"""


def test_what_fails_inside_a_sharded_pass_ends_the_run_with_its_sentence(place, multiref, offline, capsys, monkeypatch):
    monkeypatch.setattr(processes, "_CODE", _FAILING)
    several = [*offline, "steps=30", "hardware.checkpoint_every=1", "evaluation.prompts=3"]
    assert multiref("train", *several, *SHARDED, "run.dir=out") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    again = "see out/logs/error.txt; go on with: multiref train --resume out"
    assert said == f"multiref: process 1 of 2: ZeroDivisionError: division by zero ({again})"
    assert 1 <= len(read_lines(Path("out/metrics.jsonl"))) < 30


def stop_in_the_second_step(loop):
    if loop.step == 2:
        raise KeyboardInterrupt


def test_grpo_beside_sharded_references_resumes_bit_for_bit(place, multiref, online, same, monkeypatch):
    """The exact penalty asks both references in every pass; the passes are no multiple of the processes."""
    several = [*online, "regularizer=rkl_token", "steps=3", "evaluation.prompts=3", "algorithm.micro_tokens=64"]
    for name, more in (("one", []), ("two", SHARDED)):
        assert multiref("train", *several, *more, f"run.dir={name}") == 0
    same(Path("one"), Path("two"), 1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_missed", stop_in_the_second_step)
        assert multiref("train", *several, *SHARDED, "hardware.checkpoint_every=1", "run.dir=again") == 130
    assert multiref("train", "--resume", "again") == 0
    same(Path("two"), Path("again"), 0.0)
    kept, others = weights(Path("two")), weights(Path("again"))
    assert kept.keys() == others.keys() and all(torch.equal(kept[name], others[name]) for name in kept)


def test_a_reward_model_by_muon_goes_on_sharded(place, multiref, offline, same, monkeypatch):
    """Stopped on one process in its second step."""
    kept = [text for text in offline if not text.startswith(("references", "first", "second", "beta", "evaluation"))]
    arguments = ["algorithm=reward_model", *kept, "evaluation=none", "optimizer=muon", "hardware.checkpoint_every=1"]
    assert multiref("train", *arguments, "run.dir=one") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_missed", stop_in_the_second_step)
        assert multiref("train", *arguments, "run.dir=two") == 130
    assert multiref("train", "--resume", "two", *SHARDED) == 0
    same(Path("one"), Path("two"), 1e-5)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["hardware.sharding=zero3"], "hardware.sharding is 'zero3'; allowed: none, full"),
        ([*SHARDED, "hardware.precision=bf16_kahan"], "remainders of whole weights"),
    ],
)
def test_what_cannot_be_sharded_is_refused(place, multiref, offline, capsys, overrides, sentence):
    assert multiref("train", *offline, *overrides, "run.dir=out") == 2
    assert sentence in capsys.readouterr().err and not Path("out").exists()
