"""The table of algorithms: one row each, with its settings (units: conf/algorithm/) and what the program asks of it.

A new algorithm is a row here, a module with what `algorithms.base.AlgorithmModule` lists, and a file in
conf/algorithm/. Nothing else compares an algorithm's name.
"""

from dataclasses import dataclass
from typing import ClassVar, Optional

from omegaconf import MISSING

from multiref_cli.config.ranges import COUNT, number


@dataclass(frozen=True)
class Algorithm:
    """What every row says.

    Attributes:
        module: dotted path of the code.
        title: what tables call it.
        regularized: whether references and beta play a part.
        online: whether it samples from the policy.
        rewarded: whether it needs a reward.
        reads_store: whether it trains on stored log-probabilities of its references.
        measures_pairs: whether its rows are preference pairs, which it judges held out (`base.PairJudge`).
        writes: whether what it trains writes responses.
        trains: whether there is anything to train; what does not has 0 steps and makes the sampler that is measured.
    """

    module: ClassVar[str]
    title: ClassVar[str]
    regularized: ClassVar[bool] = False
    online: ClassVar[bool] = False
    rewarded: ClassVar[bool] = False
    reads_store: ClassVar[bool] = False
    measures_pairs: ClassVar[bool] = False
    writes: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    name: str = MISSING

    @property
    def batch_size(self) -> int:
        """Training rows per optimizer step; 0 where nothing is trained."""
        keys = ("batch_pairs", "batch_prompts", "batch_rows")
        return next((getattr(self, key) for key in keys if hasattr(self, key)), 0)

    @property
    def pass_tokens(self) -> int:
        """Tokens of a forward and backward pass, padding included: `micro_tokens` of every algorithm."""
        return next((int(value) for key, value in vars(self).items() if key == "micro_tokens"), 0)


@dataclass(frozen=True)
class DpoSettings(Algorithm):
    module: ClassVar[str] = "multiref_cli.algorithms.dpo"
    title: ClassVar[str] = "Offline: DPO"
    regularized: ClassVar[bool] = True
    reads_store: ClassVar[bool] = True
    measures_pairs: ClassVar[bool] = True

    loss: str = "sigmoid"
    label_smoothing: float = number("[0, 0.5)", 0.0)
    batch_pairs: int = number(COUNT, 32)
    micro_tokens: int = number(COUNT, 8192)
    share_prompt: Optional[bool] = None


@dataclass(frozen=True)
class OnlineSettings(Algorithm):
    """What every algorithm that samples from its policy can be told."""

    online: ClassVar[bool] = True
    regularized: ClassVar[bool] = True

    batch_prompts: int = number(COUNT, 16)
    micro_tokens: int = number(COUNT, 16384)
    inner_iterations: int = number(COUNT, 1)
    baseline: str = "group_mean"
    advantage_scale: str = "none"
    loss_reduction: str = "dapo"
    importance: str = "token"
    sampler_correction: str = "auto"
    sampler_cap: float = number("[1, 1e6]", 2.0)
    clip_low: float = number("[0, 1]", 0.2)
    clip_high: float = number("[0, 1e6]", 0.2)
    max_length_constant: Optional[int] = number(COUNT, None)


@dataclass(frozen=True)
class GrpoSettings(OnlineSettings):
    module: ClassVar[str] = "multiref_cli.algorithms.grpo"
    title: ClassVar[str] = "Online: GRPO"
    rewarded: ClassVar[bool] = True


@dataclass(frozen=True)
class DistillSettings(OnlineSettings):
    module: ClassVar[str] = "multiref_cli.algorithms.distill"
    title: ClassVar[str] = "Online: distillation"

    teacher_share: float = number("[0, 1]", 0.0, later=True)


@dataclass(frozen=True)
class SftSettings(Algorithm):
    module: ClassVar[str] = "multiref_cli.algorithms.sft"
    title: ClassVar[str] = "Supervised fine-tuning"

    batch_rows: int = number(COUNT, 32)
    micro_tokens: int = number(COUNT, 8192)


@dataclass(frozen=True)
class RewardModelSettings(Algorithm):
    module: ClassVar[str] = "multiref_cli.algorithms.reward_model"
    title: ClassVar[str] = "Reward model"
    measures_pairs: ClassVar[bool] = True
    writes: ClassVar[bool] = False

    batch_pairs: int = number(COUNT, 32)
    micro_tokens: int = number(COUNT, 8192)
    center: float = number("[0, 1e6]", 0.0)
    minimum_accuracy: float = number("[0, 1]", 0.0)


@dataclass(frozen=True)
class UntrainedSettings(Algorithm):
    module: ClassVar[str] = "multiref_cli.algorithms.untrained"
    title: ClassVar[str] = "Untrained"
    regularized: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    sampler: str = "policy"
    best_of: int = number(COUNT, 1)
    selector: Optional[str] = None


ALGORITHMS: dict[str, type[Algorithm]] = {
    "dpo": DpoSettings,
    "grpo": GrpoSettings,
    "distill": DistillSettings,
    "sft": SftSettings,
    "reward_model": RewardModelSettings,
    "untrained": UntrainedSettings,
}
