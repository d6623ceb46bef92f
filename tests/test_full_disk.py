"""A full disk is one sentence wherever something is written; what stood stands, and the same command goes on."""

import io
import os
import shutil
from pathlib import Path

import pytest

from multiref_cli.errors import RunError
from multiref_cli.evaluation import mixed
from multiref_cli.files import full_disk, read_json, read_lines
from multiref_cli.reports import published, scores
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.tracking.progress import Heartbeat, Silent
from multiref_cli.tracking.run_dir import RunDir

SENTENCE = r"cannot be written \(No space left on device\): make room there, then run the same again\."


@pytest.fixture
def full(monkeypatch):
    """Makes every write fail that goes to a file with some name, by the kernel's own error."""
    opened = io.open

    def place(name: str | None) -> None:
        """`name` is a part of the file's name; None: there is room again."""

        def open_full(file, mode="r", *arguments, **more):
            writes = name is not None and set(mode) & set("wax+") and name in os.path.basename(str(file))
            path, how = ("/dev/full", mode.replace("x", "w")) if writes else (file, mode)
            return opened(path, how, *arguments, **more)

        monkeypatch.setattr(io, "open", open_full)
        monkeypatch.setattr("builtins.open", open_full)

    return place


@pytest.mark.slow
def test_a_run_goes_on_after_every_place_where_the_disk_was_full(place, multiref, offline, full, capsys):
    """One run that meets a full disk again and again, each time further on."""
    overrides = [*offline, "steps=4", "hardware.checkpoint_every=2", "evaluation.prompts=2"]
    assert multiref("train", *overrides, "run.dir=calm") == 0
    capsys.readouterr()
    shutil.rmtree("cache")
    for name in ("entry.json", "metrics.jsonl", ".step_00000002", "evaluation.jsonl", "results.json", "index.html"):
        full(name)
        begun = Path("out/manifest.json").is_file()
        arguments = ["train", "--resume", "out"] if begun else ["train", *overrides, "run.dir=out"]
        assert multiref(*arguments) == 1, name
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert name.lstrip(".") in last and "No space left on device" in last and "MULTIREF_DEBUG" not in last, last
    full(None)
    assert multiref("train", "--resume", "out") == 0
    for name in ("results.json", "metrics.jsonl"):
        there, right = (read_lines(Path(run) / name) for run in ("out", "calm"))
        drop = ("time/", "tokens_per_second")
        assert [{k: v for k, v in row.items() if not k.startswith(drop)} for row in there] == [
            {k: v for k, v in row.items() if not k.startswith(drop)} for row in right
        ]
    assert read_json(Path("out/results.json")) == read_json(Path("calm/results.json"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("summary.csv", lambda path: published.write_rows([], path)),
        ("scores.csv.gz", lambda path: scores.write_scores([], path)),
        ("scores.csv", lambda path: mixed.write_scores([], path)),
        ("events.jsonl", lambda path: Ledger(path.parent).event("done", "p")),
        ("run.log", lambda path: Heartbeat(Silent(), RunDir(path.parent.parent), None).note("a line")),
        ("status.json", lambda path: RunDir(path.parent).write_status("running", 1, 2)),
        ("samples.jsonl", lambda path: RunDir(path.parent).log_samples([{"step": 1}])),
    ],
)
def test_the_last_good_file_stands(tmp_path, full, name, write):
    path = tmp_path / "logs" / name
    path.parent.mkdir()
    write(path)
    before = path.read_bytes()
    full(name)
    with pytest.raises(RunError, match=f"{name} {SENTENCE}"):
        write(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [name]
    full(None)
    write(path)
    assert path.read_bytes().startswith(before if name.endswith(("jsonl", "log")) else b"")


def test_a_claim_that_cannot_be_written_leaves_nothing(tmp_path, full):
    full(".json.")
    with pytest.raises(RunError, match=SENTENCE), Ledger(tmp_path).claim("p", "launch"):
        raise AssertionError("held without a claim")
    full(None)
    with Ledger(tmp_path).claim("p", "launch") as holder:
        assert holder is not None and holder.deaths == 0


def test_workers_that_can_write_nothing_end_the_sweep_with_a_sentence(tmp_path, full, monkeypatch):
    from types import SimpleNamespace

    from multiref_cli.sweeps import pool

    def no_room(work):
        full("events.jsonl")
        Ledger(work.folder).event("started", "p")

    (tmp_path / "logs").mkdir()
    work = SimpleNamespace(folder=tmp_path)
    monkeypatch.setattr(pool, "work_off", no_room)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    ended = SimpleNamespace(exitcode=pool._exit_code(work, 0), is_alive=lambda: False, sentinel=0, join=lambda: None)
    monkeypatch.setattr(pool, "_start", lambda *_: ended)
    monkeypatch.setattr(pool, "wait", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"no room is left in .*: make some, then run the same again"):
        pool.run_local(work, 1, lambda: None)


def test_a_policy_that_does_not_fit_leaves_the_one_before(tmp_path, monkeypatch, world):
    from safetensors import SafetensorError

    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_causal_lm, load_tokenizer
    from multiref_cli.models.save import save_policy

    shutil.copytree(world / "one", tmp_path / "policy")
    model, tokenizer = load_causal_lm(Model(path=str(world / "two"))), load_tokenizer(Model(path=str(world / "two")))

    def no_room(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(model), "save_pretrained", no_room)
    with pytest.raises(RunError, match=f"policy {SENTENCE}"):
        save_policy(model, tokenizer, tmp_path / "policy")
    assert os.listdir(tmp_path) == ["policy"]
    assert (tmp_path / "policy/config.json").read_bytes() == (world / "one/config.json").read_bytes()


def test_the_lack_of_room_behind_another_exception_is_seen():
    try:
        try:
            with open("/dev/full", "wb") as file:
                file.write(b"x")
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error
    except RuntimeError as error:
        assert "No space left on device" in str(full_disk(error))
    assert full_disk(RuntimeError("another")) is None
