"""The loop with a small regression: schedule, optimizer, non-finite losses, bitwise resume from any step, Ctrl-C."""

import os
import re
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from multiref_cli.algorithms.base import Batch, Trainee
from multiref_cli.config.schema import Hardware, Optimizer
from multiref_cli.errors import RequestError, RunError
from multiref_cli.seeding import derive, epoch_batch, generator
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Silent
from multiref_cli.tracking.run_dir import RunDir
from multiref_cli.training import checkpoint
from multiref_cli.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from multiref_cli.training.loop import Loop, Stopped
from multiref_cli.training.optimizer import Optimizers, schedule

STEPS = 7


class Regression:
    """Fits y = 2x; `act` is called at the start of every batch."""

    def __init__(self, act=lambda step: None):
        self.act = act

    def batch(self, step):
        self.act(step)
        x = torch.randn(8, 3, generator=generator(0, "x", step))
        return Batch([(x[:4], 8), (x[4:], 8)], list(range(8)), 8)

    def loss(self, model, micro):
        x, count = micro
        averages = Averages()
        averages.add("x", x)
        return ((model(x) - 2 * x) ** 2).mean(-1).sum() / count, averages


class TinyModel(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))

    def forward(self, x):
        return self.layers(x)

    def get_input_embeddings(self):
        return None

    def get_output_embeddings(self):
        return None


def make_loop(path, act=lambda step: None, optimizer="adamw", every=3, beside=False) -> Loop:
    folder = path if path.exists() else RunDir.create(path, "", [], {}).path
    model = TinyModel()
    optimizers = Optimizers(model, Optimizer(name=optimizer, learning_rate=0.05, warmup=0.2), STEPS)
    trainee = Trainee(model, Regression(act))
    hardware = Hardware(checkpoint_every=every, checkpoint_async=beside)
    return Loop(RunDir(folder), trainee, optimizers, hardware, {"objective": "regression"})


def figures(run: RunDir) -> list[dict]:
    return [{k: v for k, v in row.items() if "time" not in k and "second" not in k} for row in run.metrics()]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop_at", range(STEPS))
def test_a_run_killed_at_any_step_goes_on_bitwise(tmp_path, optimizer, stop_at):
    whole = make_loop(tmp_path / "whole", optimizer=optimizer)
    whole.fit(Silent())

    def die(step):
        if step == stop_at:
            raise SystemError("as if killed")

    with pytest.raises(SystemError):
        make_loop(tmp_path / "cut", die, optimizer).fit(Silent())
    resumed = make_loop(tmp_path / "cut", optimizer=optimizer)
    resumed.fit(Silent())
    assert figures(resumed.run) == figures(whole.run)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.equal(a, b)


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(tmp_path):
    interrupted = make_loop(
        tmp_path / "run", lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None, every=0
    )
    with pytest.raises(Stopped, match="--resume"):
        interrupted.fit(Silent())
    assert load_checkpoint(tmp_path / "run" / "checkpoints")["step"] == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_not_finite_names_step_rows_and_checkpoint(tmp_path):
    loop = make_loop(tmp_path / "run", every=2)

    def poison(step):
        if step == 4:
            with torch.no_grad():
                next(loop.model.parameters()).fill_(float("nan"))

    loop.objective.act = poison
    with pytest.raises(RunError, match=r"step 5.*\[0, 1, 2.*step_00000004"):
        loop.fit(Silent())


def test_resume_with_another_objective_is_refused(tmp_path):
    with pytest.raises(SystemError):
        make_loop(tmp_path / "run", lambda step: (_ for _ in ()).throw(SystemError()) if step == 5 else None).fit(
            Silent()
        )
    other = make_loop(tmp_path / "run")
    other.identity = {"objective": "another"}
    with pytest.raises(RequestError, match="objective"):
        other.fit(Silent())


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    checkpoints(tmp_path)[-1].write_bytes(b"cut off")
    assert load_checkpoint(tmp_path)["step"] == 1
    checkpoints(tmp_path)[0].write_bytes(b"")
    with pytest.raises(RunError, match="can be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["bit", "zeros", "cut"])
def test_a_checkpoint_whose_bytes_changed_is_not_taken(tmp_path, damage):
    state = {"step": 1, "model": torch.randn(4000, generator=torch.Generator().manual_seed(0))}
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {**state, "step": step}, keep=2)
    newest = checkpoints(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    middle = content.index(state["model"].numpy().tobytes()) + 8000
    if damage == "bit":
        content[middle] ^= 1
    elif damage == "zeros":
        content[middle : middle + 4096] = bytes(4096)
    newest.write_bytes(content[:middle] if damage == "cut" else content)
    assert load_checkpoint(tmp_path)["step"] == 1


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda state: state.update(step=-1), "its step is -1"),
        (lambda state: state.update(step=STEPS + 1), "its step is 8, not one of 0 to 7"),
        (lambda state: state.pop("algorithm"), "holds no algorithm"),
    ],
)
def test_a_checkpoint_that_no_run_writes_is_refused_for_the_one_before(tmp_path, change, reason):
    make_loop(tmp_path / "run").fit(Silent())
    folder = tmp_path / "run" / "checkpoints"
    older, newest = checkpoints(folder)[-2:]
    state = load_checkpoint(folder)
    change(state)
    torch.save(state, newest)
    again = make_loop(tmp_path / "run")
    again._restore()
    assert again.step == 6
    older.unlink()
    with pytest.raises(RunError, match=reason):
        make_loop(tmp_path / "run")._restore()


