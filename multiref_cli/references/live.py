"""References beside a policy in training: K of them scored back to back on the same rollouts."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref_cli.config.schema import Experiment, Level, Term
from multiref_cli.models.decoder import Adapted, honours_shared_prompts
from multiref_cli.models.logprobs import score_references
from multiref_cli.models.packing import Packed, pack
from multiref_cli.objectives.aggregate import masked_sum
from multiref_cli.objectives.mixing import log_mixed
from multiref_cli.references.base import Reference
from multiref_cli.references.moving import Moving
from multiref_cli.references.tokens import response_ids
from multiref_cli.rewards.sample import Sample
from multiref_cli.sharding import is_sharded
from multiref_cli.types import Tokenizer


@dataclass(frozen=True)
class ReferenceScores:
    """What K references say of B responses, on the CPU; R terms of the penalty.

    Attributes:
        sums: (K, B) float64 log pi_i of whole responses in nats.
        mixed_sums: (R, B) float64 log M of whole responses; normalized token by token at level=token.
        mixed: (R, B, T) log M of every token, 0 where masked; None at level=sequence, where M has no tokens.
        log_normalizers: (R, B, T) log F_t; None where the references are not seen together.
    """

    sums: Tensor
    mixed_sums: Tensor
    mixed: Tensor | None = None
    log_normalizers: Tensor | None = None


def joined(parts: Sequence[tuple[Tensor, ReferenceScores]], count: int, length: int) -> ReferenceScores:
    """One result out of those of several passes; where they have fewer summands than others, zeros stand.

    Args:
        parts: (places among the B responses, scores of these) of every pass.
        count: B.
        length: T, to which token results are padded.
    """

    def responses(values: Sequence[Tensor]) -> Tensor:
        whole = values[0].new_zeros(max(map(len, values)), count)
        for (places, _), value in zip(parts, values):
            whole[: len(value), places] = value
        return whole

    def tokens(values: Sequence[Tensor | None]) -> Tensor | None:
        found = [value for value in values if value is not None]
        if not found:
            return None
        whole = found[0].new_zeros(max(map(len, found)), count, length)
        for (places, _), value in zip(parts, found):
            whole[: len(value), places, : value.shape[-1]] = value
        return whole

    scores = [one for _, one in parts]
    return ReferenceScores(
        sums=responses([one.sums for one in scores]),
        mixed_sums=responses([one.mixed_sums for one in scores]),
        mixed=tokens([one.mixed for one in scores]),
        log_normalizers=tokens([one.log_normalizers for one in scores]),
    )


class LiveReferences:
    """K frozen references with positive weights, resident together or one at a time.

    On the policy's device, or on another one if the experiment names one. Given the CPU beside a policy on a GPU, they
    wait in main memory and visit the policy's device one at a time.
    """

    def __init__(self, experiment: Experiment, members: Sequence[Reference], foreign: Sequence[Any]) -> None:
        """Takes references with positive weights.

        Args:
            experiment: its penalty says how to mix, its rollout at which temperature.
            members: the K references.
            foreign: for each its tokenizer, if it has another one than the policy, else None.
        """
        self.penalty = experiment.penalty
        self.temperature = experiment.rollout.temperature
        self.members, self.foreign = list(members), list(foreign)
        self.moving = Moving(members)
        policy_device = torch.device(experiment.hardware.device_name)
        own_device = torch.device(experiment.hardware.reference_device or policy_device)
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

    @property
    def sharded(self) -> list[Any]:
        """Models that the processes of a run divide among them."""
        return [one.model for one in self.members if one.spec.server is None and is_sharded(one.model)]

    def share_prompts(self) -> bool:
        """Whether all that read the policy's tokens give the same results where responses share their prompt's row."""
        own = [member.model for member, tokenizer in zip(self.members, self.foreign) if tokenizer is None]
        models = [one.model if isinstance(one, Adapted) else one for one in own if one is not None]
        return all(map(honours_shared_prompts, models))

    def expect(self, packed: Packed, samples: Sequence[Sample]) -> None:
        """Told of responses that `score` will be asked for: servers begin; arguments as there."""
        for member, foreign in zip(self.members, self.foreign):
            if member.spec.server is not None:
                member.expect(packed if foreign is None else _retokenized(foreign, samples))

    def confirm(self) -> None:
        """Whether servers still serve what they did; raises RunError where one does not."""
        for member in self.members:
            member.confirm()

    @torch.no_grad()
    def score(
        self, packed: Packed, samples: Sequence[Sample], vocabulary: int | None, terms: Sequence[Term]
    ) -> ReferenceScores:
        """Log-probs of B responses under every reference, and of their mixes.

        Args:
            packed: rows of the policy's tokens.
            samples: the same B responses as text, for references that read them with a tokenizer of their own.
            vocabulary: ids shared by the policy and the references with its tokenizer.
            terms: the R summands of their penalty.
        """
        if self.visiting or any(self.foreign) or any(member.spec.server is not None for member in self.members):
            sums = torch.stack(
                [self._sums(*one, packed, samples, vocabulary) for one in zip(self.members, self.foreign)]
            )
            return ReferenceScores(sums, log_mixed(terms, sums))
        mixes = [term.mix for term in terms]
        logps, found = score_references(self.models, packed.to(self.device), mixes, self.temperature, vocabulary)
        logps, log_normalizers = logps.cpu(), torch.stack(found).cpu()
        sums = logps.sum(-1, dtype=torch.float64)
        if self.penalty.level is Level.sequence:
            return ReferenceScores(sums, log_mixed(terms, sums), None, log_normalizers)
        mixed = self.mixed_tokens(terms, logps, log_normalizers)
        return ReferenceScores(sums, masked_sum(mixed.double(), packed.mask, -1), mixed, log_normalizers)

    def mixed_tokens(self, terms: Sequence[Term], logps: Tensor, log_normalizers: Tensor) -> Tensor:
        """(K, B, T), (R, B, T) -> (R, B, T) token-level log M, divided by F_t unless the penalty says otherwise."""
        return log_mixed(terms, logps, log_normalizers if self.penalty.mixes_whole_vocabulary else None)

    def _sums(
        self,
        member: Reference,
        foreign: Tokenizer | None,
        packed: Packed,
        samples: Sequence[Sample],
        vocabulary: int | None,
    ) -> Tensor:
        """(B,) log-probs of whole responses under one reference; it visits the device for the time of the pass."""
        if foreign is not None:
            packed, vocabulary = _retokenized(foreign, samples), None
        with member.visiting(self.device) if self.visiting else nullcontext():
            logps = member.token_logps(packed, self.temperature, vocabulary)
        return logps.cpu().sum(-1, dtype=torch.float64)


def _retokenized(tokenizer: Tokenizer, samples: Sequence[Sample]) -> Packed:
    """The responses under another tokenizer and chat template."""
    ids = [response_ids(tokenizer, one.messages, one.whole, one.finished) for one in samples]
    return pack([prompt for prompt, _ in ids], [[completion] for _, completion in ids], 0, share_prompt=False)
