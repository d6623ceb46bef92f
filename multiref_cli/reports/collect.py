"""What lies on disk: finished runs, grouped into conditions whose runs differ in nothing but the seed."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from multiref_cli.config.build import plain_hash, usual_estimator
from multiref_cli.config.check import REGULARIZED, simplex
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.statistics import Interval, t_interval
from multiref_cli.files import read_json, read_lines, write_text

# Without effect on a result: where it runs and how it is watched (hardware.dtype aside).
_WITHOUT_EFFECT = ("seed", "run", "tracking", "hardware")
# Told by a condition's label already, so never needed to tell two labels apart.
_IN_LABEL = ("regularizer.name", "regularizer.mean_order", "alpha", "beta", "algorithm.name")

# libyaml's loader where PyYAML was built with it: ten times faster, and a sweep has hundreds of files.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CSV_SETTINGS = (
    *("condition", "role", "algorithm", "regularizer", "level", "estimator", "alpha", "beta"),
    *("seed", "config_hash"),
)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder's config.yaml, results.json and manifest.json.

    Where `multiref eval` measured it again, `config` says how: its evaluation, reward, data and hardware are those.
    """

    folder: Path
    config: dict[str, Any] = field(repr=False)
    results: dict[str, Any] = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.results["seed"]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Name -> mean, ci_low, ci_high, n."""
        return self.results["metrics"]

    @cached_property
    def key(self) -> str:
        """Hash of the condition: of everything in the config that a result depends on, without the seed."""
        return plain_hash(self.config, without_seed=True)

    @cached_property
    def references(self) -> list[str]:
        """Names of the references, in the order of alpha."""
        return [reference["name"] for reference in self.config.get("references") or []]

    @cached_property
    def weights(self) -> list[float]:
        """Alpha, one weight a reference; empty without references."""
        return simplex(self.config.get("alpha"), len(self.references)) if self.references else []

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a training metric, from metrics.jsonl."""
        rows = [(r["step"], r[metric]) for r in self.history if r.get(metric) is not None and "step" in r]
        return [step for step, _ in rows], [value for _, value in rows]

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_lines(self.folder / "metrics.jsonl")


