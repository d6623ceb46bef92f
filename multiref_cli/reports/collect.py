"""What lies on disk: finished runs, grouped into conditions whose runs differ in nothing but the seed."""

import csv
import io
import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from multiref_cli.config.canonical import identity
from multiref_cli.config.plain import digest
from multiref_cli.config.regularizer import Regularizer
from multiref_cli.config.schema import Experiment, Level, experiment_of
from multiref_cli.errors import RequestError, RunError
from multiref_cli.evaluation.crossed import BySeed, Estimate, estimate
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.files import each_line, read_object, read_yaml, write_text
from multiref_cli.reports.numbers import Lines, read_groups, read_numbers
from multiref_cli.tracking.places import command
from multiref_cli.tracking.run_dir import are_results

# Told by a condition's label already, so never needed to tell two labels apart.
_IN_LABEL = ("regularizer.name", "regularizer.mean_order", "regularizer.terms", "alpha", "beta", "algorithm.name")

KL_WEIGHTED, CENTERED, STANDARDIZED = "kl/weighted", "/centered", "/standardized"

MIXES = ("kl/mixed", "kl/token_mix", "kl/token_mix_unnormalized")

CSV_SETTINGS = (
    *("condition", "role", "algorithm", "regularizer", "level", "estimator", "alpha", "beta"),
    *("seed", "config_hash"),
)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder's config.yaml, results.json and manifest.json.

    Where `multiref eval` measured it again, `experiment` says how: its evaluation, reward, data and hardware are those.
    """

    folder: Path
    experiment: Experiment = field(repr=False)
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

    @property
    def references(self) -> list[str]:
        """Names of the references, in the order of alpha."""
        return [reference.name for reference in self.experiment.references]

    @property
    def weights(self) -> list[float]:
        """Alpha, one weight a reference; empty without references."""
        return self.experiment.weights

    @property
    def mix(self) -> str:
        """What its `kl/mixed` is called beside other runs: under one name different quantities would be taken for one.

        A mix that is normalized token by token lacks the references' disagreement -log F. Without a penalty alpha
        plays no part, so neither does a mix: then the name is empty, as it is where each pair has weights of its own.
        """
        if not self.experiment.penalized or self.experiment.adaptive_weights:
            return ""
        if self.experiment.penalty.level is Level.sequence:
            return "kl/mixed"
        return "kl/token_mix" if self.experiment.penalty.normalized else "kl/token_mix_unnormalized"

    def value(self, metric: str) -> float | None:
        """Mean of a metric, or of one that follows from others (see `_combination`); None where it was not measured."""
        parts = self._combination(metric)
        means = {name: (self.metrics.get(name) or {}).get("mean") for name in parts}
        measured = [c * mean for name, c in parts.items() if (mean := means[name]) is not None]
        return float(sum(measured)) if measured and len(measured) == len(parts) else None

    def per_prompt(self, metric: str) -> np.ndarray | None:
        """(P,) values of a metric, one a line of `lines`; None where it has none, or others than results.json."""
        parts, lines = self._combination(metric), self.lines(metric)
        if lines is None:
            return None
        values = np.sum([c * np.frombuffer(lines.columns[name]) for name, c in parts.items()], axis=0)
        mean = self.value(metric)
        return values if mean is not None and np.isclose(values.mean(), mean, rtol=1e-6, atol=1e-9) else None

    def lines(self, metric: str) -> Lines | None:
        """The lines that hold a metric: prompts of evaluation.jsonl, held-out pairs of pairs.jsonl or documents of a
        task; else none."""
        parts = self._combination(metric)
        for lines in (self.evaluation, self.pairs, *self.documents):
            if parts and lines.units and all(name in lines.columns for name in parts):
                return lines
        return None

    @cached_property
    def evaluation(self) -> Lines:
        """The lines of evaluation.jsonl: a prompt each, and the mean of every metric over its responses."""
        return read_numbers(self.folder / "evaluation.jsonl", "prompt")

    @cached_property
    def pairs(self) -> Lines:
        """The lines of pairs.jsonl: the number of a held-out pair's `row` in the data, and how it was judged."""
        return read_numbers(self.folder / "pairs.jsonl", "row")

    @cached_property
    def documents(self) -> list[Lines]:
        """The lines of tasks.jsonl, task by task: what a document is known by, and how it was answered."""
        return read_groups(self.folder / "tasks.jsonl", "task", "document") if self.tasks else []

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """What is known of the tasks of evaluation libraries that were answered."""
        return self.results.get("tasks") or []

    def _combination(self, metric: str) -> dict[str, float]:
        """What a metric is a weighted sum of: itself, or measured ones; empty where it has no meaning here.

        kl/weighted is sum_i alpha_i kl_i, the charge of Theorem 5.1 (arXiv 2502.01203), where alpha plays a part, and
        objective/<score> the score less beta times that;
        <score>/centered is the score minus that of the untrained policy on the same prompts, <score>/standardized the
        same in standard deviations of the untrained policy's scores over prompts.
        """
        if metric == KL_WEIGHTED:
            same = self.experiment.penalized and self.experiment.routes is None and not self.experiment.adaptive_weights
            weighted = zip(self.references, self.weights if same else [])
            return {f"kl/{name}": weight for name, weight in weighted if weight != 0}
        if metric.startswith("objective/") and self.experiment.adaptive_weights:
            return {}
        name, _, form = metric.rpartition("/")
        start = f"reference/{name}/{self.experiment.start}"
        if f"/{form}" == CENTERED:
            return {name: 1.0, start: -1.0}
        if f"/{form}" == STANDARDIZED:
            before = self.evaluation.columns.get(start, ())
            spread = float(np.std(before, ddof=1)) if len(before) > 1 else 0.0
            return {name: 1 / spread, start: -1 / spread} if spread > 0 else {}
        if metric in MIXES:
            return {"kl/mixed": 1.0} if metric == self.mix else {}
        return {metric: 1.0}

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a training metric, or one that follows from others, from metrics.jsonl."""
        parts = self._combination(metric)
        steps, columns = self.history
        if not parts or any(name not in columns for name in parts):
            return [], []
        values = np.sum([c * np.frombuffer(columns[name]) for name, c in parts.items()], axis=0)
        known = np.flatnonzero(~np.isnan(values))
        return np.frombuffer(steps, np.int64)[known].tolist(), values[known].tolist()

    @cached_property
    def history(self) -> tuple[array, dict[str, array]]:
        """Steps of metrics.jsonl, and the numbers of every metric but times, NaN where a line has none."""
        steps, columns = array("q"), dict[str, array]()
        for row in each_line(self.folder / "metrics.jsonl"):
            if not isinstance(row.get("step"), int):
                continue
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step" and not name.startswith("time/"):
                    column = columns.setdefault(name, array("d"))
                    column.extend([math.nan] * (len(steps) - len(column)))
                    column.append(value)
            steps.append(row["step"])
        for column in columns.values():
            column.extend([math.nan] * (len(steps) - len(column)))
        return steps, columns


@dataclass
class Condition:
    """Runs that differ in the seed alone.

    Attributes:
        runs: by seed, ascending.
        names: of the regularizers under which it was asked for; several, where they are the same run.
        suffix: what tells it from others that would be called the same, such as `learning_rate=0.001`.
        tuned: keys that a search set for each condition by itself: conditions that differ in them are compared.
        looks: numbers of seeds after which a sweep with `seeds=auto` looks at its comparisons; empty: once, at the end.
    """

    runs: list[Run]
    names: tuple[str, ...] = ()
    suffix: str = ""
    tuned: tuple[str, ...] = ()
    looks: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """What a table calls it: `rkl α=0.5 β=1`."""
        return self.called()

    def called(self, alpha: bool = True, beta: bool = True) -> str:
        """Its label, with or without what stands on an axis."""
        experiment, weights = self.experiment, self.experiment.weights
        if experiment.rival is not None:
            parts = [experiment.rival]
        elif not experiment.regularized:
            parts = [experiment.algorithm.name, experiment.data.name]
        elif experiment.role == "beta0":
            parts = ["β=0"]
        else:
            single, title = experiment.role == "single", experiment.penalty.title
            parts = [f"{experiment.alone} alone ({title})" if single else title]
            text = alpha_text(weights) if experiment.routes is None else experiment.routes.title
            if experiment.adaptive_weights:  # alpha plays no part but for which references it leaves out
                parts += [f"of {' + '.join(r.name for r in experiment.active_references)}"] if 0 in weights else []
            else:
                parts += [f"α={text}"] if alpha and not single and len(weights) > 1 else []
            parts += [f"to {alpha_text(experiment.alpha_end)}"] if experiment.alpha_end else []
            moves = "" if experiment.moving_beta is None else f" {experiment.moving_beta.title}"
            parts += [f"β={experiment.beta:g}{moves}"] if beta or moves else []
        return " ".join([*parts, self.suffix] if self.suffix else parts)

    @property
    def first(self) -> Run:
        """The run of the lowest seed."""
        return self.runs[0]

    @property
    def experiment(self) -> Experiment:
        """What its runs have in common."""
        return self.first.experiment

    @property
    def regularizer(self) -> Regularizer | None:
        """What pulls it to its references."""
        return self.experiment.regularizer

    @property
    def regularized(self) -> bool:
        """Whether references and beta play a part."""
        return self.experiment.regularized

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return self.experiment.algorithm.name

    @property
    def beta(self) -> float:
        """Weight of the penalty."""
        return self.experiment.beta

    @property
    def weights(self) -> list[float]:
        """Weight of each reference."""
        return self.experiment.weights

    @property
    def role(self) -> str:
        """single (one reference of several alone), beta0 (no penalty), rival or grid."""
        return self.experiment.role

    @property
    def alone(self) -> str | None:
        """Name of the only reference with a weight, if there is but one."""
        return self.experiment.alone

    @property
    def level(self) -> str:
        """sequence or token; none where nothing is trained."""
        trained = self.experiment.algorithm.trains
        return self.regularizer.level.name if self.regularizer and trained else "–"

    @property
    def estimator(self) -> str:
        """How the online penalty was estimated; offline losses have none."""
        return self.experiment.estimator_name or "–"

    @cached_property
    def setting(self) -> tuple[Any, ...]:
        """What two conditions share that differ in alpha or in the mean alone: such pairs are compared."""
        score = self.regularizer and self.regularizer.score
        beta = None if "beta" in self.tuned else self.beta
        return (self.algorithm, self.level, self.estimator, beta, score, self.rest)

    @cached_property
    def rest(self) -> str:
        """Hash of everything besides regularizer, alpha and beta."""
        return digest(self._content)

    @cached_property
    def shared(self) -> str:
        """Hash of what the conditions of a job have in common: `rest`, the scale of the advantages aside."""
        content = self._content
        algorithm = {key: value for key, value in content["algorithm"].items() if key != "advantage_scale"}
        return digest(content | {"algorithm": algorithm})

    @cached_property
    def arena(self) -> str:
        """Hash of what conditions of any algorithm share whose scores can be ranked: the same prompts and scorers."""
        content = self.experiment.content()
        return digest([self.experiment.world, *(content[key] for key in ("data", "evaluation", "reward"))])

    @cached_property
    def _content(self) -> dict[str, Any]:
        """What a result depends on besides regularizer, alpha, beta and what was tuned."""
        content = self.experiment.content("seed", "regularizer", "alpha", "beta")
        return _without(content, self.tuned) if self.tuned else content

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
        same = len({lines.units for run in runs if (lines := run.lines(metric)) is not None}) == 1
        return complete if same and len(complete) == len(runs) else means

    def estimate(self, metric: str, confidence: float = 0.95) -> Estimate | None:
        """Mean and interval over seeds and prompts, as far as both are known; None where no run has the metric."""
        key = (metric, confidence)
        if key not in self._estimates:
            values = self.by_seed(metric)
            self._estimates[key] = estimate(values, confidence) if values else None
        return self._estimates[key]

    @cached_property
    def _estimates(self) -> dict[tuple[str, float], Estimate | None]:
        """What `estimate` has found so far: tables, figures and published files ask for the same."""
        return {}

    def interval(self, metric: str, confidence: float = 0.95) -> Interval | None:
        """The interval of `estimate`; its n is the number of seeds."""
        found = self.estimate(metric, confidence)
        return found.interval if found else None


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        RequestError: the folder holds no finished run.
        RunError: one of its files is damaged.
    """
    config, results = folder / "config.yaml", read_object(folder / "results.json")
    if not config.is_file() or results is None:
        raise RequestError(f"{folder} holds no finished run (config.yaml and results.json); finish it with --resume.")
    if not are_results(results):
        raise RunError(
            f"{folder}/results.json is damaged (it holds no results): `{command('eval', folder)}` scores again."
        )
    manifest, checksum = read_object(folder / "manifest.json") or {}, sha256(config.read_bytes()).hexdigest()
    if manifest.get("config_sha256", checksum) != checksum:  # a number that changed would be believed
        raise RunError(f"{config} is damaged (its sha256 is not the one in manifest.json): restore it.")
    content = read_yaml(config) | (results.get("measured_by") or {})
    try:
        experiment = experiment_of(content)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise RunError(f"{config} is damaged (it is no config of a run): restore it, or delete its folder.") from error
    return Run(folder, experiment, results, manifest)


