"""What an algorithm is given, what it gives to the training loop, and what the rest of the program asks of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from multiref_cli.config.schema import Data, Experiment, Model
from multiref_cli.data.prompts import Prompt
from multiref_cli.data.rows import Split
from multiref_cli.data.template import rendering_of
from multiref_cli.evaluation.evaluate import Evaluator
from multiref_cli.models.decoder import honours_shared_prompts
from multiref_cli.models.load import load_causal_lm, new_causal_lm
from multiref_cli.models.precision import Precision
from multiref_cli.parallel import ALONE, Parallel
from multiref_cli.references.base import Reference, references_of
from multiref_cli.references.served import Serving
from multiref_cli.references.store import ReferenceStore, Scoring
from multiref_cli.references.tokens import first_difference
from multiref_cli.rollouts.engine import Engine
from multiref_cli.seeding import derive
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel, Tokenizer


@dataclass(frozen=True)
class Job:
    """An experiment with its data and tokenizers, opened by `runs.job.open_job`.

    Attributes:
        asked: the experiment as the user gave it; names and hashes come from it.
        experiment: the same with local folders in place of `toy:` names.
        tokenizer: of the policy.
        data: training and held-out rows, as the algorithm reads them.
        vocabulary: number of ids that policy and references normalize over.
        prompts: of the evaluation.
        parallel: the processes of the run.
        opened: references that training has in memory and leaves as they are: what measures them has no need of others.
    """

    asked: Experiment
    experiment: Experiment
    tokenizer: Tokenizer
    data: Split
    vocabulary: int
    prompts: list[Prompt] = field(default_factory=list)
    parallel: Parallel = ALONE
    opened: dict[str, Reference] = field(default_factory=dict, compare=False)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        if not self.experiment.algorithm.trains:
            return 0
        if self.experiment.steps is not None:
            return self.experiment.steps
        per_epoch = -(-len(self.data.train) // self.experiment.algorithm.batch_size)
        return max(1, -int(-(self.experiment.epochs or 1) * per_epoch // 1))

    @property
    def device(self) -> str:
        """Torch device of the policy."""
        return self.experiment.hardware.device_name

    @property
    def precision(self) -> Precision:
        """How the policy computes."""
        return Precision(self.experiment.precision, self.device)

    @property
    def reference_device(self) -> str:
        """Torch device of the references."""
        return self.experiment.hardware.reference_device or self.device

    def references(self, active: bool = True, together: bool = False) -> list[Reference]:
        """The references with a positive weight, or all of them; none is loaded before it is asked something.

        Args:
            active: leave out those of weight 0.
            together: see `references_of`.
        """
        experiment = self.experiment
        wanted = experiment.active_references if active else experiment.references
        kind, rendering = experiment.reference_type, rendering_of(experiment.data)
        serving = Serving(self.tokenizer, experiment.hardware.cache_folder / "served")
        near = torch.device(self.reference_device).type == torch.device(self.device).type
        divide = self._divide if self.parallel.sharded and near else None
        found = references_of(wanted, self.reference_device, kind, together, rendering, serving, divide)
        return found if together else [self.opened.get(one.name, one) for one in found]

    def _divide(self, model: Any) -> None:
        """Divide a reference's model among the processes of the run; how it shares prompts is found out before."""
        honours_shared_prompts(model)
        self.parallel.shard(model, self.device)

    def foreign_tokenizer(self, reference: Reference) -> Any:
        """The reference's tokenizer where the policy's ids mean something else to it, else None."""
        return None if first_difference(self.tokenizer, reference.tokenizer) is None else reference.tokenizer

    def open_store(self) -> ReferenceStore:
        """The reference store of this machine, with what decides how this run's references score."""
        experiment = self.experiment
        scoring = Scoring(
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            truncation=(experiment.data.max_prompt_tokens, experiment.data.max_completion_tokens),
            keep_hidden=experiment.hardware.keep_hidden,
        )
        return ReferenceStore(experiment.hardware.cache_folder / "store", scoring, self.parallel)


@dataclass
class Batch:
    """What one optimizer step works on."""

    micros: list[Any]
    ids: list[int]
    tokens: int
    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


