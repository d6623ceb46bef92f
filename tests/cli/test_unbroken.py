"""Nothing is lost, nothing is accepted silently: what is missing is completed, what changed is refused, and said."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from multiref_cli.errors import RequestError
from multiref_cli.files import read_json, write_json
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.tracking.places import check_place


def everything(folder: Path) -> dict[str, bytes]:
    """Path -> content of every file below a folder, locks left out."""
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }


def test_a_finished_run_is_completed_kept_and_checked(place, multiref, offline, capsys):
    assert multiref("train", *offline, "run.dir=out") == 0
    run, first = Path("out"), read_json(Path("out/results.json"))
    (run / "manifest.json").unlink()
    (run / "report" / "index.html").unlink()
    assert multiref("train", "--resume", "out") == 0
    assert (run / "report" / "index.html").is_file() and read_json(run / "manifest.json")["inputs"]
    (run / "manifest.json").write_text('{"state": "of something else"}')
    assert multiref("train", "--resume", "out") == 0
    assert read_json(run / "manifest.json")["inputs"]
    assert multiref("train", "--resume", "out") == 2
    assert "out is done" in capsys.readouterr().err
    # An evaluation replaces no earlier one.
    assert multiref("eval", "out", "evaluation.prompts=3") == 0
    assert read_json(run / "evaluations" / "0001" / "results.json") == first
    assert (run / "evaluations" / "0001" / "evaluation.jsonl").is_file()
    # Somebody else at work.
    before = everything(run)
    with FileLock(run / ".lock"):
        assert multiref("eval", "out") == 2
        assert "another process works in out" in capsys.readouterr().err
    # A policy that lost its end.
    weights = run / "policy" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    for command in (["train", "--resume", "out"], ["eval", "out"]):
        assert multiref(*command) == 2
        assert "policy is damaged" in capsys.readouterr().err
    weights.write_bytes(content)
    assert everything(run) == before


@pytest.mark.parametrize("changed", ["data", "reference"])
def test_a_run_goes_on_with_nothing_else_than_it_began_with(place, multiref, offline, capsys, changed, tmp_path):
    import shutil

    shutil.copytree(place, tmp_path / "world")
    here = [text.replace(str(place), str(tmp_path / "world")) for text in offline]
    assert multiref("train", *here, "steps=1", "evaluation=none", "run.dir=out") == 0
    run = Path("out")
    (run / "results.json").unlink()
    write_json(run / "status.json", {**read_json(run / "status.json"), "state": "stopped"})
    (run / ".results.json.4711").write_text("half")  # of a killed process
    if changed == "data":
        with (tmp_path / "world" / "pairs.jsonl").open("a") as file:
            file.write('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    else:
        shutil.copy(tmp_path / "world" / "one" / "model.safetensors", tmp_path / "world" / "two" / "model.safetensors")
    before = {name: content for name, content in everything(run).items() if "4711" not in name}
    capsys.readouterr()
    assert multiref("train", "--resume", "out") == 2
    said = capsys.readouterr().err
    assert "cannot resume out" in said and "has changed: its sha256 was" in said and said.count("\n") == 1
    assert everything(run) == before


def test_a_half_made_folder_is_new(place, multiref, offline):
    Path("out/logs").mkdir(parents=True)
    Path("out/config.yaml").write_text("")
    Path("out/.hidden").touch()
    assert multiref("train", *offline, "steps=1", "evaluation=none", "run.dir=out") == 0
    assert read_json(Path("out/status.json"))["state"] == "done"


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("run.name=../out", "no name of a folder in runs/"),
        ("run.name=/tmp/out", "no name of a folder in runs/"),
        (f"run.dir={'x' * 300}", "more than 200 bytes"),
        ("run.dir=file", "file is a file"),
        ("run.dir=file/below", "file is a file"),
        ("run.dir=/proc/none/out", "cannot be made"),
        ("run.dir=full", "full exists already and is no run folder; give another run.dir."),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_folders_that_cannot_be_are_refused_before_anything_is_written(
    place, multiref, offline, capsys, where, sentence, command
):
    if (command, where) == ("sweep", "run.dir=full"):
        sentence = "full exists and is not a sweep folder"
    Path("file").write_text("kept")
    Path("full").mkdir()
    Path("full/something").touch()
    before = everything(Path())
    assert multiref(command, *offline, where) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said
    assert everything(Path()) == before


def test_an_occupied_folder_says_what_is_in_it_before_models_are_opened(place, multiref, offline, capsys, monkeypatch):
    short = [*offline, "steps=1", "evaluation=none"]
    assert multiref("train", *short, "run.dir=out") == 0 and multiref("train", *short, "run.name=a") == 0
    before = everything(Path())
    monkeypatch.setattr("multiref_cli.runs.run.open_job", lambda *_: pytest.fail("models were opened"))
    status = read_json(Path("out/status.json"))
    for folder, more, state, sentence in (
        ("run.dir=out", ["beta=2"], "done", "out is a run of another config, and done; give another run.dir."),
        ("run.dir=out", ["beta=2"], "stopped", "out is a run of another config; give another run.dir."),
        (
            "run.dir=out",
            [],
            "done",
            "out is done already; `multiref eval out` scores it again, or give another run.dir.",
        ),
        (
            "run.dir=out",
            [],
            "stopped",
            "out exists already; go on with it by `multiref train --resume out`, or give another run.dir.",
        ),
        ("run.name=a", ["beta=2"], "done", "runs/a is a run of another config, and done; give another run.name."),
    ):
        write_json(Path("out/status.json"), {**status, "state": state})
        capsys.readouterr()
        assert multiref("train", *short, folder, *more) == 2
        printed = capsys.readouterr()
        assert printed.err.endswith(f"multiref: {sentence}\n") and printed.out == ""
    write_json(Path("out/status.json"), status)
    assert everything(Path()) == before
    assert multiref("train", "--resume", "nowhere") == 2
    assert capsys.readouterr() == ("", "multiref: nowhere is no run folder: it holds no config.yaml.\n")


def test_a_folder_of_no_file_system(tmp_path):
    with pytest.raises(RequestError, match="NUL"):
        check_place(tmp_path / "a\0b", "run.dir")


def test_refusals_write_nothing(place, multiref, offline, capsys, monkeypatch):
    import sys

    Path("file").write_text("kept")
    monkeypatch.setitem(sys.modules, "submitit", None)
    for command, sentence in [
        (["sweep", *offline, "run.dir=sweep", "--launcher", "slurm"], "needs submitit"),
        (["report", "nowhere", "--out", "file"], "file is a file"),
        (["report", "nowhere"], "neither a run nor a sweep"),
        (["report", "nowhere", "--against", "no.csv"], "no.csv does not exist"),
        (["refs", "prune", "--older-than", "-1"], "--older-than is -1"),
        (["refs", "prune", "--older-than", "nan"], "--older-than is nan"),
        (["train", *offline, "hardware.device=cuda:99", "run.dir=out"], "which this machine does not have"),
    ]:
        assert multiref(*command) == 2, command
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1, said
        assert [path.name for path in Path().iterdir()] == ["file"], command


def test_a_sweep_knows_what_its_points_were_made_from(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.inputs({"data a": "1"}) == {}
    assert ledger.inputs({"data a": "2", "model b": "3"}) == {"data a": "1"}
    assert ledger.inputs({}) == {"data a": "1", "model b": "3"}
    (tmp_path / ".sweep" / "inputs.json").write_bytes(b"\0" * 40)
    assert ledger.inputs({"data a": "2"}) == {}  # no finished point says otherwise


def test_printed_commands_are_quoted():
    from multiref_cli.tracking.places import command

    assert command("train", "--resume", "runs/two words") == "multiref train --resume 'runs/two words'"
    assert os.sep not in command("list")
