"""The shape of an experiment: frozen dataclasses that every composed config becomes (units: conf/)."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from omegaconf import MISSING

from multiref_cli.config.algorithms import ALGORITHMS, Algorithm, DistillSettings
from multiref_cli.config.plain import LATER, changed, digest, from_plain, to_plain, without_later
from multiref_cli.config.ranges import COUNT, COUNT_OR_0, SEED, number, within
from multiref_cli.config.regularizer import Ctro, DivergenceTerm, Estimator, Level, Mix, Regularizer, States, Term
from multiref_cli.config.schedules import CONSTANT, AlphaSchedule, BetaSchedule, all_between, between, moved
from multiref_cli.config.weights import RULES, Routes, Weighing, routes_of, weighing_of, weights_of

__all__ = ["Ctro", "DivergenceTerm", "Estimator", "Level", "Mix", "Regularizer", "States", "Term"]


class BadRows(Enum):
    drop = "drop"
    refuse = "refuse"


@dataclass(frozen=True)
class Part:
    """A model of a merge, with its adapter if it has one."""

    path: str = MISSING
    revision: Optional[str] = None
    adapter: Optional[str] = None


@dataclass(frozen=True)
class Model:
    """A frozen model on disk or on the Hub, or `toy:<name>`; or with `kind: merge` one that is made of several.

    A merge has the weights sum_i weights_i theta_i, or with a base base + sum_i weights_i (theta_i - base); its `path`
    is then that formula (config.merges).
    """

    path: str = MISSING
    revision: Optional[str] = None
    dtype: Optional[str] = None
    adapter: Optional[str] = None
    tokenizer: Optional[str] = None
    trust_remote_code: bool = False
    kind: Optional[str] = None
    models: Optional[list[Part]] = None
    weights: Optional[list[float]] = field(default=None, metadata=within("[-100, 100]"))
    base: Optional[Part] = None


# Stands before the name of a served model where a path could stand.
SERVED = "served:"
# What stands for the URL of a server of rollouts where the run is to start it.
STARTED = "start"


@dataclass(frozen=True)
class Update:
    """How a reference moves: `reset`, it becomes the policy every so many optimizer steps; or `ema`, it becomes
    ema * itself + (1 - ema) * the policy every `every` steps."""

    reset: Optional[int] = number(COUNT, None)
    ema: Optional[float] = number("[0, 1]", None)
    every: Optional[int] = number(COUNT, None)

    @property
    def period(self) -> int:
        """Optimizer steps between two moves."""
        return self.reset or self.every or 1

    @property
    def kept(self) -> float:
        """Share of itself that a reference keeps at a move; 1 never moves."""
        return 0.0 if self.ema is None else self.ema


@dataclass(frozen=True)
class ReferenceSpec(Model):
    """A reference: a model with a path, or one that a server answers for, whose path is then made of its name."""

    name: str = MISSING
    update: Optional[Update] = None
    quantization: Optional[str] = None
    server: Optional[str] = None
    model: Optional[str] = None
    api_key_env: Optional[str] = None
    concurrency: int = number("[1, 4096]", 16)
    timeout_seconds: float = number("(0, 1e6]", 300.0)


# What the path of a served reference says already, and how its server is asked: neither changes a result.
_SERVER_KEYS = ("server", "model", "api_key_env", "concurrency", "timeout_seconds")
# Where an engine of rollouts runs, and how long it is waited for.
_ROLLOUT_PLACE = ("server", "python", "devices", "timeout_seconds")


@dataclass(frozen=True)
class Lora:
    rank: int = number(COUNT, 16)
    alpha: float = number("(0, 1e6]", 32.0)
    dropout: float = number("[0, 1)", 0.0)
    target_modules: Any = "all-linear"


@dataclass(frozen=True)
class Policy(Model):
    lora: Optional[Lora] = None
    gradient_checkpointing: bool = False
    new: Optional[dict[str, Any]] = None

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained, a new one or one to start from, and its base is not."""
        return bool(self.lora or self.adapter)


