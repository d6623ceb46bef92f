"""The W&B mirror holds every line of metrics.jsonl once, names conditions and sweeps, and never harms a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from multiref_cli.config.compose import compose
from multiref_cli.files import read_json, write_lines
from multiref_cli.tracking.run_dir import RunDir
from multiref_cli.tracking.wandb import Mirror, NoMirror, open_mirror


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return compose(["experiment=offline_toy", "tracking=wandb_offline", "tracking.tags=[mine]"]).plain


def _run(folder: Path, config: dict[str, Any], seed: int = 0) -> RunDir:
    manifest = {"condition": "dpo-rkl-a0.5-b1", "started_at": f"{seed}", "git": {"commit": "abc"}}
    return RunDir.create(folder, yaml.safe_dump({**config, "seed": seed}), [], manifest)


def _log(run: RunDir, *steps: int) -> None:
    for step in steps:
        run.log({"step": step, "loss": 1 / step, "missing": None})


class FakeWandb:
    """Records what a mirror sends."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.sent, self.settings = step, [], {}
        self.run = SimpleNamespace(step=step, log=self._log, summary={}, finish=self._finish)
        self.Table = lambda columns, data: ("table", columns, data)
        self.Image = lambda path: ("image", path)
        self.exit_code: int | None = None

    def init(self, **settings: Any) -> Any:
        self.settings = settings
        return self.run

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def _log(self, row: dict[str, Any], step: int) -> None:
        self.sent.append((step, row))

    def _finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_every_line_is_sent_once(tmp_path: Path, config: dict[str, Any], fake: FakeWandb) -> None:
    run = _run(tmp_path / "run", config)
    mirror = open_mirror(run.path, pytest.fail)
    _log(run, 1, 2)
    mirror.update()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    mirror.update()
    assert [step for step, _ in fake.sent] == [1, 2]
    run.forget_after(2)
    _log(run, 3)
    mirror.finish()
    assert [(step, row.get("loss")) for step, row in fake.sent] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert all("missing" not in row for _, row in fake.sent)


def test_resumed_online_run_is_not_sent_twice(tmp_path: Path, config: dict[str, Any], fake: FakeWandb) -> None:
    online = {**config, "tracking": {**config["tracking"], "mode": "online"}}
    run = _run(tmp_path / "run", online)
    fake.run.step = 3
    _log(run, 1, 2, 3, 4)
    open_mirror(run.path, pytest.fail).finish()
    assert [step for step, _ in fake.sent] == [3, 4]
    assert fake.settings["resume"] == "allow" and fake.settings["mode"] == "online"


def test_names(tmp_path: Path, config: dict[str, Any], fake: FakeWandb) -> None:
    (tmp_path / "my_sweep").mkdir()
    (tmp_path / "my_sweep" / "sweep.yaml").write_text("")
    groups, ids = set(), set()
    for seed in (0, 1):
        open_mirror(_run(tmp_path / "my_sweep" / f"run{seed}", config, seed).path, pytest.fail).update()
        groups.add(fake.settings["group"])
        ids.add(fake.settings["id"])
    assert len(groups) == 1 and len(ids) == 2 and groups.pop().startswith("dpo-rkl-a0.5-b1-")
    assert fake.settings["tags"] == ["dpo", "rkl", "sweep:my_sweep", "mine"]
    assert fake.settings["name"] == "run1" and fake.settings["config"]["provenance"]["git"] == {"commit": "abc"}
    other = _run(tmp_path / "other", {**config, "beta": 3.0})
    open_mirror(other.path, pytest.fail).update()
    assert fake.settings["group"] not in groups