@dataclass
class Condition:
    """Runs that differ in the seed alone."""

    runs: list[Run]
    label: str = ""

    @property
    def first(self) -> Run:
        """The run of the lowest seed."""
        return self.runs[0]

    @property
    def regularized(self) -> bool:
        """Whether references and beta play a part."""
        return self.algorithm in REGULARIZED and bool(self.first.references)

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return self.first.config["algorithm"]["name"]

    @property
    def regularizer(self) -> dict[str, Any]:
        """The regularizer's settings, empty where there is none."""
        return self.first.config.get("regularizer") or {}

    @property
    def level(self) -> str:
        """sequence or token."""
        return str(self.regularizer.get("level", "–"))

    @property
    def estimator(self) -> str:
        """How the online penalty was estimated; offline losses have none."""
        if self.algorithm != "grpo":
            return "–"
        return str(self.regularizer.get("estimator") or usual_estimator(self.level))

    @property
    def beta(self) -> float:
        """Weight of the penalty."""
        return float(self.first.config["beta"])

    @property
    def weights(self) -> list[float]:
        """Weight of each reference."""
        return self.first.weights

    @property
    def role(self) -> str:
        """single (one reference of several alone), beta0 (no penalty) or grid."""
        if not self.regularized:
            return "grid"
        if self.beta == 0:
            return "beta0"
        return "single" if len(self.weights) > 1 and max(self.weights) == 1 else "grid"

    @property
    def alone(self) -> str | None:
        """Name of the only reference with a weight, if there is but one."""
        return self.first.references[self.weights.index(1.0)] if 1.0 in self.weights else None

    @cached_property
    def setting(self) -> tuple[Any, ...]:
        """What two conditions share that differ in alpha or in the mean alone: such pairs are compared."""
        r = self.regularizer
        return (self.algorithm, self.level, self.estimator, self.beta, r.get("score_order"), self.rest)

    @cached_property
    def rest(self) -> str:
        """Hash of everything besides regularizer, alpha and beta."""
        skipped = (*_WITHOUT_EFFECT, "regularizer", "alpha", "beta")
        content = {k: v for k, v in self.first.config.items() if k not in skipped}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> the run's mean, for runs that have the metric."""
        found = {run.seed: (run.metrics.get(metric) or {}).get("mean") for run in self.runs}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def interval(self, metric: str, confidence: float = 0.95) -> Interval | None:
        """Mean and t interval over seeds; None where no run has the metric."""
        values = self.values(metric)
        return t_interval(list(values.values()), confidence) if values else None


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        RequestError: the folder holds no finished run.
    """
    config, results = folder / "config.yaml", read_json(folder / "results.json")
    if not config.is_file() or results is None:
        raise RequestError(f"{folder} holds no finished run (config.yaml and results.json); finish it with --resume.")
    settings = yaml.load(config.read_text(), _YAML) | (results.get("measured_by") or {})
    return Run(folder, settings, results, read_json(folder / "manifest.json") or {})


def conditions(runs: Iterable[Run]) -> list[Condition]:
    """Group runs into conditions with labels that tell them apart, in the order in which they were first seen.

    A run that was read twice (from two sweeps that share it, or repeated) counts once a seed, the first one found.
    """
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        groups.setdefault(run.key, {}).setdefault(run.seed, run)
    found = [Condition([group[seed] for seed in sorted(group)]) for group in groups.values()]
    for condition in found:
        condition.label = _label(condition)
    _tell_apart(found)
    return found


def scorers(found: Sequence[Condition]) -> list[str]:
    """Names of what responses were scored by, the gold reward last: those with an objective, else known names."""
    names = {name for condition in found for run in condition.runs for name in run.metrics}
    scored = [name.removeprefix("objective/") for name in names if name.startswith("objective/")]
    scored = scored or [name for name in ("reward", "gold", "accuracy", "preference_accuracy") if name in names]
    return sorted(scored, key=lambda name: ("gold" in name, name))


def write_csv(found: Sequence[Condition], path: Path) -> None:
    """Write results.csv: one row a run, its condition's settings and the mean of every metric."""
    metrics = sorted({name for condition in found for run in condition.runs for name in run.metrics})
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*CSV_SETTINGS, *metrics])
        for c in found:
            alpha = " ".join(f"{weight:g}" for weight in c.weights)
            same = [
                cell_text(c.label),
                c.role,
                c.algorithm,
                cell_text(c.regularizer.get("name", "")),
                c.level,
                c.estimator,
                alpha,
                f"{c.beta:g}",
            ]
            for run in c.runs:
                means = [(run.metrics.get(name) or {}).get("mean") for name in metrics]
                writer.writerow([*same, run.seed, run.results["config_hash"], *("" if m is None else m for m in means)])
        write_text(path, file.getvalue())


def cell_text(text: str) -> str:
    """Text for a cell of a CSV file; a spreadsheet would run what begins with = + - or @ as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def alpha_text(weights: Sequence[float]) -> str:
    """Alpha as the user writes it: one number for two references."""
    if not weights:
        return "–"
    return f"{weights[0]:g}" if len(weights) == 2 else "[" + ", ".join(f"{w:g}" for w in weights) + "]"


def _label(condition: Condition) -> str:
    if not condition.regularized:
        return f"{condition.algorithm} {condition.first.config['data']['name']}"
    if condition.role == "beta0":
        return "β=0"
    name = condition.regularizer["name"]
    if condition.role == "single":
        return f"{condition.alone} alone ({name}) β={condition.beta:g}"
    alpha = f" α={alpha_text(condition.weights)}" if len(condition.weights) > 1 else ""
    return f"{name}{alpha} β={condition.beta:g}"


def _tell_apart(found: Sequence[Condition]) -> None:
    """Add the keys that differ to labels that are the same."""
    groups: dict[str, list[Condition]] = {}
    for condition in found:
        groups.setdefault(condition.label, []).append(condition)
    for same in groups.values():
        if len(same) > 1:
            flat = [_flat(condition.first.config) for condition in same]
            keys = sorted({key for one in flat for key in one})
            differing = [k for k in keys if len({json.dumps(one.get(k)) for one in flat}) > 1]
            shown = [k for k in differing if k not in _IN_LABEL and not k.startswith(_WITHOUT_EFFECT)] or differing
            for condition, one in zip(same, flat):
                named = [f"{key.rpartition('.')[2]}={one.get(key)}" for key in shown[:3]]
                condition.label += " " + " ".join(named)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in _flat(child, f"{prefix}{key}.").items()}
    if isinstance(value, list) and any(isinstance(child, dict) for child in value):
        names = [child.get("name", index) for index, child in enumerate(value)]
        return {k: v for name, child in zip(names, value) for k, v in _flat(child, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}
