"""Frozen references beside a policy in training: K of them scored back to back on the same rollouts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from multiref_cli.config.schema import Level
from multiref_cli.models.logprobs import Mix, reference_logps, token_logps
from multiref_cli.models.packing import Packed, pack
from multiref_cli.objectives.mixing import power_mean


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


# One response of a batch as text, for references that read it with a tokenizer of their own: to (prompt, completion).
Retokenize = Callable[[int], tuple[Sequence[int], Sequence[int]]]


class LiveReferences:
    """K frozen models with positive weights, resident together or one at a time.

    On the policy's device, or on another one if given. Given the CPU beside a policy on a GPU, the models wait in main
    memory and visit the policy's device one at a time.
    """

    def __init__(
        self, config: DictConfig, names: list[str], models: list[Any], weights: list[float], devices: tuple[str, str | None]
    ) -> None:
        """Takes models that are loaded already.

        Args:
            config: of the run; its regularizer says how to mix, its rollout at which temperature.
            names: K names.
            models: K frozen models.
            weights: K positive weights that sum to one.
            devices: of the policy, and of the references (None: the same).
        """
        self.regularizer, self.temperature = config.regularizer, config.rollout.temperature
        self.names, self.models = names, models
        self.mix = Mix(self.regularizer.mean_order, tuple(weights))
        self.weights = torch.tensor(weights, dtype=torch.float64)
        policy_device, own_device = torch.device(devices[0]), torch.device(devices[1] or devices[0])
        self.visiting = own_device.type == "cpu" and policy_device.type != "cpu"
        self.device = policy_device if self.visiting else own_device
        self.vocabulary: int | None = None
        self.foreign: dict[int, Retokenize] = {}

    @torch.no_grad()
    def score(self, packed: Packed) -> ReferenceScores:
        """Log-probs of every response under every reference, and of their mix.

        Args:
            packed: rows of the policy's tokens.
        """
        log_normalizers = None
        if self.visiting or self.foreign:
            columns = [self._one(index, packed) for index in range(len(self.models))]
            if not self.foreign:
                columns = [c.sum(-1, dtype=torch.float64) for c in columns]
            sums = torch.stack(columns)
        else:
            packed = packed.to(self.device)
            logps, log_normalizers = reference_logps(self.models, packed, self.mix, self.temperature, self.vocabulary)
            logps, log_normalizers = logps.cpu(), log_normalizers.cpu()
            sums = logps.sum(-1, dtype=torch.float64)
        if self.regularizer.level == Level.sequence:
            mixed_sums = power_mean(sums, self.weights, self.mix.order)
            return ReferenceScores(sums, mixed_sums, None, log_normalizers)
        mixed = self.mixed_tokens(logps, log_normalizers).masked_fill(~packed.mask.cpu(), 0.0)
        return ReferenceScores(sums, mixed.sum(-1, dtype=torch.float64), mixed, log_normalizers)

    def mixed_tokens(self, logps: Tensor, log_normalizers: Tensor) -> Tensor:
        """(K, B, T) -> (B, T) token-level log M, divided by F_t unless the regularizer says otherwise."""
        mixed = power_mean(logps, self.weights, self.mix.order)
        return mixed - log_normalizers if self.regularizer.normalized else mixed

    def _one(self, index: int, packed: Packed) -> Tensor:
        """(B, T) under one reference, or (B,) sums where another has its own tokenizer."""
        model = self.models[index]
        if self.visiting:
            model.to(self.device)
        if index in self.foreign:
            pairs = [self.foreign[index](row) for row in range(packed.mask.shape[0])]
            packed = pack([p for p, _ in pairs], [[c] for _, c in pairs], 0, share_prompt=False)
        vocabulary = None if index in self.foreign else self.vocabulary
        logps = token_logps(model, packed.to(self.device), self.temperature, vocabulary=vocabulary).logps.cpu()
        if self.visiting:
            model.to("cpu")
        return logps.sum(-1, dtype=torch.float64) if self.foreign else logps


def freeze(model: nn.Module) -> nn.Module:
    """The model without gradients, in evaluation mode."""
    return model.eval().requires_grad_(False)