def test_results_samples_and_figures(tmp_path: Path, config: dict[str, Any], fake: FakeWandb) -> None:
    run = _run(tmp_path / "run", config)
    _log(run, 1)
    run.write_results({"gold": {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 9}}, "hash", 0, "condition")
    row = {"prompt": "p", "answer": None, "responses": ["a", "b"], "gold": 0.5}
    (run.path / "evaluation.jsonl").write_text(json.dumps(row) + "\n")
    run.write_status("done", 1, 1)

    (run.path / "report" / "figures").mkdir()
    (run.path / "report" / "figures" / "curves.png").write_bytes(b"")
    open_mirror(run.path, pytest.fail).finish()
    _, sent = fake.sent[-1]
    assert sent["results"] == ("table", ["metric", "mean", "ci_low", "ci_high", "n"], [["gold", 0.5, 0.4, 0.6, 9]])
    assert sent["samples"][2] == [["p", None, "a\n\nb"]] and "figures/curves" in sent
    assert fake.run.summary == {"results/gold": 0.5} and fake.exit_code == 0


def test_samples_hold_whatever_people_wrote(tmp_path: Path, config: dict[str, Any], fake: FakeWandb) -> None:
    run = _run(tmp_path / "run", config)
    run.write_results({"reward": {"mean": 1.0, "ci_low": 0.0, "ci_high": 2.0, "n": 1}}, "hash", 0, "c")
    text = "one\u2028two\u2029three\u0085four"
    write_lines(run.path / "evaluation.jsonl", [{"prompt": text, "responses": [text]}] * 2)
    open_mirror(run.path, pytest.fail).finish()
    assert fake.sent[-1][1]["samples"][2] == [[text, None, text]] * 2


def test_any_failure_is_one_warning(tmp_path: Path, config: dict[str, Any], fake: FakeWandb) -> None:
    run, warnings = _run(tmp_path / "run", config), []

    def broken(**_: Any) -> None:
        raise OSError("disk full\nand more")

    fake.init = broken
    mirror = open_mirror(run.path, warnings.append)
    for _ in range(3):
        _log(run, 1)
        mirror.update()
    mirror.finish()
    assert warnings == ["W&B mirror given up: OSError: disk full; the run goes on."]


def test_environment_goes_before_the_config(
    tmp_path: Path, config: dict[str, Any], fake: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path / "run", {**config, "tracking": {**config["tracking"], "mode": "online"}})
    monkeypatch.setenv("WANDB_MODE", "offline")
    open_mirror(run.path, pytest.fail).update()
    assert fake.settings["mode"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert isinstance(open_mirror(run.path, pytest.fail), NoMirror)


def test_off_never_imports_wandb(tmp_path: Path, config: dict[str, Any]) -> None:
    run = _run(tmp_path / "run", {**config, "tracking": {**config["tracking"], "name": "off"}})
    code = f"""
import sys
from pathlib import Path
from multiref_cli.tracking.wandb import open_mirror
mirror = open_mirror(Path({str(run.path)!r}), print)
mirror.update()
mirror.finish()
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_real_offline_run_is_replaced_on_resume(tmp_path: Path, config: dict[str, Any]) -> None:
    pytest.importorskip("wandb")
    run, warnings = _run(tmp_path / "run", config), []
    _log(run, 1, 2)
    first = open_mirror(run.path, warnings.append)
    first.update()
    assert isinstance(first, Mirror)
    _log(run, 3)
    second = open_mirror(run.path, warnings.append)  # as a resumed process would
    second.finish()
    assert warnings == []
    folders = list((run.path / "logs" / "wandb").glob("offline-run-*"))
    assert len(folders) == 1 and list(folders[0].glob("*.wandb"))
    shutil.rmtree(folders[0])


def test_a_run_is_mirrored_and_survives_its_mirror(place, multiref, offline, capsys, monkeypatch):
    pytest.importorskip("wandb")
    arguments = [*offline, "tracking=wandb_offline", "evaluation.prompts=0"]
    assert multiref("train", *arguments, "run.dir=out") == 0
    assert list(Path("out/logs/wandb").rglob("learning-curves*.png"))
    assert len(list(Path("out/logs/wandb").glob("offline-run-*/*.wandb"))) == 1
    assert "given up" not in capsys.readouterr().out
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    assert multiref("train", *arguments, "run.dir=second") == 0
    assert capsys.readouterr().out.count("W&B mirror given up: ZeroDivisionError") == 1
    assert read_json(Path("second/status.json"))["state"] == "done"
