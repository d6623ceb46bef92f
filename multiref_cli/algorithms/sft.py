"""Supervised fine-tuning: the mean negative log-likelihood of completion tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from multiref_cli.algorithms.base import Batch, Job, Trainee, load_policy
from multiref_cli.config.algorithms import SftSettings
from multiref_cli.config.schema import Data, Experiment
from multiref_cli.data.demonstrations import Demonstration, load_demonstrations
from multiref_cli.data.rows import Split
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import Packed, micro_batches, pack
from multiref_cli.seeding import epoch_batch
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel, Tokenizer


def load(data: Data, tokenizer: Tokenizer, progress: Progress) -> Split[Demonstration]:
    """Demonstrations: a prompt and its completion."""
    return load_demonstrations(data, tokenizer, progress)


def assemble(job: Job, progress: Progress) -> Trainee:
    """Load the policy."""
    return Trainee(load_policy(job), Sft(job.experiment, job.data.train, job.vocabulary))


def mean_tokens(job: Job) -> float:
    """Tokens of a prompt and its completion."""
    rows = job.data.train[:200]
    return sum(len(r.prompt) + len(r.completion) for r in rows) / len(rows)


def parts(row: Demonstration) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """The completion."""
    return [("first row", row.prompt, row.completion)]


@dataclass(frozen=True)
class SftMicro:
    """Some demonstrations of one step."""

    packed: Packed
    batch_tokens: int


class Sft:
    """-(1 / tokens of the step) sum log pi(y_t | x, y_<t) over completion tokens."""

    def __init__(self, experiment: Experiment, rows: Sequence[Demonstration], vocabulary: int | None = None) -> None:
        self.settings = cast(SftSettings, experiment.algorithm)
        self.seed, self.rows, self.vocabulary = experiment.seed, rows, vocabulary
        self.processes = experiment.hardware.processes

    def batch(self, step: int) -> Batch:
        """The demonstrations of optimizer step `step`: one random order of all rows per epoch."""
        rows = epoch_batch(len(self.rows), self.settings.batch_rows, step, self.seed)
        lengths = [len(self.rows[i].prompt) + len(self.rows[i].completion) for i in rows]
        tokens = sum(len(self.rows[i].completion) for i in rows)
        micros = []
        for part in micro_batches(lengths, self.settings.micro_tokens, processes=self.processes):
            demonstrations = [self.rows[rows[i]] for i in part]
            packed = pack(
                [d.prompt for d in demonstrations], [(d.completion,) for d in demonstrations], 0, share_prompt=True
            )
            micros.append(SftMicro(packed, tokens))
        return Batch(micros, [self.rows[i].row for i in rows], sum(lengths))

    def loss(self, model: LanguageModel, micro: SftMicro) -> tuple[Tensor, Averages]:
        """This micro-batch's share of the mean over the step's completion tokens."""
        packed = micro.packed.to(next(model.parameters()).device)
        logps = token_logps(model, packed, vocabulary=self.vocabulary).logps
        averages = Averages()
        averages.add("logps/token", logps[packed.mask])
        return -logps.sum() / micro.batch_tokens, averages
