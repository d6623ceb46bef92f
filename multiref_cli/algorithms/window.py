"""A window of rollouts: what one generation yields and how it is laid out for the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from multiref_cli.config.schema import Term
from multiref_cli.models.packing import Packed, micro_batches, pack, row_length, sharing_pays
from multiref_cli.objectives.advantages import zero_spread
from multiref_cli.objectives.aggregate import StepSize
from multiref_cli.references.live import ReferenceScores
from multiref_cli.rewards.combine import RewardBatch
from multiref_cli.rewards.sample import Sample


@dataclass
class Window:
    """The rollouts of one generation with all that was found out about them; serves `inner_iterations` steps.

    B = P * G responses, prompt-major, padded to T tokens. Tensors and plain values only: it goes into checkpoints.

    Attributes:
        number: windows before this one.
        rows: (P,) prompt numbers.
        completions: [P][G] token ids.
        rewards: (P, G) without the penalty; zeros where none is given.
        advantages: (P, G).
        metrics: of the rollouts, times left out.
        samples: a few rows to look at.
        old_logps: (B, T) of the policy that sampled; the sampler's own until the first inner iteration fills it.
        scores: what the references say; None where they are not scored ahead of the loss.
        sampler_logps: (B, T) as the engine gave them; None where they are the trainer's own.
    """

    number: int
    rows: list[int]
    completions: list[list[list[int]]]
    rewards: Tensor
    advantages: Tensor
    metrics: dict[str, float]
    samples: list[dict[str, Any]]
    old_logps: Tensor
    scores: ReferenceScores | None = None
    sampler_logps: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return vars(self) | {"scores": None if self.scores is None else vars(self.scores)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Window":
        """The window that `state_dict` gave."""
        return cls(**state | {"scores": None if state["scores"] is None else ReferenceScores(**state["scores"])})


@dataclass(frozen=True)
class GroupMicro:
    """Some groups of a window: their rows for the model, their places among its B responses, the penalty's summands."""

    packed: Packed
    places: Tensor
    step: StepSize
    first: bool
    terms: tuple[Term, ...] = ()

    def unnoted(self) -> "GroupMicro":
        """The same as of a later inner iteration: no log-probs are kept of it, and beta does not see it."""
        return replace(self, first=False)


@dataclass(frozen=True)
class StoredMicro:
    """Stored responses of the references to some prompts; each has a weight, and the weights' mean over a step is 1."""

    packed: Packed
    weights: Tensor
    step: StepSize


@dataclass(frozen=True)
class TaughtMicro:
    """Stored responses of the teachers to some prompts, whose states a distillation takes; the penalty's summands."""

    packed: Packed
    step: StepSize
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Layout:
    """How groups become rows: the most tokens of a pass, whether prompts may be shared, policy width, processes."""

    micro_tokens: int
    may_share: bool
    hidden_size: int
    processes: int = 1

    def packs(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]
    ) -> list[tuple[Tensor, Packed]]:
        """Groups of similar length together: (places among the B responses, rows) of every pass.

        Args:
            prompts: P prompts.
            completions: [P][G] responses, the same number to each prompt.
        """
        size = len(completions[0])
        lengths = [[len(one) for one in group] for group in completions]
        share = self.may_share and sharing_pays([len(p) for p in prompts], lengths, self.hidden_size)
        row_lengths = [row_length(len(p), group, share) for p, group in zip(prompts, lengths)]
        found = []
        for part in micro_batches(row_lengths, self.micro_tokens, 1 if share else size, self.processes):
            places = torch.tensor([p * size + g for p in part for g in range(size)])
            found.append((places, pack([prompts[p] for p in part], [completions[p] for p in part], 0, share)))
        return found


def step_size(completions: Sequence[Sequence[Sequence[int]]], length: float) -> StepSize:
    """Sequences and tokens of all responses of a step, and the constant length of `dr_grpo`."""
    lengths = [len(one) for group in completions for one in group]
    return StepSize(len(lengths), sum(lengths), length)


def rollout_metrics(samples: Sequence[Sample], completions: list[list[list[int]]]) -> dict[str, float]:
    """What can be said of rollouts without a model: B samples, [P][G] token ids."""
    lengths = [len(one) for group in completions for one in group]
    truncated = sum(not one.finished for one in samples) / len(samples)
    return {"length": sum(lengths) / len(lengths), "truncated_fraction": truncated}


def reward_metrics(judged: RewardBatch, rewards: Tensor) -> dict[str, float]:
    """What can be said of (P, G) rewards: with means of the single terms, where there are several, and late calls."""
    found = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(unbiased=False)),
        "zero_spread_fraction": float(zero_spread(rewards).double().mean()),
    }
    if len(judged.terms) > 1:
        found |= {
            f"reward/{name}": mean for name, values in judged.terms.items() if (mean := _mean(values)) is not None
        }
    silent = [value for values in judged.terms.values() for value in values]
    if None in silent:
        found["reward_not_applicable_fraction"] = silent.count(None) / len(silent)
    if judged.cut:
        found["reward_inputs_cut"] = float(judged.cut)
    late = sum(len(rows) for rows in judged.timeouts.values())
    return found | ({"reward_timeouts": float(late)} if late else {})


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values where a term applies."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """(B, T) float32 of rows of different lengths, zeros on the right."""
    found = torch.zeros(len(rows), max(len(row) for row in rows))
    for place, row in enumerate(rows):
        found[place, : len(row)] = torch.tensor(row)
    return found