def test_a_log_that_is_shorter_than_the_checkpoint_means_the_checkpoint_before(tmp_path):
    make_loop(tmp_path / "run").fit(Silent())
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    again = make_loop(tmp_path / "run")
    again._restore()
    assert again.step == 6
    path.write_bytes(b"")
    with pytest.raises(RunError, match=r"metrics\.jsonl ends at step 0"):
        make_loop(tmp_path / "run")._restore()


def test_a_run_goes_on_with_another_log_every(tmp_path):
    """Logged at step 4, stopped at step 6: nothing of the log is missing, whatever is asked for now."""

    def stop(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    loop = make_loop(tmp_path / "run", stop)
    loop.hardware = replace(loop.hardware, log_every=4)
    with pytest.raises(Stopped):
        loop.fit(Silent())
    assert [row["step"] for row in loop.run.metrics()] == [4]
    again = make_loop(tmp_path / "run")
    again.fit(Silent())
    assert [row["step"] for row in again.run.metrics()] == [4, 7]


def test_a_resume_says_how_many_logged_lines_it_left_out(tmp_path):
    def stop(step):
        if step == 5:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        make_loop(tmp_path / "run", stop).fit(Silent())
    log = tmp_path / "run" / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b'{"step": 2, "lo\n\0\0\0\n' + b"".join(lines[2:]))
    said = []

    class Told(Silent):
        def note(self, text):
            said.append(text)

    make_loop(tmp_path / "run").fit(Told())
    assert said == ["2 lines of metrics.jsonl cannot be read: left as they are, left out of figures"]
    assert [row["step"] for row in RunDir(tmp_path / "run").metrics()] == [1, 3, 4, 5, 6, 7]
    assert b'{"step": 2, "lo\n\0\0\0\n' in log.read_bytes()


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step_00000003.pt", "step_00000004.pt"]


def test_schedule_by_hand():
    """10 steps, 20 % warm-up: 1/3, 2/3, then 1 - (step - 2) / 8."""
    linear = Optimizer(learning_rate=1.0, schedule="linear", warmup=0.2)
    assert [round(schedule(s, 10, linear), 6) for s in (0, 1, 2, 6, 9)] == [0.333333, 0.666667, 1.0, 0.5, 0.125]
    wsd = Optimizer(learning_rate=1.0, schedule="wsd", warmup=0.0)
    assert [round(schedule(s, 10, wsd), 6) for s in (0, 6, 7, 9)] == [1.0, 1.0, 1.0, 0.333333]
    constant = Optimizer(learning_rate=1.0, schedule="constant", warmup=2)
    assert [round(schedule(s, 10, constant), 6) for s in (0, 1, 2, 9)] == [0.333333, 0.666667, 1.0, 1.0]


def test_every_row_once_an_epoch_and_streams_differ():
    rows = [i for step in range(4) for i in epoch_batch(10, 3, step, seed=0)]
    assert sorted(rows) == list(range(10)) and len(epoch_batch(10, 3, 3, seed=0)) == 1
    assert epoch_batch(10, 3, 4, seed=0) != epoch_batch(10, 3, 0, seed=0)
    assert derive(0, "a") != derive(0, "b") != derive(1, "a")
    assert derive(0, "a", 1) == derive(0, "a", 1) < 2**63


