"""`multiref runs`: everything on disk in a list, damaged folders among it, and a filter over configs and results."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from multiref_cli.config.where import where
from multiref_cli.errors import RequestError
from multiref_cli.files import read_json, write_json
from multiref_cli.reports.overview import matching, overview


@pytest.fixture
def folder(tmp_path, offline):
    """A folder of runs: a sweep, copies of two of its runs, one deep below, one that was killed."""
    shutil.copytree(offline.path, tmp_path / "runs" / "grid")
    first, second = (offline.folder(point["name"]) for point in offline.planned()[:2])
    shutil.copytree(first, tmp_path / "runs" / "alone")
    shutil.copytree(second, tmp_path / "runs" / "study" / "deep")
    shutil.copytree(first, tmp_path / "runs" / "killed")
    (tmp_path / "runs" / "killed" / "results.json").unlink()
    status = {"state": "running", "step": 7, "total": 60, "updated_at": time.time() - 7200, "message": ""}
    write_json(tmp_path / "runs" / "killed" / "status.json", status)
    return tmp_path / "runs"


def by_name(found):
    return {one.path.name: one for one in found}


def test_every_run_and_sweep_with_its_facts(folder, offline):
    found = by_name(overview(folder))
    assert set(found) == {"grid", "alone", "deep", "killed"}
    results = read_json(folder / "alone" / "results.json")
    alone, grid, killed = found["alone"], found["grid"], found["killed"]
    assert (alone.kind, alone.state, alone.progress) == ("run", "done", "60/60")
    assert alone.condition == results["condition"] and alone.seed == results["seed"]
    assert alone.metric == "reward_model" and alone.score == results["metrics"]["reward_model"]["mean"]
    planned = len(offline.planned())
    assert (grid.kind, grid.state, grid.progress) == ("sweep", "done", f"{planned}/{planned}")
    means = [read_json(path / "results.json")["metrics"]["reward_model"]["mean"] for path in offline.run_folders()]
    assert grid.spread == (min(means), max(means)) and "regularizer=rkl,mrpo,fkl" in grid.condition
    assert (killed.state, killed.progress, killed.score, killed.seed) == ("running", "7/60", None, None)
    assert killed.value("age") == pytest.approx(2, abs=0.1) and killed.value("step") == 7
    updated = [one.updated for one in overview(folder)]
    assert updated == sorted(updated, reverse=True)


def test_a_filter_reaches_the_points_of_sweeps(folder, offline):
    found = overview(folder, points=True)
    planned = len(offline.planned())
    assert len(found) == planned + 3
    kept = matching(found, where("beta=1 and regularizer=rkl and alpha=0.3 and state=done"))
    configs = [yaml.safe_load((one.path / "config.yaml").read_text()) for one in kept]
    assert {(c["beta"], c["regularizer"]["name"], c["alpha"]) for c in configs} == {(1.0, "rkl", 0.3)}
    assert len(kept) >= 3
    best = max(one.metrics["gold"] for one in found if one.metrics)
    (winner,) = {one.path.name for one in matching(found, where(f"gold>={best}"))} - {"alone", "deep"}
    assert read_json(folder / "grid" / winner / "results.json")["metrics"]["gold"]["mean"] == best
    assert matching(found, where("score<-100")) == []
    assert {one.path.name for one in matching(found, where("age>1 and state=running"))} == {"killed"}
    with pytest.raises(RequestError, match=r"no run here has 'optimizer.learningrate'; did you mean 'optimizer.lea"):
        matching(found, where("optimizer.learningrate>1"))
    with pytest.raises(RequestError, match="no run here has 'betta'"):
        matching(found, where("seed=-1 and betta=2"))


def test_a_name_follows_the_numbers(folder):
    """A regularizer whose file's name no longer holds is found by the name that its numbers have."""
    config = yaml.safe_load((folder / "alone" / "config.yaml").read_text())
    config["regularizer"] |= {"name": None, "mean_order": 0.25, "score_order": 0.25}
    (folder / "alone" / "config.yaml").write_text(yaml.safe_dump(config))
    kept = matching(overview(folder), where("regularizer=power0.25"))
    assert [one.path.name for one in kept] == ["alone"]


DAMAGE = {
    "config.yaml": b"\xff\xfe{{{",
    "status.json": b"[1, 2",
    "results.json": b'{"metrics": {"gold": 3}, "seed": "x"}',
    "manifest.json": b"null",
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("how", ["garbage", "empty", "gone"])
def test_damaged_folders_cost_what_they_would_have_told(folder, name, how):
    path = folder / "alone" / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[name] if how == "garbage" else b"")
    (folder / "grid" / "plan.jsonl").write_bytes(b'{"name": 3}\nxx\n')
    for points in (False, True):
        found = by_name(overview(folder, points))
        assert {"deep", "killed"} <= set(found)
        assert matching(list(found.values()), where("beta=1 or beta!=1"))
    assert "alone" in by_name(overview(folder)) and by_name(overview(folder))["grid"].progress == "0/0"


def test_the_command(folder, multiref, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    assert multiref("runs") == 0
    listed = capsys.readouterr().out
    assert "runs/grid" in listed and "3 runs and 1 sweep in runs" in listed and "2 h" in listed
    assert multiref("runs", "--dir", "runs/study", "--where", "regularizer=rkl or regularizer!=rkl") == 0
    assert "1 run of 1 in runs/study" in capsys.readouterr().out
    assert multiref("runs", "--where", "seed=12345") == 0
    assert "no runs of" in capsys.readouterr().out
    assert multiref("runs", "--dir", "nowhere") == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    Path("empty").mkdir()
    assert multiref("runs", "--dir", "empty", "--where", "beta=1") == 0
    os.chmod("empty", 0o000)
    assert multiref("runs", "--dir", "empty") == 0
    os.chmod("empty", 0o755)


def test_a_thousand_runs_need_no_torch(folder, tmp_path):
    """In a process of its own; seconds of its CPU, which a busy machine does not change."""
    many = tmp_path / "many"
    for number in range(1000):
        place = many / f"run{number}"
        place.mkdir(parents=True)
        for name in ("config.yaml", "status.json", "results.json", "manifest.json"):
            os.link(folder / "alone" / name, place / name)
    code = (
        "import json, sys, time\n"
        "from multiref_cli.config.where import where\nfrom multiref_cli.reports.overview import matching, overview\n"
        "start = time.process_time()\n"
        "found = overview(__import__('pathlib').Path(sys.argv[1]))\nlisted = time.process_time() - start\n"
        "kept = matching(found, where('beta=1 and regularizer=rkl and optimizer.learning_rate>0'))\n"
        "print(json.dumps([len(found), len(kept), listed, time.process_time() - start, 'torch' in sys.modules]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(many)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    count, kept, listed, filtered, torch = json.loads(printed)
    assert count == 1000 and kept in (0, 1000) and not torch
    assert listed < 3 and filtered < 20
