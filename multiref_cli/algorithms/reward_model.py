"""Bradley-Terry reward model: -log sigmoid(r(chosen) - r(rejected)) (arXiv 2502.01203, Eq. 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multiref_cli.algorithms.base import Batch, Job, Trainee
from multiref_cli.config.algorithms import RewardModelSettings
from multiref_cli.config.schema import Data, Experiment
from multiref_cli.data.preferences import Pair, load_preferences
from multiref_cli.data.rows import Split
from multiref_cli.errors import RunError
from multiref_cli.evaluation.statistics import wins
from multiref_cli.models.load import load_reward_model
from multiref_cli.models.packing import micro_batches
from multiref_cli.rewards.model import sequence_scores
from multiref_cli.seeding import derive, epoch_batch
from multiref_cli.sharding import gathered
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel, Tokenizer


def load(data: Data, tokenizer: Tokenizer, progress: Progress) -> Split[Pair]:
    """Preference pairs."""
    return load_preferences(data, tokenizer, progress)


def assemble(job: Job, progress: Progress) -> Trainee:
    """Load the trunk, with a new score head where it has none."""
    experiment = job.experiment
    torch.manual_seed(derive(experiment.seed, "initialization"))
    dtype = job.precision.parameters(adapted=bool(experiment.policy.lora or experiment.policy.adapter))
    model = load_reward_model(experiment.policy, job.device, dtype, trainable=True)
    return Trainee(model, RewardModel(experiment, job.data.train))


def measure_pairs(job: Job, model: LanguageModel, progress: Progress) -> dict[str, np.ndarray]:
    """held_out_accuracy: (N,) 1 where the model scores the chosen response of a pair above the other, 1/2 at a tie.

    Raises:
        RunError: their mean is below algorithm.minimum_accuracy.
    """
    settings = cast(RewardModelSettings, job.experiment.algorithm)
    found = accuracies(model, job.data.held_out, settings.batch_pairs)
    refuse_weak(float(found.mean()), settings.minimum_accuracy)
    return {"held_out_accuracy": found}


def refuse_weak(accuracy: float, minimum: float) -> None:
    """Refuse a reward model whose held-out accuracy is below a bar.

    Raises:
        RunError: it is.
    """
    if accuracy < minimum:
        raise RunError(
            f"the reward model's held-out accuracy is {accuracy:.3f}, below the bar {minimum:g}: its scores say little."
        )


def mean_tokens(job: Job) -> float:
    """Tokens of both rows of a pair."""
    rows = job.data.train[:200]
    return sum(2 * len(r.prompt) + len(r.chosen) + len(r.rejected) for r in rows) / len(rows)


def parts(row: Pair) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """Both responses."""
    return [("first row, chosen", row.prompt, row.chosen), ("first row, rejected", row.prompt, row.rejected)]


@dataclass(frozen=True)
class PairScores:
    """Sequences of some pairs, chosen and rejected in turn."""

    sequences: list[list[int]]
    batch_pairs: int


class RewardModel:
    """Trains a sequence-classification model with one output on preference pairs."""

    def __init__(self, experiment: Experiment, pairs: Sequence[Pair]) -> None:
        self.settings = cast(RewardModelSettings, experiment.algorithm)
        self.seed, self.pairs, self.processes = experiment.seed, pairs, experiment.hardware.processes

    def batch(self, step: int) -> Batch:
        """The pairs of optimizer step `step`: one random order of all pairs per epoch."""
        rows = epoch_batch(len(self.pairs), self.settings.batch_pairs, step, self.seed)
        pairs = [self.pairs[i] for i in rows]
        lengths = [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs]
        parts = micro_batches(lengths, self.settings.micro_tokens, 2, self.processes)
        micros = [PairScores(pair_sequences([pairs[i] for i in part]), len(rows)) for part in parts]
        return Batch(micros, [p.row for p in pairs], sum(2 * length for length in lengths))

    def loss(self, model: LanguageModel, micro: PairScores) -> tuple[Tensor, Averages]:
        """This micro-batch's share of the mean loss over the step's pairs."""
        chosen, rejected = sequence_scores(model, micro.sequences).reshape(-1, 2).T
        losses = -F.logsigmoid(chosen - rejected) + self.settings.center * (chosen + rejected) ** 2
        averages = Averages()
        averages.add("accuracy", (chosen > rejected).float())
        averages.add("reward_margin", chosen - rejected)
        return losses.sum() / micro.batch_pairs, averages


def pair_sequences(pairs: Sequence[Pair]) -> list[list[int]]:
    """Prompt and response of both sides of every pair, chosen and rejected in turn."""
    return [[*pair.prompt, *response] for pair in pairs for response in (pair.chosen, pair.rejected)]


@torch.no_grad()
def accuracies(model: LanguageModel, pairs: Sequence[Pair], batch_pairs: int) -> np.ndarray:
    """(N,) 1 where the model scores the chosen response above the rejected one, one half at a tie, else 0."""
    found = []
    with gathered(model):
        for start in range(0, len(pairs), batch_pairs):
            scores = sequence_scores(model, pair_sequences(pairs[start : start + batch_pairs]))
            chosen, rejected = scores.reshape(-1, 2).T
            found.append(wins(chosen.double().cpu().numpy(), rejected.double().cpu().numpy()))
    return np.concatenate(found)
