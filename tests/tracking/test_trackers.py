"""TensorBoard and trackio are sent what W&B is: every step once, results called as in the report, samples with KL."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from multiref_cli.config.compose import compose
from multiref_cli.errors import RequestError
from multiref_cli.tracking.run_dir import RunDir
from multiref_cli.tracking.wandb import open_mirror

ANSWER = {
    "prompt": "p",
    "answer": "7",
    "responses": ["a", "b | c"],
    "scores": {"gold": [0.25, 0.5]},
    "kl": {"instruct": [0.125, -0.5], "instruct_large": [1.0, 2.0]},
    "references": {"instruct": {"responses": ["r"], "scores": {"gold": [0.75]}}},
}
HEADERS = ["prompt", "answer", "who", "response", "gold", "kl/instruct", "kl/instruct_large"]
SAMPLES = [
    ["p", "7", "policy", "a", 0.25, 0.125, 1.0],
    ["p", "7", "policy", "b | c", 0.5, -0.5, 2.0],
    ["p", "7", "instruct", "r", 0.75, 0.0, None],
]


def _run(folder: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr("multiref_cli.config.check.find_spec", lambda name: object())
    config = compose(["experiment=offline_toy", "alpha=0.25", f"tracking={tracker}"]).plain
    run = RunDir.create(folder, yaml.safe_dump(config), [], {"condition": "c", "started_at": "now"})
    for step in (1, 2):
        run.log({"step": step, "loss": 1 / step, "missing": None})
    return run


def _end(run: RunDir) -> None:
    means = {"gold": 0.5, "kl/instruct": 1.0, "kl/instruct_large": 2.0}
    run.write_results({k: {"mean": v, "ci_low": 0.0, "ci_high": 1.0, "n": 9} for k, v in means.items()}, "h", 0, "c")
    (run.path / "answers.jsonl").write_text(json.dumps(ANSWER) + "\n")
    run.write_status("done", 2, 2)


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []
    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = lambda folder: SimpleNamespace(
        add_scalar=lambda name, value, step: sent.append((name, value, step)),
        add_text=lambda name, text, step=None: sent.append((name, text, step)),
        close=lambda: sent.append(("closed", folder)),
    )
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run = _run(tmp_path / "run", "tensorboard", monkeypatch)
    mirror = open_mirror(run.path, pytest.fail)
    mirror.update()
    _end(run)
    mirror.finish()
    scalars = [one for one in sent if one[0] == "loss" or one[0].startswith("results/")]
    assert scalars == [
        ("loss", 1.0, 1),
        ("loss", 0.5, 2),
        ("results/gold", 0.5, 2),
        ("results/kl/instruct", 1.0, 2),
        ("results/kl/instruct_large", 2.0, 2),
        ("results/kl/weighted", 1.75, 2),  # 0.25 x 1 + 0.75 x 2
    ]
    samples = next(text for name, text, *_ in sent if name == "samples")
    assert (
        "| p | 7 | policy | b \\| c | 0.5 | -0.5 | 2 |" in samples
        and "| p | 7 | instruct | r | 0.75 | 0 |  |" in samples
    )
    assert sent[-1] == ("closed", str(run.path / "logs" / "tensorboard"))


class FakeTrackio(ModuleType):
    """Records what a mirror sends."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.sent: list[tuple[Any, int]] = []
        self.settings: dict[str, Any] = {}
        self.closed = 0

    def init(self, **settings: Any) -> None:
        self.settings = settings

    def log(self, values: dict[str, Any], step: int) -> None:
        self.sent.append((values, step))

    def Table(self, dataframe: Any) -> Any:
        return [list(dataframe.columns), dataframe.astype(object).where(dataframe.notna(), None).values.tolist()]

    def finish(self) -> None:
        self.closed += 1


def test_trackio_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run = _run(tmp_path / "run", "trackio", monkeypatch)
    open_mirror(run.path, pytest.fail).update()
    assert fake.settings["resume"] == "never" and fake.settings["name"].startswith("run-")
    run.log({"step": 3, "loss": 0.25})
    _end(run)
    open_mirror(run.path, pytest.fail).finish()  # as a resumed process would
    assert fake.settings["resume"] == "allow" and fake.closed == 1
    assert [(values.get("loss"), step) for values, step in fake.sent] == [(1.0, 1), (0.5, 2), (0.25, 3), (None, 3)]
    last = fake.sent[-1][0]
    assert last["samples"] == [HEADERS, SAMPLES] and last["results/kl/weighted"] == 1.75


def test_a_tracker_that_breaks_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, said = FakeTrackio(), []
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr(fake, "log", lambda *_, **__: 1 / 0)
    mirror = open_mirror(_run(tmp_path / "run", "trackio", monkeypatch).path, said.append)
    mirror.update()
    mirror.finish()
    assert said == ["trackio mirror given up: ZeroDivisionError: division by zero; the run goes on."]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiref_cli.config.check.find_spec", lambda module: None)
    with pytest.raises(RequestError, match=rf"tracking={name} needs {name}.*pip install '\.\[{name}\]'"):
        compose(["experiment=offline_toy", f"tracking={name}"])


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(RequestError, match=r"tracking\.name"):
        compose(["experiment=offline_toy", "tracking.name=mlflow"])


def test_real_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = _run(tmp_path / "run", "tensorboard", monkeypatch)
    open_mirror(run.path, pytest.fail).update()
    _end(run)
    open_mirror(run.path, pytest.fail).finish()  # the second attempt replaces the first
    found = EventAccumulator(str(run.path / "logs" / "tensorboard"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert found.Scalars("results/kl/weighted")[0].value == 1.75


def test_real_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    said: list[str] = []
    run = _run(tmp_path / "run", "trackio", monkeypatch)
    _end(run)
    open_mirror(run.path, said.append).finish()
    assert said == [] and json.loads((run.path / "logs" / "trackio.json").read_text()) == {"step": 2}