def conditions(
    runs: Iterable[Run],
    asked: Mapping[str, Sequence[str]] | None = None,
    tuned: tuple[str, ...] = (),
    looks: tuple[int, ...] = (),
) -> list[Condition]:
    """Group runs into conditions with labels that tell them apart, in the order in which they were first seen.

    A run that was read twice (from two sweeps that share it, repeated, or trained under two names of one thing) counts
    once a seed, the first one found.

    Args:
        runs: finished runs.
        asked: condition's hash -> names of the regularizers under which a plan holds it.
        tuned: keys that were tuned for each condition by itself.
        looks: of `seeds=auto`.
    """
    groups: dict[str, dict[int, Run]] = {}
    names: dict[str, dict[str, None]] = {}
    for run in runs:
        key = identity(run.experiment)
        groups.setdefault(key, {}).setdefault(run.seed, run)
        own = [run.experiment.penalty.title] if run.experiment.penalized else []
        more = (asked or {}).get(run.experiment.condition_hash, ())
        names.setdefault(key, {}).update(dict.fromkeys([*own, *more]))
    found = [
        Condition([group[seed] for seed in sorted(group)], tuple(names[key]), tuned=tuned, looks=looks)
        for key, group in groups.items()
    ]
    _tell_apart(found)
    return found