@dataclass(frozen=True)
class Data:
    name: str = MISSING
    path: Optional[str] = MISSING
    source: Optional[dict[str, Any]] = None
    revision: Optional[str] = None
    split: str = "train"
    held_out_path: Optional[str] = None
    held_out_split: Optional[str] = None
    held_out: float = number("[0, 1)", 0.1, note="a share")
    split_seed: int = number(SEED, 0)
    max_rows: Optional[int] = number(COUNT, None)
    columns: dict[str, str] = field(default_factory=dict)
    system_prompt: Optional[str] = None
    prompt_template: Optional[str] = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    date: str = "2024-07-26"
    max_prompt_tokens: Optional[int] = number(COUNT, 512)
    max_completion_tokens: int = number(COUNT, 512)
    bad_rows: BadRows = BadRows.drop
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardTerm:
    function: dict[str, Any] = MISSING
    weight: float = number("[-1e9, 1e9]", 1.0)


@dataclass(frozen=True)
class Reward:
    name: str = MISSING
    terms: dict[str, RewardTerm] = field(default_factory=dict)
    correct_at: Optional[float] = number("[-1e9, 1e9]", None)
    timeout_seconds: float = number("[0, 1e6]", 10.0, note="0 is no protection")


@dataclass(frozen=True)
class Rollout:
    engine: str = "transformers"
    group_size: int = number(COUNT, 8)
    temperature: float = number("[0, 100]", 1.0, note="0 is greedy")
    top_p: float = number("(0, 1]", 1.0, note="1 is off")
    top_k: int = number(COUNT_OR_0, 0, note="0 is off")
    min_p: float = number("[0, 1)", 0.0, note="0 is off")
    max_new_tokens: int = number(COUNT, 256)
    batch_size: int = number(COUNT, 256)
    options: dict[str, Any] = field(default_factory=dict)
    server: Optional[str] = None
    python: Optional[str] = None
    devices: Optional[str] = None
    timeout_seconds: float = number("(0, 1e6]", 600.0)

    @property
    def starts_server(self) -> bool:
        """Whether the engine is a server that the run starts and ends."""
        return self.server == STARTED

    @property
    def truncated(self) -> bool:
        """Whether it leaves tokens out, so that averages over its samples are none over the policy."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class Optimizer:
    name: str = "adamw"
    learning_rate: float = number("(0, 1000]", MISSING)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999], metadata=within("[0, 1)", length=2))
    epsilon: float = number("(0, 1]", 1e-8)
    weight_decay: float = number("[0, 1000]", 0.0)
    schedule: str = "linear"
    warmup: float = number("[0, 1e6]", 0.1)
    max_gradient_norm: float = number("[0, 1e9]", 1.0, note="0 is off")
    matrix_learning_rate: float = number("(0, 1000]", 0.02)


@dataclass(frozen=True)
class Scorer(Model):
    """A sequence-classification reward model that scores responses in an evaluation.

    `whole_template`: it was trained with all that the chat template writes after a response.
    """

    minimum_accuracy: Optional[float] = number("[0, 1]", None)
    whole_template: bool = False


@dataclass(frozen=True)
class Evaluation:
    prompts: int = number(COUNT_OR_0, 256, note="0 is off")
    samples_per_prompt: int = number(COUNT, 1)
    temperature: float = number("[0, 100]", 1.0, note="0 is greedy")
    top_p: float = number("(0, 1]", 1.0, note="1 is off")
    max_new_tokens: int = number(COUNT, 256)
    batch_size: int = number(COUNT, 64)
    seed: int = number(SEED, 1)
    split: str = "held_out"
    scorer: Optional[Scorer] = None
    scorer_file: Optional[str] = field(default=None, metadata=LATER)
    gold: bool = True
    win_rate: bool = True
    greedy: bool = field(default=False, metadata=LATER)
    bootstrap: int = number("[1, 1e6]", 2000)
    tasks: list[str] = field(default_factory=list, metadata=LATER)
    task_limit: Optional[int] = number(COUNT, None, later=True)
    task_fewshot: Optional[int] = number(COUNT_OR_0, None, later=True)
    task_chat_template: Optional[bool] = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Tracking:
    name: str = "off"
    mode: str = "offline"
    project: str = "multiref"
    entity: Optional[str] = None
    tags: list[str] = field(default_factory=list)


# Ways to train, and the type of the trained parameters in each (models.precision); `auto` is one of the first two.
PRECISIONS = {
    **{"float32": "float32", "bf16_mixed": "float32"},
    **{"bf16_master": "bfloat16", "bf16_kahan": "bfloat16", "bf16": "bfloat16"},
}


def torch_name(device: str) -> str:
    """A device's name with its number: `cuda` is `cuda:0`."""
    return device if ":" in device else f"{device}:0"


