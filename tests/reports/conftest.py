"""Sweep folders as training would leave them, with made-up numbers whose truth is known."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from multiref_cli.reports import figures
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Point, make_plan
from multiref_cli.sweeps.request import parse_request
from multiref_cli.tracking.run_dir import RunDir

MANIFEST = {
    "command": "multiref sweep …",
    "started_at": "2026-01-01T00:00:00+00:00",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "hardware": {"machine": "x86_64", "processor": "some processor", "cpu_capability": "AVX2", "cores": 2, "gpus": []},
    "policy": "cd" * 32,
    "references": {"instruct": "cd" * 32, "instruct_large": "ef" * 32},
    "scorer": "12" * 32,
    "data": {"path": "toy:preferences", "sha256": "ab" * 32, "rows": "2000 of 2000 rows kept"},
}


def write_sweep(folder: Path, overrides: list[str], spread: float = 0.01) -> Ledger:
    """Plan a sweep and write a finished run for each of its points."""
    request = parse_request([*overrides, f"run.dir={folder}"])
    plan = make_plan(request)
    ledger = Ledger(folder)
    ledger.write_plan(request, plan, {"command": "multiref sweep …", "git": MANIFEST["git"]})
    for point in plan.points:
        write_run(ledger.folder(point.name), point, spread)
    return ledger


def write_run(folder: Path, point: Point, spread: float) -> None:
    """A finished run: rkl above mrpo above fkl, two references above one; seeds differ by `spread`."""
    run = RunDir.create(folder, yaml.safe_dump(point.experiment.plain), list(point.overrides), MANIFEST)
    noise = random.Random(point.id)
    common = random.Random(point.seed).gauss(0, spread)
    config = point.experiment.plain
    weights = config["alpha"] if isinstance(config["alpha"], list) else [config["alpha"], 1 - config["alpha"]]
    together = 1 - sum(w * w for w in weights)
    better = {"rkl": 0.2, "mrpo": 0.17, "fkl": 0.1, "hellinger": 0.16}[config["regularizer"]["name"].split("_")[0]]
    score = 0.55 + better * together - 0.04 * (weights[0] - 0.4) ** 2 + common + noise.gauss(0, spread / 2)
    if config["beta"] == 0:
        score = 0.6 + noise.gauss(0, 4 * spread)
    names = [reference["name"] for reference in config["references"]]
    distances = {n: (1.5 - w + 4 * score * (1 - w) + abs(noise.gauss(0, 0.05))) for n, w in zip(names, weights)}
    total = config.get("steps") or 60
    for step in range(1, total + 1):
        share = 1 - math.exp(-4 * step / total)
        row = {
            "step": step,
            "loss": 0.69 * (1 - 0.5 * share) + noise.gauss(0, 0.03),
            "reward": 0.37 + (score - 0.37) * share + noise.gauss(0, 0.04),
            "kl/mixed": 2 * share + noise.gauss(0, 0.05),
            "entropy": 1.2 - 0.7 * share + noise.gauss(0, 0.02),
        }
        if config["algorithm"]["name"] == "grpo":
            row["disagreement"] = 0.3 * together * (1 - 0.5 * share) + abs(noise.gauss(0, 0.01))
        else:
            row |= {"accuracy": 0.5 + 0.3 * share, "reward_margin": 2 * share + noise.gauss(0, 0.1)}
        run.log(row)
    penalty = sum(w * distances[n] for n, w in zip(names, weights))
    values = {"gold": score, "reward_model": 3 * score + noise.gauss(0, spread), "length": 14 + noise.gauss(0, 0.3)}
    values |= {f"kl/{n}": d for n, d in distances.items()} | {"kl/mixed": penalty - 0.2 * together}
    values |= {f"objective/{n}": values[n] - config["beta"] * 0.1 * penalty for n in ("gold", "reward_model")}
    values |= {f"reference/gold/{n}": 0.37 + 0.2 * i for i, n in enumerate(names)}
    values |= {f"reference/reward_model/{n}": 1.1 + 0.6 * i for i, n in enumerate(names)}
    values |= {f"win_rate/gold/{n}": 0.7 - 0.1 * i for i, n in enumerate(names)}
    metrics = {k: {"mean": v, "ci_low": v - 0.02, "ci_high": v + 0.02, "n": 500} for k, v in values.items()}
    notes = ["reward model reward_model: held-out accuracy 0.812"]
    run.write_results(metrics, point.id, point.seed, point.condition, notes=notes)
    run.write_status("done", total, total)


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """DPO with two references: three regularizers, three alphas, three seeds, baselines."""
    folder = tmp_path_factory.mktemp("offline") / "sweep"
    return write_sweep(folder, ["experiment=offline_toy", "regularizer=rkl,mrpo,fkl", "alpha=0.3,0.5,0.7", "seeds=3"])


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """DPO with three references."""
    alphas = "alpha=[0.4,0.3,0.3],[0.6,0.2,0.2],[0.2,0.6,0.2],[0.2,0.2,0.6]"
    folder = tmp_path_factory.mktemp("trio") / "sweep"
    return write_sweep(folder, ["experiment=offline_toy", "references=toy_trio", alphas, "seeds=2"])


@pytest.fixture(scope="session")
def estimators(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """GRPO with two regularizers, each under two estimators."""
    grid = ["regularizer=rkl_token,mrpo_token", "regularizer.estimator=exact,k3", "alpha=0.5", "baselines=false"]
    return write_sweep(tmp_path_factory.mktemp("estimators") / "sweep", ["experiment=online_toy", "seeds=2", *grid])


@pytest.fixture(scope="session")
def scales(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """GRPO with advantages as they are or divided by the group's spread, under one or two inner iterations."""
    axes = ["algorithm.advantage_scale=none,group", "algorithm.inner_iterations=1,2", "baselines=false"]
    return write_sweep(tmp_path_factory.mktemp("scales") / "sweep", ["experiment=online_toy", "seeds=2", *axes])


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """DPO in three worlds, with two regularizers and two alphas."""
    grid = ["regularizer=rkl,fkl", "alpha=0.3,0.7", "world=0,2,5", "seeds=3", "steps=3"]
    folder = tmp_path_factory.mktemp("worlds") / "sweep"
    return write_sweep(folder, ["experiment=offline_toy", *grid], spread=0.002)  # noise far below what is true


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures out: they are most of the time of a report."""
    for name in ("metric_against_alpha", "reward_against_divergence", "learning_curves", "simplex"):
        monkeypatch.setattr(figures, name, lambda *_: None)


@pytest.fixture
def make_run() -> Callable[[Path, Point, float], None]:
    """`write_run`, for tests that plan by themselves."""
    return write_run
