"""What lies on disk: finished runs, grouped into conditions whose runs differ in nothing but the seed."""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from multiref_cli.config.build import plain_hash, usual_estimator
from multiref_cli.config.check import REGULARIZED, simplex
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.crossed import BySeed, Estimate, estimate
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.tracking.run_dir import read_json, read_lines

# Without effect on a result: where it runs and how it is watched (hardware.dtype aside).
_WITHOUT_EFFECT = ("seed", "run", "tracking", "hardware")
# Told by a condition's label already, so never needed to tell two labels apart.
_IN_LABEL = ("regularizer.name", "regularizer.mean_order", "alpha", "beta", "algorithm.name")

KL_WEIGHTED, CENTERED = "kl/weighted", "/centered"

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

    @cached_property
    def start(self) -> str | None:
        """Name of the reference that the policy started from, if it is among them."""
        references, path = self.config.get("references") or [], self.config["policy"].get("path")
        return next((reference["name"] for reference in references if reference["path"] == path), None)

    def value(self, metric: str) -> float | None:
        """Mean of a metric, or of one that follows from others (see `_combination`); None where it was not measured."""
        parts = [(c, (self.metrics.get(name) or {}).get("mean")) for name, c in self._combination(metric).items()]
        if not parts or any(mean is None for _, mean in parts):
            return None
        return float(sum(c * mean for c, mean in parts))

    def per_prompt(self, metric: str) -> np.ndarray | None:
        """(P,) values of a metric from evaluation.jsonl; None where it has none, or others than results.json."""
        parts = self._combination(metric)
        if not parts or not self.evaluation or any(row.get(name) is None for row in self.evaluation for name in parts):
            return None
        columns = {name: np.array([row[name] for row in self.evaluation], dtype=np.float64) for name in parts}
        values = np.sum([c * columns[name] for name, c in parts.items()], axis=0)
        mean = self.value(metric)
        return values if mean is not None and np.isclose(values.mean(), mean, rtol=1e-6, atol=1e-9) else None

    @cached_property
    def evaluation(self) -> list[dict[str, Any]]:
        """The lines of evaluation.jsonl: `prompt`, and the mean of every metric over its responses."""
        path = self.folder / "evaluation.jsonl"
        # Responses may hold U+2028, at which str.splitlines would split.
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line] if path.is_file() else []

    def _combination(self, metric: str) -> dict[str, float]:
        """What a metric is a weighted sum of: itself, or measured ones; empty where it has no meaning here.

        kl/weighted is sum_i alpha_i kl_i, the charge of Theorem 5.1 (arXiv 2502.01203); <score>/centered is the score
        minus that of the untrained policy on the same prompts.
        """
        if metric == KL_WEIGHTED:
            return {f"kl/{name}": weight for name, weight in zip(self.references, self.weights) if weight > 0}
        if metric.endswith(CENTERED):
            name = metric.removesuffix(CENTERED)
            return {name: 1.0, f"reference/{name}/{self.start}": -1.0} if self.start else {}
        return {metric: 1.0}

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
        found = {run.seed: run.value(metric) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def by_seed(self, metric: str) -> BySeed:
        """Seed -> values of its prompts where every run has them for the same prompts, else the run's mean."""
        means = self.values(metric)
        runs = [run for run in self.runs if run.seed in means]
        scores = {run.seed: run.per_prompt(metric) for run in runs}
        complete = {seed: values for seed, values in scores.items() if values is not None}
        same = len({tuple(row["prompt"] for row in run.evaluation) for run in runs}) == 1
        return complete if same and len(complete) == len(runs) else means

    def estimate(self, metric: str, confidence: float = 0.95) -> Estimate | None:
        """Mean and interval over seeds and prompts, as far as both are known; None where no run has the metric."""
        values = self.by_seed(metric)
        return estimate(values, confidence) if values else None

    def interval(self, metric: str, confidence: float = 0.95) -> Interval | None:
        """The interval of `estimate`; its n is the number of seeds."""
        found = self.estimate(metric, confidence)
        return found.interval if found else None


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
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*CSV_SETTINGS, *metrics])
        for c in found:
            alpha = " ".join(f"{weight:g}" for weight in c.weights)
            same = [
                c.label,
                c.role,
                c.algorithm,
                c.regularizer.get("name", ""),
                c.level,
                c.estimator,
                alpha,
                f"{c.beta:g}",
            ]
            for run in c.runs:
                means = [(run.metrics.get(name) or {}).get("mean") for name in metrics]
                writer.writerow([*same, run.seed, run.results["config_hash"], *("" if m is None else m for m in means)])
    temporary.replace(path)


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