class Objective(Protocol):
    """An objective with its data. Losses of a batch's micro-batches add up to the loss of the batch."""

    def batch(self, step: int) -> Batch:
        """Everything for optimizer step `step` (from 0); a pure function of the seed and `step`, or in state_dict."""

    def loss(self, model: LanguageModel, micro: Any) -> tuple[Tensor, Averages]:
        """This micro-batch's share of the loss, differentiable, and its metrics."""


@runtime_checkable
class Stateful(Protocol):
    """An objective that keeps something between steps, which goes into checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


@runtime_checkable
class Noted(Protocol):
    """A micro-batch of which an objective notes something besides what its loss returns."""

    def unnoted(self) -> Any:
        """The same one, of which nothing is noted."""


@dataclass
class Trainee:
    """A model with what it is trained on.

    Attributes:
        model: with gradients, on its device.
        objective: of the algorithm.
        notes: sentences that every report of the run must carry.
        check_start: called once before the first step, to verify what theory says of it.
        close: called once after the last step, however that ended; None: there is nothing to let go of.
        beside: frozen models that every pass of the loss asks, sharded: gathered for each step.
    """

    model: LanguageModel
    objective: Objective
    notes: list[str] = field(default_factory=list)
    check_start: Callable[[Progress], None] | None = None
    close: Callable[[], None] | None = None
    beside: Sequence[Any] = ()


class AlgorithmModule(Protocol):
    """What the module of an algorithm holds; its row in config.algorithms names it."""

    def load(self, data: Data, tokenizer: Tokenizer, progress: Progress) -> Split:
        """The rows that it reads."""

    def assemble(self, job: Job, progress: Progress) -> Trainee:
        """Load the policy and build the objective; the reference store is read or filled first."""

    def mean_tokens(self, job: Job) -> float:
        """Tokens of a training row, prompt and responses, for estimates."""

    def parts(self, row: Any) -> list[tuple[str, Sequence[int], Sequence[int]]]:
        """What is trained on in a row: (title, prompt ids, ids that are scored) each."""


class StoreReader(Protocol):
    """What an algorithm that trains on stored results of its references holds besides."""

    def fill_store(self, job: Job, progress: Progress) -> None:
        """Compute all that runs of this job read from the reference store, whatever their seed, where it lacks."""


class PairJudge(Protocol):
    """What an algorithm of preference pairs holds besides."""

    def measure_pairs(self, job: Job, model: LanguageModel, progress: Progress) -> dict[str, np.ndarray]:
        """Metric -> (N,) 1 where the model prefers the chosen response of a held-out pair, 1/2 at a tie, else 0; and
        bits per byte of the chosen responses where a reference has other tokens."""


class SamplerModule(Protocol):
    """What the module of an algorithm that trains nothing holds besides."""

    def sampler(self, job: Job, model: LanguageModel, evaluator: Evaluator) -> "Sampler":
        """What is measured in place of the policy alone."""


@dataclass(frozen=True)
class Sampler:
    """What an evaluation samples from.

    Attributes:
        engine: draws the responses.
        policy: the model of which the engine's log-probs are; None where they are exact or of none.
        nats_above: most that the KL of the sampler to any reference exceeds what these log-probs say, in nats.
        notes: sentences for the report.
    """

    engine: Engine
    policy: LanguageModel | None
    nats_above: float = 0.0
    notes: tuple[str, ...] = ()


def module_of(experiment: Experiment) -> Any:
    """The module of an experiment's algorithm: an AlgorithmModule, and what else its row says that it is."""
    return import_module(experiment.algorithm.module)


def load_policy(job: Job, path: str | None = None) -> LanguageModel:
    """The trainable policy: fresh, from its folder, or (for evaluation) from a run's policy folder.

    Args:
        job: says which model, device and type.
        path: a trained policy's folder to load in place of the configured start.
    """
    policy, device = job.experiment.policy, job.device
    dtype = job.precision.parameters(adapted=bool(policy.lora or policy.adapter))
    if path is not None:
        return load_causal_lm(Model(path=path), device, dtype)
    torch.manual_seed(derive(job.experiment.seed, "initialization"))
    if policy.new is not None:
        return new_causal_lm(policy.new, job.tokenizer, device, dtype)
    model = load_causal_lm(policy, device, dtype, trainable=True)
    if policy.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model
