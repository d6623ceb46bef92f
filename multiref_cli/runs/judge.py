"""Whether a scorer can tell chosen from rejected responses, known before a run is trained to be scored by it."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multiref_cli.algorithms.base import Job
from multiref_cli.config import schema
from multiref_cli.data.chat import prompt_text
from multiref_cli.data.preferences import Pair
from multiref_cli.data.template import Message, rendering_of
from multiref_cli.errors import RequestError, RunError
from multiref_cli.evaluation.statistics import wins
from multiref_cli.files import read_object
from multiref_cli.models.files import fingerprint
from multiref_cli.models.load import load_reward_model, load_tokenizer
from multiref_cli.rewards.model import RewardModelScorer
from multiref_cli.tracking.progress import Progress

# Accuracies that were measured in this process, by scorer (with its content) and data: a sweep's points share them.
_MEASURED: dict[str, float] = {}
# Scorers that this process could open.
_OPENED: set[str] = set()


@dataclass(frozen=True)
class Accuracy:
    """Share of held-out pairs whose chosen response a scorer puts first, a tie one half, and what it was found on."""

    value: float
    found_on: str


def check_scorer(job: Job) -> None:
    """Refuse a scorer that is known to be below its bar, or that nothing can be known of; opens no model.

    Raises:
        RequestError: naming the scorer.
    """
    spec = _used(job)
    if spec is None or spec.minimum_accuracy is None:
        return
    known = accuracy_of(job, spec)
    if known is None and not _pairs(job):
        raise RequestError(
            f"evaluation.scorer.minimum_accuracy cannot be judged: {spec.path} has no held-out accuracy recorded with "
            "it, and the data has no held-out pairs to measure it on; leave it out."
        )
    if known is not None and known.value < spec.minimum_accuracy:
        raise RequestError(
            f"evaluation.scorer.path={spec.path} has an accuracy of {known.value:.3f} on {known.found_on}, below "
            f"evaluation.scorer.minimum_accuracy={spec.minimum_accuracy:g}: its scores say little."
        )


def judge_scorer(job: Job, progress: Progress) -> None:
    """Open the scorer of a run's evaluation before the first step, measure it where its bar asks for that, and free it.

    Raises:
        RequestError: it cannot be opened, or is below its bar.
    """
    spec = _used(job)
    if spec is None:
        return
    unknown = spec.minimum_accuracy is not None and accuracy_of(job, spec) is None
    if unknown or _identity(spec) not in _OPENED:
        progress.advance("judge the scorer", 0, len(_pairs(job)))
        accuracy_of(job, spec, open_scorer(job, spec))
        _OPENED.add(_identity(spec))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        check_scorer(job)


def open_scorer(job: Job, spec: schema.Scorer) -> RewardModelScorer:
    """Open a scorer on the device of a job."""
    model = load_reward_model(spec, job.device, job.experiment.hardware.dtype_name(spec.dtype))
    tokenizer = load_tokenizer(spec, rendering_of(job.experiment.data))
    return RewardModelScorer(model, tokenizer, whole_template=spec.whole_template)


def accuracy_of(job: Job, spec: schema.Scorer, scorer: RewardModelScorer | None = None) -> Accuracy | None:
    """What is known of a scorer: what its training recorded, else what was measured on the job's held-out pairs.

    Args:
        job: of the evaluation.
        spec: the scorer as it was asked for.
        scorer: the same, open: it is measured where it has a bar and nothing is known yet.

    Raises:
        RequestError: its record is damaged, or its chat template refuses every held-out pair.
    """
    recorded, key = _recorded(spec), f"{_identity(spec)} {job.data.sha256} {len(_pairs(job))}"
    if recorded is not None:
        return Accuracy(recorded, "the held-out pairs of its own training")
    if key not in _MEASURED and scorer is not None and spec.minimum_accuracy is not None:
        _MEASURED[key] = _measured(spec, scorer, _pairs(job))
    return Accuracy(_MEASURED[key], "the held-out pairs") if key in _MEASURED else None


def _identity(spec: schema.Scorer) -> str:
    return f"{spec} {fingerprint(spec)}"


def _recorded(spec: schema.Scorer) -> float | None:
    """The accuracy that stands beside a reward model: in its folder, or in the run folder that it is the policy of."""
    folder = Path(spec.path).expanduser()
    beside = folder.parent / "results.json" if folder.name == "policy" else folder / "made_by.json"
    try:
        value: Any = read_object(beside)
    except RunError as error:
        raise RequestError(str(error)) from error
    for name in ("metrics", "held_out_accuracy", "mean"):
        value = value.get(name) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def _measured(spec: schema.Scorer, scorer: RewardModelScorer, pairs: Sequence[Pair]) -> float:
    readable = [pair for pair in pairs if reads(scorer, pair.messages)]
    if not readable:
        raise RequestError(f"evaluation.scorer.path={spec.path}: its chat template refuses every held-out pair.")
    chosen = scorer.score_conversations([(pair.messages, pair.chosen_text, True) for pair in readable])
    rejected = scorer.score_conversations([(pair.messages, pair.rejected_text, True) for pair in readable])
    scorer.cut = 0  # an evaluation counts its own
    return float(wins(np.array(chosen), np.array(rejected)).mean())


def reads(scorer: RewardModelScorer, messages: Sequence[Message]) -> bool:
    """Whether a scorer's chat template takes a conversation."""
    try:
        prompt_text(scorer.tokenizer, messages)
    except RequestError:
        return False
    return True


def _used(job: Job) -> schema.Scorer | None:
    """The scorer of the job's evaluation, if that has prompts to score."""
    experiment = job.experiment
    used = experiment.algorithm.writes and experiment.evaluation.prompts > 0
    return experiment.evaluation.scorer if used else None


def _pairs(job: Job) -> Sequence[Pair]:
    return job.data.held_out if job.experiment.algorithm.measures_pairs else []