@dataclass(frozen=True)
class Hardware:
    device: str = "auto"
    reference_device: Optional[str] = None
    dtype: str = "auto"
    precision: str = "auto"
    threads: Optional[int] = number("[1, 4096]", None)
    processes: int = number("[1, 1024]", 1)
    sharding: str = "none"
    cache_dir: Optional[str] = None
    keep_hidden: bool = False
    checkpoint_every: int = number(COUNT_OR_0, 50, note="0 is at the end only")
    checkpoint_minutes: Optional[float] = number("(0, 1e6]", None)
    checkpoint_async: bool = False
    keep_checkpoints: int = number(COUNT, 2)
    log_every: int = number(COUNT, 1)
    deterministic: bool = True

    @property
    def device_name(self) -> str:
        """Name of the policy's torch device: as given, else the GPU where there is one."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def dtype_name(self, given: str | None = None) -> str:
        """Parameter type of a frozen model: its own, else hardware.dtype, else bfloat16 on GPU, float32 elsewhere."""
        if given:
            return given
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if self.device_name.startswith("cuda") else "float32"

    @property
    def cache_folder(self) -> Path:
        """Where what is made once per machine lives: cache_dir, $MULTIREF_CACHE, else ~/.cache/multiref."""
        given = self.cache_dir or os.environ.get("MULTIREF_CACHE") or Path.home() / ".cache" / "multiref"
        return Path(given).expanduser()


@dataclass(frozen=True)
class RunSettings:
    name: Optional[str] = None
    dir: Optional[str] = None


# What stands before a name of the embedded world, where a path could stand.
TOY = "toy:"
# Parts that can change without changing a result: where it runs, where it is written, how it is watched.
_WITHOUT_EFFECT = ("run", "tracking", "hardware")
_HARDWARE_WITH_EFFECT = ("dtype", "precision")


@dataclass(frozen=True)
class Experiment:
    """Everything one run depends on, and all that follows from it; the root of every composed config.

    A variation of an experiment is made with `dataclasses.replace`; what follows is then derived anew.
    """

    algorithm: Algorithm = field(default_factory=Algorithm)
    regularizer: Optional[Regularizer] = None
    references: list[ReferenceSpec] = field(default_factory=list)
    alpha: Any = None
    alpha_schedule: Optional[AlphaSchedule] = field(default=None, metadata=LATER)
    beta: float = number("[0, 1e6]", 0.1)
    beta_schedule: Optional[BetaSchedule] = field(default=None, metadata=LATER)
    seed: int = number(SEED, 0)
    world: int = number(SEED, 0)
    rival: Optional[str] = None
    policy: Policy = field(default_factory=Policy)
    data: Data = field(default_factory=Data)
    reward: Optional[Reward] = None
    rollout: Rollout = field(default_factory=Rollout)
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: Optional[int] = number(COUNT, None)
    epochs: Optional[float] = number("(0, 1e6]", None)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    hardware: Hardware = field(default_factory=Hardware)
    run: RunSettings = field(default_factory=RunSettings)

    @property
    def rule(self) -> str | None:
        """The rule that alpha is still to be chosen by; None where it is weights."""
        return self.alpha if isinstance(self.alpha, str) and self.alpha in RULES else None

    @property
    def evenly(self) -> "Experiment":
        """The same with equal weights: what stands in for an alpha that is still to be chosen."""
        return replace(self, alpha=[1 / len(self.references)] * len(self.references))

    @cached_property
    def weights(self) -> list[float]:
        """Alpha as a list that sums to one, one weight a reference; of `routes` their mean; empty without any."""
        if self.weighing is not None:
            return [1 / len(self.references)] * len(self.references)
        if self.routes is not None:
            columns = zip(*self.routes.weights.values())
            return [sum(column) / len(self.routes.weights) for column in columns]
        return weights_of(self.alpha, len(self.references), self._signed) if self.references else []

    @property
    def _signed(self) -> bool:
        return self.regularizer is not None and self.regularizer.signed

    @property
    def adaptive_weights(self) -> bool:
        """Whether ARWC makes the weights of each pair: of alpha then counts alone which are positive."""
        return self.penalized and self.penalty.arwc is not None and self.alone is None and self.routes is None

    @property
    def weighing(self) -> Weighing | None:
        """The function that weighs the references of each row, in place of `weights`; None where there is none."""
        return weighing_of(self.alpha)

    @cached_property
    def routes(self) -> Routes | None:
        """Weights by a column of the rows; None where all rows have the same."""
        return routes_of(self.alpha, [one.name for one in self.references], self._signed)

    def route_of(self, columns: Mapping[str, Any]) -> str | None:
        """Which of `terms_by_route` a row with these columns has."""
        return None if self.routes is None else self.routes.value_of(columns)

    @property
    def moving_beta(self) -> BetaSchedule | None:
        """How beta moves; None where it does not."""
        schedule = self.beta_schedule
        return None if schedule is None or schedule.kind == CONSTANT or not self.penalized else schedule

    def beta_at(self, step: int, total: int) -> float:
        """beta at a step from 0 of so many; of a controller the one at the start."""
        schedule = self.moving_beta
        if schedule is None or schedule.end is None:
            return self.beta
        return between(self.beta, schedule.end, moved(schedule.kind, step, total))

    @property
    def beta_words(self) -> str:
        """beta in sentences, with how it moves."""
        return f"{self.beta:g}" if self.moving_beta is None else self.moving_beta.words(self.beta)

    @cached_property
    def alpha_end(self) -> list[float] | None:
        """The K weights that alpha moves to; None where it does not move."""
        schedule = self.alpha_schedule
        if schedule is None or schedule.kind == CONSTANT or schedule.end is None or not self.penalized:
            return None
        return weights_of(schedule.end, len(self.references), self._signed)

    def alpha_moved(self, step: int, total: int) -> float:
        """Share of the way from alpha to its end at a step from 0 of so many."""
        return (
            0.0
            if self.alpha_schedule is None or self.alpha_end is None
            else moved(self.alpha_schedule.kind, step, total)
        )

    def weights_moved(self, share: float) -> list[float]:
        """Weights of the active references so far on the way to `alpha_end`."""
        found = all_between(self.weights, self.alpha_end or self.weights, share)
        return [found[i] for i in self._active]

    def terms_moved(self, share: float) -> tuple[Term, ...]:
        """The summands over the active references so far on the way to `alpha_end`."""
        return self._terms(self.active_references, self.weights_moved(share))

    @property
    def final(self) -> "Experiment":
        """The same with the weights that its schedules end at: what its trained policy is measured by."""
        if self.moving_beta is None and self.alpha_end is None:
            return self
        beta = self.beta if self.moving_beta is None or self.moving_beta.end is None else self.moving_beta.end
        alpha = self.alpha if self.alpha_end is None else self.alpha_end
        return replace(self, alpha=alpha, beta=beta, alpha_schedule=None, beta_schedule=None)

    def active_weights_of_row(self, columns: Mapping[str, Any]) -> list[float]:
        """The same of the active references."""
        weights = self.weights_of_row(columns)
        return [weights[i] for i in self._active]

    def weights_of_row(self, columns: Mapping[str, Any]) -> list[float]:
        """The K weights of a row with these columns."""
        value = self.route_of(columns)
        return self.weights if self.routes is None or value is None else self.routes.weights[value]

    @cached_property
    def _active(self) -> list[int]:
        """Numbers of the references with a weight, of any route and at any step."""
        rows = [self.weights] if self.routes is None else list(self.routes.weights.values())
        rows += [] if self.alpha_end is None else [self.alpha_end]
        return [i for i in range(len(self.references)) if any(weights[i] != 0 for weights in rows)]

    @cached_property
    def active_references(self) -> list[ReferenceSpec]:
        """The references with a weight; the others are never loaded."""
        return [self.references[i] for i in self._active]

    @property
    def served(self) -> list[str]:
        """Names of the references that a server answers for."""
        return [one.name for one in self.references if one.server is not None]

    @cached_property
    def active_weights(self) -> list[float]:
        """One weight an active reference."""
        return [self.weights[i] for i in self._active]

    @property
    def penalty(self) -> Regularizer:
        """The regularizer of an algorithm that has one, which is checked where an experiment is composed."""
        if self.regularizer is None:
            raise ValueError(f"algorithm={self.algorithm.name} has no regularizer")
        return self.regularizer

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The summands of the penalty towards the active references, for all rows; empty where there is none.

        Raises:
            ValueError: rows have weights of their own, see `terms_by_route`.
        """
        if self.routes is not None:
            raise ValueError("rows have weights of their own")
        return self._terms(self.active_references, self.active_weights) if self.regularized else ()

    @cached_property
    def terms_by_route(self) -> dict[str | None, tuple[Term, ...]]:
        """The summands over the active references for every value of `routes`; under None where all rows are alike."""
        if self.routes is None:
            return {None: self.terms}
        rows = self.routes.weights.items()
        return {value: self._terms(self.active_references, [w[i] for i in self._active]) for value, w in rows}

    @property
    def one_mix(self) -> bool:
        """Whether every row has a single summand, whose mixed reference is *the* mixed reference."""
        return all(len(terms) == 1 for terms in self.terms_by_route.values())

    @cached_property
    def terms_of_all(self) -> tuple[Term, ...]:
        """`terms` over all references, those of weight 0 among them; of `routes` those of all values in turn."""
        rows = [self.weights] if self.routes is None else list(self.routes.weights.values())
        return tuple(t for w in rows for t in self._terms(self.references, w)) if self.regularized else ()

    def _terms(self, references: list[ReferenceSpec], weights: list[float]) -> tuple[Term, ...]:
        return self.penalty.summands([one.name for one in references], self.start, weights)

    @property
    def sharded(self) -> bool:
        """Whether the processes of the run divide its models among them."""
        return self.hardware.processes > 1 and self.hardware.sharding == "full"

    @property
    def precision(self) -> str:
        """How the policy is trained, one of PRECISIONS."""
        if self.hardware.precision != "auto":
            return self.hardware.precision
        return "bf16_mixed" if self.hardware.dtype_name(self.policy.dtype) == "bfloat16" else "float32"

    @property
    def reference_type(self) -> str:
        """What references that name no type compute in: hardware.dtype; where that is open, or a score exponential in
        the log-ratio, as the policy does, so that the rounding of both is the same."""
        exponential = any(isinstance(term.score, float) and term.score != 0 for term in self.terms_of_all)
        if self.hardware.dtype != "auto" and not (exponential and self.precision == "bf16_mixed"):
            return self.hardware.dtype
        adapted = self.policy.adapted  # its frozen base is in bfloat16
        whole = PRECISIONS[self.precision] == "float32" and not adapted
        return self.precision if whole or self.precision == "float32" else "bfloat16"

    @property
    def regularized(self) -> bool:
        """Whether references and beta play a part."""
        return self.algorithm.regularized and self.regularizer is not None and bool(self.references)

    @property
    def penalized(self) -> bool:
        """Whether there is a penalty: only then references take part in training."""
        return self.regularized and self.beta > 0

    @property
    def estimator(self) -> Estimator | None:
        """The online estimator, as given or the usual one; None where nothing is estimated.

        A reference with a tokenizer of its own, or behind a server, scores whole responses only: the penalty is then
        usually in the reward.
        """
        if not (self.algorithm.online and self.regularized):
            return None
        own, active = (None, self.policy.tokenizer), self.active_references
        whole = any(one.tokenizer not in own or one.server is not None for one in active)
        usual = Estimator.reward if whole else self.penalty.usual_estimator
        return self.penalty.estimator or usual

    @property
    def in_loss(self) -> bool:
        """Whether the online penalty is a loss term at each token of the policy's responses."""
        on_policy = self.estimator is not None and self.penalty.states is States.policy
        return on_policy and self.estimator is not None and not self.estimator.in_reward

    @property
    def to_go(self) -> bool:
        """Whether a token is charged for what its response has still to pay: every loss term unless it says no."""
        return self.in_loss and self.penalty.to_go is not False

    @property
    def estimator_name(self) -> str | None:
        """The online estimator, and that it takes states as given where it does; None where nothing is estimated."""
        if self.estimator is None:
            return None
        return self._estimated + (", states given" if self.in_loss and not self.to_go else "")

    @property
    def _estimated(self) -> str:
        number = f"{self.penalty.topk}" if self.estimator is Estimator.topk else ""
        return ("" if self.estimator is None else self.estimator.name) + number

    @property
    def taught(self) -> int:
        """Stored responses of its references to each prompt that a run trains on beside the policy's own."""
        share = self.algorithm.teacher_share if isinstance(self.algorithm, DistillSettings) else 0.0
        return round(share * self.rollout.group_size)

    @property
    def reads_samples(self) -> bool:
        """Whether a run trains on stored samples of its references."""
        stored = self.algorithm.online and self.regularized and self.penalty.states is States.reference
        return self.penalized and (stored or self.taught > 0)

    @property
    def reads_store(self) -> bool:
        """Whether a run trains on stored results of its references: log-probabilities or samples."""
        return (self.penalized and self.algorithm.reads_store) or self.reads_samples

    @property
    def compares_samples(self) -> bool:
        """Whether its evaluation compares scores with those of stored samples of the references."""
        evaluation = self.evaluation
        scored = evaluation.scorer is not None or (evaluation.gold and self.reward is not None)
        return evaluation.prompts > 0 and evaluation.win_rate and scored and self.regularized

    @property
    def role(self) -> str:
        """What it is in a comparison: beta0 (no penalty), single (one reference of several alone), rival or grid."""
        if self.rival is not None:
            return "rival"
        if not self.regularized:
            return "grid"
        if self.beta == 0:
            return "beta0"
        return "single" if len(self.references) > 1 and len(self.active_references) == 1 else "grid"

    @property
    def alone(self) -> str | None:
        """Name of the only reference with a weight, if there is but one."""
        return self.active_references[0].name if len(self.active_references) == 1 else None

    @property
    def start(self) -> str | None:
        """Name of the reference that the policy starts from, if it is among them."""
        return next((reference.name for reference in self.references if reference.path == self.policy.path), None)

    @property
    def penalty_name(self) -> str:
        """The regularizer's name, with the online estimator where it is not the usual one, and states taken as given.

        The alias of a file stands for all that the file says.
        """
        parts = [self.penalty.title]
        if parts == [self.penalty.derived_name]:
            if self.estimator is not None and self.estimator is not self.penalty.usual_estimator:
                parts.append(self._estimated)
            if self.in_loss and not self.to_go:
                parts.append("states_given")
        return "-".join(parts)

    @property
    def condition(self) -> str:
        """Readable name of what is compared, without the seed: `dpo-rkl-a0.5-b1`."""
        if self.rival is not None:
            return f"rival-{re.sub(r'[^0-9A-Za-z.]+', '_', self.rival.replace('α=', 'a')).strip('_')}"
        if not self.regularized:
            return f"{self.algorithm.name}-{self.data.name}"
        taught = f"_teacher{self.taught / self.rollout.group_size:g}" if self.taught else ""
        if self.beta == 0:
            return f"{self.algorithm.name}-beta0"
        weights = self.weights[:1] if len(self.weights) == 2 else self.weights
        mix = f"single_{self.alone}" if self.alone else "a" + "_".join(f"{weight:g}" for weight in weights)
        if self.routes is not None and not self.alone:
            mix = f"by_{self.routes.column}_{digest(self.routes.plain)[:4]}"
        if self.weighing is not None and not self.alone:
            mix = f"by_{self.weighing.name}_{digest(self.weighing.plain)[:4]}"
        if self.alpha_end is not None and self.alpha_schedule is not None:
            end = self.alpha_end[:1] if len(self.alpha_end) == 2 else self.alpha_end
            mix += f"_{self.alpha_schedule.kind}" + "_".join(f"{weight:g}" for weight in end)
        beta = f"{self.beta:g}" + ("" if self.moving_beta is None else f"_{self.moving_beta.title}")
        return f"{self.algorithm.name}{taught}-{self.penalty_name}-{mix}-b{beta}"

    @property
    def replicate(self) -> str:
        """What tells runs of a condition apart: the seed, and the world where it is not the shipped one."""
        return f"w{self.world}-s{self.seed}" if self.world else f"s{self.seed}"

    @cached_property
    def toy_names(self) -> list[str]:
        """Names of the embedded world that it mentions, without `toy:`, sorted."""
        found: set[str] = set()

        def collect(text: str) -> str:
            if text.startswith(TOY):
                found.add(text.removeprefix(TOY))
            return text

        changed(self, collect)
        return sorted(found)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The same as JSON-ready dictionaries, lists and numbers; what config.yaml holds."""
        return to_plain(self)

    def content(self, *without: str) -> dict[str, Any]:
        """The part of `plain` that a result depends on, less some keys of the root."""
        kept = {key: value for key, value in self.plain.items() if key not in (*_WITHOUT_EFFECT, *without)}
        if self.world == 0:  # the shipped world: what configs meant before there were others
            kept.pop("world", None)
        if self.rival is None:
            kept.pop("rival", None)
        kept = without_later(self, kept)
        for key, moves in (("beta_schedule", self.moving_beta), ("alpha_schedule", self.alpha_end)):
            if moves is None:
                kept.pop(key, None)
        kept["algorithm"] = without_later(self.algorithm, kept["algorithm"])
        if "evaluation" in kept:
            kept["evaluation"] = without_later(self.evaluation, kept["evaluation"])
        kept["hardware"] = {key: self.plain["hardware"][key] for key in _HARDWARE_WITH_EFFECT}
        if "rollout" in kept:
            kept["rollout"] = {key: value for key, value in kept["rollout"].items() if key not in _ROLLOUT_PLACE}
        for part in ("policy", "references", "evaluation"):
            if part in kept:
                kept[part] = _without_idle(kept[part])
        if "references" in kept:
            found = kept["references"]
            kept["references"] = [{k: v for k, v in one.items() if k not in _SERVER_KEYS} for one in found]
        if self.regularizer is not None and "regularizer" in kept:
            # as they are used, whether named or left to their defaults; None where nothing reads them
            used: dict[str, Any] = {"estimator": None, "to_go": None}
            if self.estimator is not None:
                used = {"estimator": self.estimator.name, "to_go": self.to_go}
            used |= {} if self.estimator is Estimator.clipped else {"ratio_clip": None}
            unread = ("name",) if self.estimator is Estimator.topk else ("name", "topk")
            named = {key: value for key, value in kept["regularizer"].items() if key not in unread}
            kept["regularizer"] = without_later(self.regularizer, named) | used
        if self.references and "alpha" not in without:
            by = self.routes or self.weighing
            kept["alpha"] = self.weights if by is None else by.plain
        return kept

    @cached_property
    def hash(self) -> str:
        """sha256 (first 12 digits) of everything that a result depends on: what a run is known by."""
        return digest(self.content())

    @cached_property
    def condition_hash(self) -> str:
        """The same without the seed: what a condition is known by."""
        return digest(self.content("seed"))

    @cached_property
    def result_hash(self) -> str:
        """What the trained policy of a condition depends on: with beta 0 neither references nor regularizer matter, and
        where ARWC makes the weights, of alpha only which are positive."""
        if self.role == "beta0":
            return digest(self.content("seed", "regularizer", "alpha"))
        if self.adaptive_weights:
            return digest([self.content("seed", "alpha"), [one.name for one in self.active_references]])
        return self.condition_hash

    @property
    def run_name(self) -> str:
        """Name of the run folder: as given, else the condition, the seed (and world) and the start of the hash."""
        return self.run.name or f"{self.condition}-{self.replicate}-{self.hash[:6]}"

    @property
    def folder(self) -> Path:
        """Folder of the run: `run.dir`, else runs/<name>."""
        return Path(self.run.dir).expanduser() if self.run.dir else Path("runs") / self.run_name

    @property
    def folder_key(self) -> str:
        """The key that its folder is given by."""
        return "run.dir" if self.run.dir else "run.name"


# Keys of a model that count where they are given: configs from before there were such models keep their hashes.
_GIVEN = ("kind", "models", "weights", "base", "update", "quantization")


def _without_idle(value: Any) -> Any:
    """Plain values less the keys of models that say nothing."""
    if isinstance(value, list):
        return [_without_idle(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_idle(one) for key, one in value.items() if one is not None or key not in _GIVEN}


def experiment_of(content: Mapping[str, Any]) -> Experiment:
    """The experiment that `Experiment.plain` stands for, also as an earlier version wrote it; nothing is checked."""
    kind = ALGORITHMS[content["algorithm"]["name"]]
    rest = {key: value for key, value in content.items() if key != "algorithm"}
    return replace(from_plain(Experiment, rest), algorithm=from_plain(kind, content["algorithm"]))
