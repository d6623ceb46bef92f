"""Frozen references beside a policy in training: K of them scored back to back on the same rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from multiref_cli.config.schema import Level
from multiref_cli.models.decoder import Adapted
from multiref_cli.models.logprobs import Mix, score_references, token_logps
from multiref_cli.models.packing import Packed, pack
from multiref_cli.objectives.aggregate import masked_sum
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.references.models import response_ids
from multiref_cli.rewards.sample import Sample


@dataclass(frozen=True)
class ReferenceScores:
    """What K references say of B responses, on the CPU.

    Attributes:
        sums: (K, B) float64 log pi_i of whole responses in nats.
        mixed_sums: (B,) float64 log M of whole responses; normalized token by token at level=token.
        mixed: (B, T) log M of every token, 0 where masked; None at level=sequence, where M has no tokens.
        log_normalizers: (B, T) log F_t; None where the references are not seen together.
    """

    sums: Tensor
    mixed_sums: Tensor
    mixed: Tensor | None
    log_normalizers: Tensor | None


@dataclass(frozen=True)
class Member:
    """One reference of a mix.

    Attributes:
        name: in the metrics.
        model: frozen; `Adapted` where several adapters share a base.
        weight: alpha, above 0.
        tokenizer: its own, if it has another one than the policy.
    """

    name: str
    model: Any
    weight: float
    tokenizer: Any = None


class LiveReferences:
    """K frozen models with positive weights, resident together or one at a time.

    On the policy's device, or on another one if given. Given the CPU beside a policy on a GPU, the models wait in main
    memory and visit the policy's device one at a time.
    """

    def __init__(self, config: DictConfig, members: Sequence[Member], devices: tuple[str, str | None]) -> None:
        """Takes models that are loaded already.

        Args:
            config: of the run; its regularizer says how to mix, its rollout at which temperature.
            members: the K references, their weights above 0 and summing to one.
            devices: of the policy, and of the references (None: the same).
        """
        self.regularizer, self.temperature = config.regularizer, config.rollout.temperature
        self.members = list(members)
        weights = [member.weight for member in members]
        self.mix = Mix(self.regularizer.mean_order, tuple(weights))
        self.weights = torch.tensor(weights, dtype=torch.float64)
        policy_device, own_device = torch.device(devices[0]), torch.device(devices[1] or devices[0])
        self.visiting = own_device.type == "cpu" and policy_device.type != "cpu"
        self.device = policy_device if self.visiting else own_device

    @property
    def names(self) -> list[str]:
        """K names, in the order of the weights."""
        return [member.name for member in self.members]

    @property
    def models(self) -> list[Any]:
        """K models, in the order of the weights."""
        return [member.model for member in self.members]

    @torch.no_grad()
    def score(self, packed: Packed, samples: Sequence[Sample], vocabulary: int | None) -> ReferenceScores:
        """Log-probs of B responses under every reference, and of their mix.

        Args:
            packed: rows of the policy's tokens.
            samples: the same B responses as text, for references that read them with a tokenizer of their own.
            vocabulary: ids shared by the policy and the references with its tokenizer.
        """
        if self.visiting or any(member.tokenizer for member in self.members):
            sums = torch.stack([self._sums(member, packed, samples, vocabulary) for member in self.members])
            return ReferenceScores(sums, power_mean(sums, self.weights, self.mix.order), None, None)
        models, rows = self.models, packed.to(self.device)
        logps, (log_normalizers,) = score_references(models, rows, [self.mix], self.temperature, vocabulary)
        logps, log_normalizers = logps.cpu(), log_normalizers.cpu()
        sums = logps.sum(-1, dtype=torch.float64)
        if self.regularizer.level == Level.sequence:
            return ReferenceScores(sums, power_mean(sums, self.weights, self.mix.order), None, log_normalizers)
        mixed = self.mixed_tokens(logps, log_normalizers)
        return ReferenceScores(sums, masked_sum(mixed.double(), packed.mask, 1), mixed, log_normalizers)

    def mixed_tokens(self, logps: Tensor, log_normalizers: Tensor) -> Tensor:
        """(K, B, T) -> (B, T) token-level log M, divided by F_t unless the regularizer says otherwise."""
        mixed = power_mean(logps, self.weights.to(logps), self.mix.order)
        return mixed - log_normalizers if self.regularizer.normalized else mixed

    def _sums(self, member: Member, packed: Packed, samples: Sequence[Sample], vocabulary: int | None) -> Tensor:
        """(B,) log-probs of whole responses under one reference; it visits the device for the time of the pass."""
        module = member.model.model if isinstance(member.model, Adapted) else member.model
        if self.visiting:
            module.to(self.device)
        if member.tokenizer is not None:
            packed, vocabulary = _retokenized(member.tokenizer, samples), None
        logps = token_logps(member.model, packed.to(self.device), self.temperature, vocabulary=vocabulary).logps
        if self.visiting:
            module.to("cpu")
        return logps.cpu().sum(-1, dtype=torch.float64)


def _retokenized(tokenizer: Any, samples: Sequence[Sample]) -> Packed:
    """The responses under another tokenizer and chat template."""
    ids = [response_ids(tokenizer, one.messages, one.completion, one.finished) for one in samples]
    return pack([prompt for prompt, _ in ids], [[completion] for _, completion in ids], 0, share_prompt=False)
