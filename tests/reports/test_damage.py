"""Damaged files of finished runs: a run's report names the file, a sweep's report names the point and goes on."""

import json
import shutil
from hashlib import sha256

import pytest

from multiref_cli.config.compose import compose_saved
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_yaml
from multiref_cli.reports.collect import read_run
from multiref_cli.reports.report import write_report

DAMAGE = {
    "empty": b"",
    "zeros": bytes(300),
    "not UTF-8": b"a: \xb2\xff",
    "deep": b"[" * 20_000,
    "a list": b"[1, 2]",
    "other keys": b'{"state": ["x"], "step": "many", "metrics": 3, "overrides": 7, "host": {}}',
}


@pytest.fixture
def sweep_folder(offline, tmp_path, undrawn):
    """A finished sweep that a test may damage."""
    return shutil.copytree(offline.path, tmp_path / "sweep")


@pytest.fixture
def point(sweep_folder):
    """A finished point of a sweep."""
    return sorted(path.parent for path in sweep_folder.glob("*/results.json"))[0]


@pytest.mark.parametrize("name", ["config.yaml", "results.json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_in_one_sentence(point, name, damage):
    (point / name).write_bytes(damage)
    with pytest.raises(RunError, match=rf"{name}.* is damaged") as caught:
        read_run(point)
    assert "\n" not in str(caught.value)
    if name == "config.yaml":
        with pytest.raises((RunError, RequestError), match=r"config\.yaml.* is damaged|algorithm\.name is"):
            compose_saved(point / name)


@pytest.mark.parametrize("damage", [{"seed": "0"}, {"metrics": {"reward": 3}}, {"metrics": {"reward": {"mean": "1"}}}])
def test_results_that_no_run_writes_are_damaged(point, damage):
    content = json.loads((point / "results.json").read_text())
    (point / "results.json").write_text(json.dumps(content | damage))
    with pytest.raises(RunError, match=r"results\.json is damaged"):
        read_run(point)


def test_a_config_that_changed_since_the_run_is_not_believed(point):
    config, manifest = point / "config.yaml", json.loads((point / "manifest.json").read_text())
    (point / "manifest.json").write_text(
        json.dumps(manifest | {"config_sha256": sha256(config.read_bytes()).hexdigest()})
    )
    assert read_run(point).experiment.beta == 1.0
    config.write_text(config.read_text().replace("beta: 1.0", "beta: 7.0", 1))
    with pytest.raises(RunError, match=r"config\.yaml is damaged \(its sha256 is not the one in manifest\.json\)"):
        read_run(point)


def test_a_sweeps_report_goes_on_without_a_damaged_point(sweep_folder, point):
    (point / "config.yaml").write_bytes(b"\0" * 99)
    write_report([sweep_folder])
    said = (sweep_folder / "report" / "report.md").read_text()
    assert f"{point}/config.yaml is damaged" in said and "Left out" in said
    rows = (sweep_folder / "results.csv").read_text().splitlines()
    assert len(rows) - 1 == len(list(sweep_folder.glob("*/results.json"))) - 1
    with pytest.raises(RunError, match=r"config\.yaml is damaged"):
        write_report([point])


@pytest.mark.parametrize("name", ["sweep.yaml", "plan.jsonl", "events.jsonl"])
def test_a_file_of_the_sweep_that_holds_something_else(sweep_folder, name, capsys):
    from multiref_cli.cli.app import app, run_guarded

    whole = (sweep_folder / name).read_bytes() if (sweep_folder / name).is_file() else b""
    other = DAMAGE["other keys"] + b"\n"
    (sweep_folder / name).write_bytes(other + (b"" if name == "sweep.yaml" else whole))
    write_report([sweep_folder])
    assert len((sweep_folder / "results.csv").read_text().splitlines()) > 2
    if name == "sweep.yaml":
        assert run_guarded(lambda: app(["sweep", "--resume", str(sweep_folder)], standalone_mode=True)) == 2
        assert "sweep.yaml is damaged (it does not say what was asked for)" in capsys.readouterr().err


def test_yaml_that_is_there_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: {b: [1, 2.5, text]}")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 2.5, "text"]}}
    with pytest.raises(RunError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
