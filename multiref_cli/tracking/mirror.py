"""A mirror of a run in a tracker: metrics.jsonl is the truth, and what it holds is replayed, once.

What a tracker must be able to do is `Tracker`; one file each has W&B, TensorBoard and trackio. Whatever goes wrong with
a mirror is one warning; the run goes on without it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from multiref_cli.config.schema import Experiment
from multiref_cli.files import parse_lines, read_json, read_lines

# Prompts whose samples a tracker is sent.
_SAMPLES = 64
COLUMNS = ("metric", "mean", "ci_low", "ci_high", "n")


@dataclass(frozen=True)
class Source:
    """A run as a tracker is told of it: its folder, its experiment, its manifest."""

    folder: Path
    experiment: Experiment
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.resolve().name

    @property
    def identity(self) -> str:
        """The same for every attempt of the run, and for no other run."""
        return sha256(f"{self.folder.resolve()} {self.manifest.get('started_at')}".encode()).hexdigest()[:16]

    @property
    def group(self) -> str:
        """Name of the condition, the same for all seeds and for nothing else."""
        return f"{self.manifest.get('condition', 'run')}-{self.experiment.condition_hash[:6]}"

    @property
    def tags(self) -> list[str]:
        """Algorithm, regularizer, sweep, and those of the config."""
        experiment, parent = self.experiment, self.folder.resolve().parent
        regularizer = experiment.regularizer.title if experiment.regularizer else None
        sweep = f"sweep:{parent.name}" if (parent / "sweep.yaml").is_file() else None
        found = [experiment.algorithm.name, regularizer, sweep, *experiment.tracking.tags]
        return [tag[:64] for tag in dict.fromkeys(tag for tag in found if tag)]

    @property
    def config(self) -> dict[str, Any]:
        """The experiment and where it comes from."""
        return {**self.experiment.plain, "provenance": dict(self.manifest)}


@dataclass(frozen=True)
class Ending:
    """What a run ended with.

    Attributes:
        rows: of a table of results, see `COLUMNS`.
        summary: `results/<metric>` -> mean, metrics called as in results.csv, with the sum kl/weighted.
        headers, samples: of a table of responses with their scores and KL to each reference; empty without samples.
        figures: PNG files of the report.
        good: the run is done, or was stopped to be gone on with.
    """

    rows: list[list[Any]]
    summary: dict[str, float]
    headers: list[str]
    samples: list[list[Any]]
    figures: list[Path]
    good: bool


class Tracker(Protocol):
    """Where a mirror sends what it reads."""

    title: str

    def open(self, source: Source) -> int:
        """Begin a run, or go on with it; the last step that it has, -1 for none."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the metrics of a step."""

    def end(self, ending: Ending, step: int) -> None:
        """Take what the run ended with, and close it; `step` is the last one."""


class NoMirror:
    """What stands in for a mirror where none is wanted."""

    def update(self) -> None:
        """Nothing to do."""

    def finish(self) -> None:
        """Nothing to do."""


def _harmless(method: Callable[["Mirror"], None]) -> Callable[["Mirror"], None]:
    """Turn any failure of the mirror into one warning and no more mirror."""

    @functools.wraps(method)
    def guarded(self: "Mirror") -> None:
        if self.given_up:
            return
        try:
            method(self)
        except Exception as error:  # trackers raise anything, from usage errors to broken pipes
            self.given_up = True
            text = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {text[0] if text else ''}"
            self.warn(f"{self.tracker.title} mirror given up: {reason}; the run goes on.")

    return guarded


class Mirror:
    """Replays a run's files into one run of a tracker."""

    def __init__(self, folder: Path, experiment: Experiment, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self.folder, self.experiment, self.tracker, self.warn = folder, experiment, tracker, warn
        self.given_up = False
        self._opened = False
        self._offset = 0
        self._last_step = -1

    @_harmless
    def update(self) -> None:
        """Send the lines of metrics.jsonl that were not sent yet."""
        if not self._opened:
            manifest = read_json(self.folder / "manifest.json") or {}
            self._last_step = self.tracker.open(Source(self.folder, self.experiment, manifest))
            self._opened = True
        for row in self._new_rows():
            step = row.pop("step")
            self.tracker.log({name: value for name, value in row.items() if value is not None}, step)
            self._last_step = step

    @_harmless
    def finish(self) -> None:
        """Send what is left, the results, samples and figures, and close the run."""
        self.update()
        if not self.given_up:
            self.tracker.end(self._ending(), max(self._last_step, 0))

    def _new_rows(self) -> list[dict[str, Any]]:
        """Whole lines behind the last one that was read; from the start again if the file was cut by a resume."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return []
        if path.stat().st_size < self._offset:
            self._offset = 0
        with path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        self._offset += len(content)
        return [row for row in parse_lines(content) if row.get("step", -1) > self._last_step]

    def _ending(self) -> Ending:
        metrics = (read_json(self.folder / "results.json") or {}).get("metrics", {})
        state = (read_json(self.folder / "status.json") or {}).get("state")
        headers, samples = _samples(self.folder)
        return Ending(
            [[name, *(value[column] for column in COLUMNS[1:])] for name, value in metrics.items()],
            {f"results/{name}": mean for name, mean in _means(metrics, self.experiment).items()},
            headers if metrics else [],
            samples if metrics else [],
            sorted(self.folder.glob("report/figures/*.png")),
            state in ("done", "stopped"),
        )


def _means(metrics: Mapping[str, Any], experiment: Experiment) -> dict[str, float]:
    """Name -> mean, with the charge sum_i alpha_i KL_i that reports show as kl/weighted."""
    means = {name: value["mean"] for name, value in metrics.items()}
    if not experiment.penalized or experiment.routes is not None:
        return means
    charged = [(f"kl/{r.name}", w) for r, w in zip(experiment.references, experiment.weights) if w]
    if charged and all(name in means for name, _ in charged):
        means["kl/weighted"] = sum(weight * means[name] for name, weight in charged)
    return means


def _samples(folder: Path) -> tuple[list[str], list[list[Any]]]:
    """One row a response with its scores and KL; of runs that kept no single ones, one row a prompt."""
    answers = read_lines(folder / "answers.jsonl")[:_SAMPLES] if (folder / "answers.jsonl").is_file() else []
    if not answers:
        rows = read_lines(folder / "evaluation.jsonl")[:_SAMPLES]
        found = [[row["prompt"], row.get("answer"), "\n\n".join(row["responses"])] for row in rows]
        return ["prompt", "answer", "responses"], found
    scores, distances = (list(answers[0].get(kind) or {}) for kind in ("scores", "kl"))
    headers = ["prompt", "answer", "who", "response", *scores, *(f"kl/{name}" for name in distances)]
    return headers, [cells for row in answers for cells in _cells(row, scores, distances)]


def _cells(row: Mapping[str, Any], scores: Sequence[str], distances: Sequence[str]) -> list[list[Any]]:
    """The policy's responses to a prompt, then the first of each reference."""
    first = [row["prompt"], row.get("answer")]
    found = [
        [
            *first,
            "policy",
            text,
            *(row["scores"][name][i] for name in scores),
            *(row["kl"][name][i] for name in distances),
        ]
        for i, text in enumerate(row["responses"])
    ]
    for name, own in (row.get("references") or {}).items():
        theirs = [own["scores"][scorer][0] if scorer in own["scores"] else None for scorer in scores]
        at = [0.0 if other == name else None for other in distances]
        found.append([*first, name, own["responses"][0], *theirs, *at])
    return found
