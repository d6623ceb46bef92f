"""What lies in a folder of runs: every run and sweep with its state, condition, score and age; no model is loaded.

Damaged files cost what they would have told, never the list.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from multiref_cli.config.schema import experiment_of
from multiref_cli.config.sentences import nearest
from multiref_cli.config.where import Where, value_of
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_object, read_yaml
from multiref_cli.reports.metrics import scorers_among
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.tracking.run_dir import RunDir, are_results

# Folders of folders of runs: runs/reproduce-embedded/sweep/POINT is as deep as anything here is made.
_DEEPEST = 6
# In a run or a sweep, never runs themselves.
_PARTS = {"checkpoints", "evaluations", "logs", "policy", "report"}
_FACTS = ("kind", "path", "state", "condition", "seed", "score", "step", "age")


@dataclass(frozen=True)
class Found:
    """A run or a sweep on disk.

    Attributes:
        path: its folder.
        kind: run or sweep.
        state: of a run that of status.json; of a sweep running, done, failed, stopped or queued.
        updated: when something last happened in it, seconds since 1970.
        condition: of a run; of a sweep what was asked for.
        score: mean of the first metric that conditions are compared on; None where nothing is measured.
        metric: its name.
        seed: of a run.
        progress: `done/planned` points of a sweep, `step/total` of a run.
        spread: of a sweep: lowest and highest score of its points.
        metrics: name -> mean.
    """

    path: Path
    kind: str
    state: str
    updated: float
    condition: str = ""
    score: float | None = None
    metric: str = ""
    seed: int | None = None
    progress: str = ""
    spread: tuple[float, float] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of config.yaml, empty where it cannot be read."""
        try:
            return read_yaml(self.path / "config.yaml")
        except RunError:
            return {}

    def value(self, key: str) -> Any:
        """A fact, a metric or a key of the config.

        Raises:
            KeyError: it has no such thing.
        """
        if key in _FACTS:
            facts = {"path": str(self.path), "age": (time.time() - self.updated) / 3600, "step": self._step}
            return facts[key] if key in facts else getattr(self, key)
        if key in self.metrics:
            return self.metrics[key]
        value = value_of(self.config, key)
        return self._regularizer() if key == "regularizer" and value is None else value

    @property
    def _step(self) -> int | None:
        done = self.progress.partition("/")[0]
        return int(done) if done.isdigit() and self.kind == "run" else None

    def _regularizer(self) -> str | None:
        """The name that its numbers have, where its file's name does not hold for them."""
        try:
            experiment = experiment_of(self.config)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
            return None
        return experiment.regularizer.title if experiment.regularizer else None


def overview(folder: Path, points: bool = False) -> list[Found]:
    """Everything that is a run or a sweep in a folder, the last touched first.

    Args:
        folder: such as runs/; itself a run or a sweep, or the folder of several.
        points: the points of a sweep one by one in place of the sweep.

    Raises:
        RequestError: there is no such folder.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder; give one with runs: multiref runs --dir FOLDER.")
    return sorted(_found(folder, points, 0), key=lambda one: (-one.updated, str(one.path)))


def matching(found: Sequence[Found], where: Where) -> list[Found]:
    """Those that a filter lets pass.

    Raises:
        RequestError: it asks for a key that none of them has.
    """
    seen: set[str] = set()

    def passes(one: Found) -> bool:
        def lookup(key: str) -> Any:
            try:
                value = one.value(key)
            except KeyError:
                return None
            seen.add(key)
            return value

        for key in where.keys:  # a comparison that is never reached must not hide a misspelt key
            lookup(key)
        return where.holds(lookup)

    kept = [one for one in found if passes(one)]
    for key in where.keys:
        if found and key not in seen:
            known = {name for one in found for name in (*one.metrics, *_keys(one.config))}
            raise RequestError(f"--where: no run here has {key!r}{nearest(key, sorted({*_FACTS, *known}))}.")
    return kept


def _found(folder: Path, points: bool, depth: int) -> Iterator[Found]:
    if (folder / "sweep.yaml").is_file():
        ledger = Ledger(folder)
        if points:
            names = dict.fromkeys(str(point["name"]) for point in ledger.planned())
            yield from (_run(ledger.folder(name)) for name in names if ledger.folder(name).is_dir())
        else:
            yield _sweep(ledger)
    elif (folder / "config.yaml").is_file() or (folder / "status.json").is_file():
        yield _run(folder)
    elif depth < _DEEPEST:
        try:
            inside = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
        except OSError:
            return
        for path in map(Path, inside):
            if path.name not in _PARTS and not path.name.startswith("."):
                yield from _found(path, points, depth + 1)


def _run(folder: Path) -> Found:
    run = RunDir(folder)
    status, results, manifest = run.status(), _object(folder / "results.json"), _object(folder / "manifest.json")
    state = status.get("state")
    metrics = _means(results) if are_results(results) else {}
    scorers = [name for name in scorers_among(sorted(metrics)) if name in metrics]
    step, total = status.get("step"), status.get("total")
    seed = results.get("seed")
    return Found(
        folder,
        "run",
        state if isinstance(state, str) else "queued",
        _time(status.get("updated_at"), folder),
        str(results.get("condition") or manifest.get("condition") or "–"),
        metrics[scorers[0]] if scorers else None,
        scorers[0] if scorers else "",
        seed if isinstance(seed, int) else None,
        f"{step}/{total}" if isinstance(step, int) and isinstance(total, int) else "",
        metrics=metrics,
    )


def _sweep(ledger: Ledger) -> Found:
    """A sweep from its plan and the states of its points."""
    folder, description, planned = ledger.path, ledger.description(), ledger.planned()
    runs = [_run(ledger.folder(str(point["name"]))) for point in planned]
    counts = Counter(run.state for run in runs)
    metric = next((run.metric for run in runs if run.metric), "")
    scores = [run.metrics[metric] for run in runs if metric in run.metrics]
    state = next((one for one in ("running", "failed", "stopped") if counts[one]), "done")
    if state == "done" and counts["done"] < len(planned):
        state = "stopped" if counts["done"] else "queued"
    return Found(
        folder,
        "sweep",
        state if planned else "queued",
        max((run.updated for run in runs if run.progress), default=_time(None, folder)),
        " ".join(map(str, description.get("overrides") or [])) or "–",
        metric=metric,
        progress=f"{counts['done']}/{len(planned)}",
        spread=(min(scores), max(scores)) if scores else None,
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) or {}
    except RunError:
        return {}


def _means(results: Mapping[str, Any]) -> dict[str, float]:
    means = {name: one["mean"] for name, one in results["metrics"].items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def _time(written: object, folder: Path) -> float:
    """When a run was last heard of: what it says itself, else when something in its folder changed."""
    if isinstance(written, (int, float)) and written > 0:
        return float(written)
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _keys(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