def test_a_checkpoint_leaves_out_what_is_frozen_and_refuses_other_weights(tmp_path):
    def frozen_first(name):
        loop = make_loop(tmp_path / name)
        for parameter in loop.model.layers[0].parameters():
            parameter.requires_grad = False
        return loop

    loop = frozen_first("run")
    loop.fit(Silent())
    (*_, last) = checkpoints(loop.run.path / "checkpoints")
    state = torch.load(last, weights_only=True)
    assert set(state["model"]) == {"layers.1.weight", "layers.1.bias"}
    again = frozen_first("run")
    again.fit(Silent())
    assert all(torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), loop.model.state_dict().values()))
    with pytest.raises(RunError, match="holds other weights than the policy has"):
        make_loop(tmp_path / "run").fit(Silent())


def test_checkpoints_by_time(tmp_path, monkeypatch):
    """By hand: 40 s a step and at most 2 minutes apart, so after the third and the sixth step, and at the end."""
    now = [0.0]

    def tick(step):
        now[0] += 40

    monkeypatch.setattr("multiref_cli.training.loop.time.monotonic", lambda: now[0])
    loop = make_loop(tmp_path / "run", act=tick)
    loop.hardware = Hardware(checkpoint_every=0, checkpoint_minutes=2, keep_checkpoints=9)
    loop.fit(Silent())
    assert [path.name for path in checkpoints(loop.run.path / "checkpoints")] == [
        f"step_{step:08d}.pt" for step in (3, 6, STEPS)
    ]


def test_checkpoints_beside_the_training_are_those_of_their_step(tmp_path, monkeypatch):
    """A disk that takes its time: steps go on meanwhile, and every checkpoint is that of a run that waited for it."""
    make_loop(tmp_path / "plain", every=2).fit(Silent())
    began, steps = threading.Event(), []

    def slow(folder, step, state, keep):
        began.set()
        time.sleep(0.3)
        return save_checkpoint(folder, step, state, keep)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)
    beside = make_loop(tmp_path / "beside", lambda step: steps.append((step, began.is_set())), every=2, beside=True)
    beside.fit(Silent())
    saved = [path.name for path in checkpoints(tmp_path / "plain/checkpoints")]
    assert saved == [path.name for path in checkpoints(tmp_path / "beside/checkpoints")] and len(saved) == 2
    assert (2, True) in steps  # it began while the checkpoint of step 2 was being written
    for name in saved:
        one, other = (torch.load(tmp_path / run / "checkpoints" / name) for run in ("plain", "beside"))
        assert one["step"] == other["step"] and str(one["optimizers"]) == str(other["optimizers"])
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])


class _Notes(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


@pytest.mark.parametrize("beside", [False, True])
def test_the_first_checkpoint_that_takes_long_is_spoken_of(tmp_path, monkeypatch, beside):
    loop, notes = make_loop(tmp_path / "run", lambda step: time.sleep(0.03), every=1, beside=beside), _Notes()
    loop.fit(notes)
    assert notes.lines == []
    monkeypatch.setattr("multiref_cli.training.loop.LONG_SECONDS", 0.0)
    make_loop(tmp_path / "other", lambda step: time.sleep(0.03), every=1, beside=beside).fit(notes)
    size, seconds = loop.writer.took
    assert size == checkpoints(tmp_path / "run/checkpoints")[-1].stat().st_size and 0 < seconds < 60
    assert len(notes.lines) == 1 and re.fullmatch(r"a checkpoint: 0\.0 MiB, written in \d+\.\d s", notes.lines[0])


def test_a_disk_is_measured_where_the_run_will_be(tmp_path, monkeypatch):
    seconds = iter([0.0, 2.0, 5.0, 5.5])
    monkeypatch.setattr("multiref_cli.training.checkpoint.time.perf_counter", lambda: next(seconds))
    assert checkpoint.write_speed(tmp_path / "not/yet") == 2**25 / 0.5
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr("multiref_cli.training.checkpoint.os.fsync", _full)
    assert checkpoint.write_speed(tmp_path) is None


def _full(_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failing", [2, 7])
def test_a_checkpoint_that_cannot_be_written_beside_the_training_ends_it(tmp_path, monkeypatch, failing):
    def full(folder, step, state, keep):
        if step == failing:
            raise RunError("the disk is full")
        return save_checkpoint(folder, step, state, keep)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(RunError, match="the disk is full"):
        make_loop(tmp_path / "run", every=2, beside=True).fit(Silent())


def test_ctrl_c_waits_for_a_checkpoint_beside_the_training(tmp_path):
    stop = make_loop(
        tmp_path / "run", lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None, every=0, beside=True
    )
    with pytest.raises(Stopped):
        stop.fit(Silent())
    resumed = make_loop(tmp_path / "run", beside=True)
    whole = make_loop(tmp_path / "whole")
    resumed.fit(Silent()), whole.fit(Silent())
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))
