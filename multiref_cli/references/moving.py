"""References that follow the policy as it trains: reset to it, or an exponential moving average of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref_cli.config.schema import Update
from multiref_cli.errors import RequestError
from multiref_cli.models.decoder import unwrap
from multiref_cli.models.lora import merged
from multiref_cli.references.base import Reference
from multiref_cli.sharding import whole
from multiref_cli.types import LanguageModel


class Moving:
    """The references of a run that have an `update`, each with weights of its own.

    theta_i <- r theta_i + (1 - r) theta every N optimizer steps, r = 0 for a reset; adapters of the policy count merged
    into what they adapt. Averages are kept in float32, whatever type a reference computes in. Every process of a run
    moves its own copy by the same numbers.
    """

    def __init__(self, members: Sequence[Reference]) -> None:
        """Takes the members that move; their models are asked for at the first move."""
        self.members = [(one, one.spec.update) for one in members if one.spec.update is not None]
        self._averages: dict[str, dict[str, Tensor]] = {}

    def follow(self, step: int, policy: LanguageModel) -> None:
        """Move what is due before optimizer step `step` (from 0), at which nothing has been learned yet.

        Raises:
            RequestError: a reference whose weights have other names or shapes than the policy's.
        """
        for member, update in self.members:
            if step > 0 and step % update.period == 0 and update.kept < 1:
                self._move(member, update, policy)

    @torch.no_grad()
    def _move(self, member: Reference, update: Update, policy: LanguageModel) -> None:
        bare, kept = unwrap(policy), update.kept
        averages = self._averages.setdefault(member.name, {})
        with whole(policy):
            self._towards(dict(merged(bare, bare.named_parameters())), member, kept, averages)

    def _towards(
        self, source: Mapping[str, Tensor], member: Reference, kept: float, averages: dict[str, Tensor]
    ) -> None:
        """r theta_i + (1 - r) theta, weight by weight."""
        for name, parameter in member.model.named_parameters():
            if name not in source or source[name].shape != parameter.shape:
                raise RequestError(
                    f"reference {member.name} cannot follow the policy (update): their weights {name} differ in shape."
                )
            new = source[name].to(parameter.device, torch.float32)
            if kept > 0:
                before = averages.get(name, parameter.detach().float())
                new = kept * before.to(new.device) + (1 - kept) * new
                if parameter.dtype != torch.float32:
                    averages[name] = new
            parameter.copy_(new)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Reference -> its weights now, in float32 where they are averages of a narrower type."""
        return {
            member.name: {
                name: self._averages.get(member.name, {}).get(name, parameter.detach()).cpu()
                for name, parameter in member.model.named_parameters()
            }
            for member, _ in self.members
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put references where `state_dict` found them."""
        for member, _ in self.members:
            for name, parameter in member.model.named_parameters():
                value = state[member.name][name]
                if value.dtype != parameter.dtype:
                    self._averages.setdefault(member.name, {})[name] = value.to(parameter.device)
                parameter.copy_(value)
