"""A run folder survives what happens to it."""

import json

import pytest

from multiref_cli.errors import RequestError
from multiref_cli.files import read_lines
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.run_dir import CHOICES, RunDir, read_choices


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir.create(tmp_path / "run", "seed: 0\n", ["seed=0"], {"command": "multiref train"})


def test_an_existing_folder_is_never_written_into(run):
    with pytest.raises(RequestError, match="--resume"):
        RunDir.create(run.path, "seed: 1\n", [], {})
    assert (run.path / "config.yaml").read_text() == "seed: 0\n"


def test_a_folder_killed_before_its_manifest_is_made_again_with_its_choices(run):
    again = RunDir.create(run.path.with_name("other"), "seed: 1\n", [], {}, [{"rule": "auto"}])
    (again.path / "manifest.json").unlink()
    assert RunDir.create(again.path, "seed: 1\n", [], {}, [{"rule": "balanced"}]).path == again.path
    assert read_choices(again.path) == [{"rule": "balanced"}] and read_choices(run.path) == []
    (again.path / CHOICES).write_text("[{")
    assert read_choices(again.path) == []


def test_a_line_cut_off_by_a_crash_is_dropped_and_later_lines_are_forgotten(run):
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 1.0 / step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run.forget_after(2)
    run.log({"step": 3, "loss": 9.0})
    assert [(row["step"], row["loss"]) for row in run.metrics()] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_nan_becomes_null_so_that_every_line_is_json(run):
    run.log({"step": 1, "loss": float("nan")})
    assert json.loads((run.path / "metrics.jsonl").read_text())["loss"] is None


def test_done_needs_the_status_and_the_same_config(run):
    run.write_results({}, "abc", 0, "dpo")
    assert not run.is_done()
    run.write_status("done", 1, 1)
    assert run.is_done() and run.is_done("abc") and not run.is_done("other")


def test_read_lines_of_nothing(tmp_path):
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_averages_do_not_depend_on_how_values_are_grouped():
    """(1 + 2 + 3 + 6) / 4 = 3, in one group or in two."""
    import torch

    one, two, rest = Averages(), Averages(), Averages()
    one.add("x", torch.tensor([1.0, 2.0, 3.0, 6.0]))
    two.add("x", torch.tensor([1.0]))
    rest.add("x", torch.tensor([2.0, 3.0, 6.0]))
    two.update(rest)
    assert one.means() == two.means() == {"x": 3.0}
