"""Bradley-Terry reward model: -log sigmoid(r(chosen) - r(rejected)) (arXiv 2502.01203, Eq. 2)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from multiref_cli.config import build
from multiref_cli.data.preferences import Pair
from multiref_cli.models.packing import micro_batches
from multiref_cli.rewards.model import sequence_scores
from multiref_cli.seeding import epoch_batch
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.training.loop import Batch


@dataclass(frozen=True)
class PairScores:
    """Sequences of some pairs, chosen and rejected in turn."""

    sequences: list[list[int]]
    batch_pairs: int


class RewardModel:
    """Trains a sequence-classification model with one output on preference pairs."""

    def __init__(self, config: DictConfig, pairs: list[Pair]) -> None:
        self.config, self.settings, self.pairs = config, config.algorithm, pairs

    def batch(self, step: int) -> Batch:
        """The pairs of optimizer step `step`: one random order of all pairs per epoch."""
        rows = epoch_batch(len(self.pairs), self.settings.batch_pairs, step, self.config.seed)
        pairs = [self.pairs[i] for i in rows]
        lengths = [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs]
        parts = micro_batches(lengths, self.settings.micro_tokens, rows=2)
        micros = [PairScores(pair_sequences([pairs[i] for i in part]), len(rows)) for part in parts]
        return Batch(micros, [p.row for p in pairs], sum(2 * length for length in lengths))

    def loss(self, model: nn.Module, micro: PairScores) -> tuple[Tensor, Averages]:
        """This micro-batch's share of the mean loss over the step's pairs."""
        chosen, rejected = sequence_scores(model, micro.sequences).reshape(-1, 2).T
        losses = -F.logsigmoid(chosen - rejected) + self.settings.center * (chosen + rejected) ** 2
        averages = Averages()
        averages.add("accuracy", (chosen > rejected).float())
        averages.add("reward_margin", chosen - rejected)
        return losses.sum() / micro.batch_pairs, averages

    def check_start(self, model: nn.Module, progress: Progress) -> None:
        """Theory says nothing of the first loss."""

    def identity(self) -> dict[str, Any]:
        """What must not change across a resume."""
        return {"config": build.config_hash(self.config), "rows": len(self.pairs)}

    def state_dict(self) -> dict[str, Any]:
        """Empty: batches are a function of seed and step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def pair_sequences(pairs: list[Pair]) -> list[list[int]]:
    """Prompt and response of both sides of every pair, chosen and rejected in turn."""
    return [[*pair.prompt, *response] for pair in pairs for response in (pair.chosen, pair.rejected)]


@torch.no_grad()
def pair_accuracies(model: nn.Module, pairs: list[Pair], batch_pairs: int) -> Tensor:
    """(N,) 1 where the model scores the chosen response above the rejected one, one half at a tie, else 0."""
    found = []
    for start in range(0, len(pairs), batch_pairs):
        chosen, rejected = sequence_scores(model, pair_sequences(pairs[start : start + batch_pairs])).reshape(-1, 2).T
        found.append((chosen > rejected).double() + 0.5 * (chosen == rejected).double())
    return torch.cat(found).cpu()
