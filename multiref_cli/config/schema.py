"""The shape of an experiment: typed dataclasses that every composed config is merged over (units: conf/)."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from omegaconf import MISSING


class Level(Enum):
    """Where the mean over references is taken: over whole responses (the theorems) or at every token."""

    sequence = "sequence"
    token = "token"


class Estimator(Enum):
    """How the online penalty is estimated; each has its own gradient (see objectives/penalty.py)."""

    reward = "reward"
    exact = "exact"
    k2 = "k2"
    k3 = "k3"
    k3_ratio = "k3_ratio"
    clipped = "clipped"


class States(Enum):
    """Whose responses the penalty is measured on."""

    policy = "policy"
    reference = "reference"


class BadRows(Enum):
    drop = "drop"
    refuse = "refuse"


@dataclass
class Ctro:
    """MRPO's clipped trust-region on the references (arXiv 2405.16388)."""

    epsilon: float = 0.1
    adaptive: bool = False
    anchor: Optional[str] = None


@dataclass
class Regularizer:
    name: str = MISSING
    mean_order: float = MISSING
    score_order: float = MISSING
    level: Level = Level.sequence
    estimator: Optional[Estimator] = None
    normalized: bool = True
    states: States = States.policy
    score_clip: float = 10.0
    ratio_clip: Optional[float] = None
    ctro: Optional[Ctro] = None
    arwc: bool = False
    multi_loss: bool = False


@dataclass
class Model:
    """A frozen model on disk or on the Hub, or `toy:<name>`."""

    path: str = MISSING
    revision: Optional[str] = None
    dtype: Optional[str] = None
    adapter: Optional[str] = None
    tokenizer: Optional[str] = None
    trust_remote_code: bool = False


@dataclass
class Reference(Model):
    name: str = MISSING


@dataclass
class Lora:
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: Any = "all-linear"


@dataclass
class Policy(Model):
    lora: Optional[Lora] = None
    gradient_checkpointing: bool = False
    new: Optional[dict[str, Any]] = None


@dataclass
class Data:
    name: str = MISSING
    path: Optional[str] = MISSING
    source: Optional[dict[str, Any]] = None
    revision: Optional[str] = None
    split: str = "train"
    held_out_path: Optional[str] = None
    held_out_split: Optional[str] = None
    held_out: float = 0.1
    split_seed: int = 0
    max_rows: Optional[int] = None
    columns: dict[str, str] = field(default_factory=dict)
    system_prompt: Optional[str] = None
    prompt_template: Optional[str] = None
    max_prompt_tokens: int = 512
    max_completion_tokens: int = 512
    bad_rows: BadRows = BadRows.drop
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class RewardTerm:
    function: dict[str, Any] = MISSING
    weight: float = 1.0


@dataclass
class Reward:
    name: str = MISSING
    terms: dict[str, RewardTerm] = field(default_factory=dict)
    timeout_seconds: float = 10.0


@dataclass
class Rollout:
    engine: str = "transformers"
    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 256
    batch_size: int = 64
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Optimizer:
    name: str = "adamw"
    learning_rate: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "linear"
    warmup: float = 0.0
    max_gradient_norm: float = 1.0
    matrix_learning_rate: float = 0.02


@dataclass
class Algorithm:
    name: str = MISSING


@dataclass
class Dpo(Algorithm):
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    batch_pairs: int = 32
    micro_tokens: int = 8192
    share_prompt: Optional[bool] = None


@dataclass
class Grpo(Algorithm):
    batch_prompts: int = 16
    micro_tokens: int = 16384
    inner_iterations: int = 1
    baseline: str = "group_mean"
    advantage_scale: str = "group"
    loss_reduction: str = "grpo"
    importance: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    max_length_constant: Optional[int] = None


@dataclass
class Sft(Algorithm):
    batch_rows: int = 32
    micro_tokens: int = 8192


@dataclass
class RewardModel(Algorithm):
    batch_pairs: int = 32
    micro_tokens: int = 8192
    center: float = 0.0
    minimum_accuracy: float = 0.0


ALGORITHMS = {"dpo": Dpo, "grpo": Grpo, "sft": Sft, "reward_model": RewardModel}


@dataclass
class Scorer(Model):
    """A sequence-classification reward model that scores responses in an evaluation.

    `whole_template`: it was trained with all that the chat template writes after a response.
    """

    minimum_accuracy: Optional[float] = None
    whole_template: bool = False


@dataclass
class Evaluation:
    prompts: int = 256
    samples_per_prompt: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 64
    seed: int = 1
    split: str = "held_out"
    scorer: Optional[Scorer] = None
    gold: bool = True
    win_rate: bool = True
    bootstrap: int = 2000


@dataclass
class Tracking:
    name: str = "off"
    mode: str = "offline"
    project: str = "multiref"
    entity: Optional[str] = None
    tags: list[str] = field(default_factory=list)


@dataclass
class Hardware:
    device: str = "auto"
    reference_device: Optional[str] = None
    dtype: str = "auto"
    threads: Optional[int] = None
    cache_dir: Optional[str] = None
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    log_every: int = 1
    deterministic: bool = True


@dataclass
class Run:
    name: Optional[str] = None
    dir: Optional[str] = None


@dataclass
class Experiment:
    """Everything one run depends on; the root of every composed config."""

    algorithm: Algorithm = field(default_factory=Algorithm)
    regularizer: Optional[Regularizer] = None
    references: list[Reference] = field(default_factory=list)
    alpha: Any = None
    beta: float = 0.1
    seed: int = 0
    policy: Policy = field(default_factory=Policy)
    data: Data = field(default_factory=Data)
    reward: Optional[Reward] = None
    rollout: Rollout = field(default_factory=Rollout)
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: Optional[int] = None
    epochs: Optional[float] = None
    first: Optional[str] = None
    second: Optional[str] = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    hardware: Hardware = field(default_factory=Hardware)
    run: Run = field(default_factory=Run)
