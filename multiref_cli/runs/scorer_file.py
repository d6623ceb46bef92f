"""How well the reward model of an evaluation tells right from wrong on rows that the user has for it."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from multiref_cli.algorithms.base import Job
from multiref_cli.config.plain import digest
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.best_of import Lineups, judge, read_lineups, result, summarized
from multiref_cli.files import read_kept, write_json
from multiref_cli.models.files import fingerprint
from multiref_cli.rewards.model import RewardModelScorer
from multiref_cli.runs.judge import open_scorer, reads
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel


@dataclass(frozen=True)
class Judged:
    """What a reward model was found to be worth.

    Attributes:
        facts: its name, the file and its sha256, and what `best_of.summarized` gives; empty where there is no file.
        rows: one a row of the file: number, id, subset, scores of its responses, how right it was.
        notes: sentences for the report.
        own: whether it is what the run trained: then its accuracy is the run's result.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    own: bool = False

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Of a reward model that the run trained: best_of, and best_of/<subset> of several subsets."""
        if not self.own:
            return {}
        subsets = self.facts["subsets"] if len(self.facts["subsets"]) > 1 else {}
        names = ("mean", "ci_low", "ci_high", "n")
        parts = {"best_of": self.facts["all"], **{f"best_of/{name}": one for name, one in subsets.items()}}
        return {key: {name: one[name] for name in names} for key, one in parts.items()}


def lineups_of(job: Job) -> Lineups | None:
    """The rows of evaluation.scorer_file; None without one.

    Raises:
        RequestError: there is no such file, or it has no usable row.
    """
    path = job.experiment.evaluation.scorer_file
    if path is None:
        return None
    place = Path(path).expanduser()
    return _lineups_at(path, place.stat().st_mtime if place.exists() else 0.0)


@lru_cache(maxsize=1)
def _lineups_at(path: str, modified: float) -> Lineups:
    """The rows of the latest file that was asked for, as long as it is not written to."""
    return read_lineups(path)


def judge_on_file(job: Job, model: LanguageModel, progress: Progress) -> Judged:
    """Judge the reward model of an evaluation, once per machine, or the one that the run has trained.

    Args:
        job: of the run.
        model: what it trained.
        progress: told of it.
    """
    lineups, spec = lineups_of(job), job.experiment.evaluation.scorer
    own = not job.experiment.algorithm.writes
    if lineups is None or (spec is None and not own):
        return Judged()
    place = None
    if spec is not None and not own:
        key = digest([fingerprint(spec), spec.whole_template, job.experiment.hardware.dtype_name(spec.dtype)])
        place = job.experiment.hardware.cache_folder / "scorers" / f"{key}-{lineups.sha256[:12]}.json"
        kept = read_kept(place)
        if kept is not None:
            return Judged(**kept)
    progress.advance("judge the scorer on its file", 0, len(lineups.rows))
    scorer = RewardModelScorer(model, job.tokenizer) if own or spec is None else open_scorer(job, spec)
    name = job.asked.condition if own or spec is None else Path(spec.path).name
    facts, rows, notes = _judged(name, Path(str(job.experiment.evaluation.scorer_file)).name, lineups, scorer)
    if place is not None:
        write_json(place, {"facts": facts, "rows": rows, "notes": notes})
    return Judged(facts, rows, notes, own)


def _judged(
    name: str, file: str, lineups: Lineups, scorer: RewardModelScorer
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    readable = [one for one in lineups.rows if reads(scorer, one.messages)]
    if not readable:
        raise RequestError(f"evaluation.scorer_file: the chat template of {name} refuses every row.")
    scores = judge(readable, scorer.score_conversations)
    results = [result(one, values) for one, values in zip(readable, scores)]
    rows = [
        {"row": one.row, "id": one.id, "subset": one.subset, "right": value, "scores": values.tolist()}
        for one, values, value in zip(readable, scores, results)
    ]
    left = lineups.unusable + len(lineups.rows) - len(readable)
    notes = [f"{left} rows of {file} cannot be used or are refused by the scorer's template"] if left else []
    if scorer.cut:
        notes.append(f"{scorer.cut} responses of {file} were longer than the reward model reads and lost their end")
    facts = {"scorer": name, "file": file, "sha256": lineups.sha256, **summarized(readable, scores, results)}
    return facts, rows, notes