def write_csv(found: Sequence[Condition], path: Path) -> None:
    """Write results.csv: one row a run, its condition's settings and the mean of every metric."""
    runs = [run for condition in found for run in condition.runs]
    named = {name for run in runs for name in run.metrics} - set(MIXES)
    metrics = sorted(named | {run.mix for run in runs if run.mix and "kl/mixed" in run.metrics})
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*CSV_SETTINGS, *metrics])
        for c in found:
            routes = c.experiment.routes
            weights = [] if c.experiment.adaptive_weights else c.weights
            alpha = " ".join(f"{weight:g}" for weight in weights) if routes is None else cell_text(routes.title)
            same = [
                cell_text(c.label),
                c.role,
                c.algorithm,
                cell_text(c.regularizer.title if c.regularizer else ""),
                c.level,
                c.estimator,
                alpha,
                f"{c.beta:g}",
            ]
            for run in c.runs:
                means = [run.value(name) for name in metrics]
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


def _tell_apart(found: Sequence[Condition]) -> None:
    """Add the keys that differ to what would be called the same."""
    groups: dict[tuple[str, int, str], list[Condition]] = {}
    for condition in found:
        # What is trained in two ways on two data sets stands in two tables, as the rivals of two jobs do.
        job = condition.arena if condition.role == "rival" else condition.algorithm + condition.experiment.data.name
        groups.setdefault((condition.label, condition.experiment.world, job), []).append(condition)
    for same in groups.values():
        if len(same) > 1:
            settings = [flat(condition.experiment.content("seed", "world")) for condition in same]
            keys = sorted({key for one in settings for key in one})
            differing = [k for k in keys if len({json.dumps(one.get(k)) for one in settings}) > 1]
            shown = [k for k in differing if k not in _IN_LABEL] or differing
            for condition, one in zip(same, settings):
                named = [f"{key.rpartition('.')[2]}={one.get(key)}" for key in telling(shown, settings)]
                condition.suffix = " ".join(named)


def telling(keys: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """The first three of some keys, or as many as tell the settings apart; all, where that is not enough."""
    counts = range(min(3, len(keys)), len(keys))
    told = (n for n in counts if len({json.dumps([one.get(k) for k in keys[:n]]) for one in settings}) == len(settings))
    return keys[: next(told, len(keys))]


def _without(content: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Nested settings without some dotted keys."""
    found = dict(content)
    for key in keys:
        first, _, rest = key.partition(".")
        if first in found:
            inner = found.pop(first)
            if rest and isinstance(inner, dict):
                found[first] = _without(inner, [rest])
    return found


def flat(value: object, prefix: str = "") -> dict[str, Any]:
    """A tree of settings as one level: `optimizer.learning_rate` -> value; members of lists by their names."""
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in flat(child, f"{prefix}{key}.").items()}
    if isinstance(value, list) and any(isinstance(child, dict) for child in value):
        names = [child.get("name", index) for index, child in enumerate(value)]
        return {k: v for name, child in zip(names, value) for k, v in flat(child, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}
