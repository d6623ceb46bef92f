"""Supervised fine-tuning: the mean negative log-likelihood of completion tokens."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from multiref_cli.config import build
from multiref_cli.data.demonstrations import Demonstration
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import Packed, micro_batches, pack
from multiref_cli.seeding import epoch_batch
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.training.loop import Batch


@dataclass(frozen=True)
class SftMicro:
    """Some demonstrations of one step."""

    packed: Packed
    batch_tokens: int


class Sft:
    """-(1 / tokens of the step) sum log pi(y_t | x, y_<t) over completion tokens."""

    def __init__(self, config: DictConfig, rows: list[Demonstration], vocabulary: int | None = None) -> None:
        self.config, self.settings, self.rows, self.vocabulary = config, config.algorithm, rows, vocabulary

    def batch(self, step: int) -> Batch:
        """The demonstrations of optimizer step `step`: one random order of all rows per epoch."""
        rows = epoch_batch(len(self.rows), self.settings.batch_rows, step, self.config.seed)
        lengths = [len(self.rows[i].prompt) + len(self.rows[i].completion) for i in rows]
        tokens = sum(len(self.rows[i].completion) for i in rows)
        micros = []
        for part in micro_batches(lengths, self.settings.micro_tokens):
            demonstrations = [self.rows[rows[i]] for i in part]
            packed = pack(
                [d.prompt for d in demonstrations], [(d.completion,) for d in demonstrations], 0, share_prompt=True
            )
            micros.append(SftMicro(packed, tokens))
        return Batch(micros, [self.rows[i].row for i in rows], sum(lengths))

    def loss(self, model: nn.Module, micro: SftMicro) -> tuple[Tensor, Averages]:
        """This micro-batch's share of the mean over the step's completion tokens."""
        packed = micro.packed.to(next(model.parameters()).device)
        logps = token_logps(model, packed, vocabulary=self.vocabulary).logps
        averages = Averages()
        averages.add("logps/token", logps[packed.mask])
        return -logps.sum() / micro.batch_tokens, averages

    def check_start(self, model: nn.Module, progress: Progress) -> None:
        """Theory says nothing of the first loss."""

    def identity(self) -> dict[str, Any]:
        """What must not change across a resume."""
        return {"config": build.config_hash(self.config), "rows": len(self.rows)}

    def state_dict(self) -> dict[str, Any]:
        """Empty: batches are a function of seed and step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
