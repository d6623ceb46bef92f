"""Direct preference optimization towards a mixed reference, from stored reference log-probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from multiref_cli.config import build
from multiref_cli.config.schema import Level
from multiref_cli.data.preferences import Pair
from multiref_cli.errors import RunError
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import Packed, micro_batches, pack, row_length, sharing_pays
from multiref_cli.objectives.divergence import score_is_clipped
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.objectives.mrpo import TrustRegion, mixed_references
from multiref_cli.objectives.preference import implicit_reward, multi_preference_loss, preference_loss
from multiref_cli.seeding import epoch_batch
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.training.loop import Batch

# How far the first loss may be from its expectation: bfloat16 log-probabilities of long responses are nats apart.
_START_TOLERANCE = {True: 1e-3, False: 0.2}


@dataclass(frozen=True)
class StoredPairs:
    """What the frozen references say of N pairs, whole responses in nats.

    Attributes:
        names: K names of the references with a positive weight.
        references: (K, 2, N) log pi_i of chosen and rejected, float64.
        mixed: (2, N) log M, float64; normalized token by token at level=token.
        vocabulary: ids that all of them normalize over, and the policy with them; None: the whole head.
    """

    names: list[str]
    references: Tensor
    mixed: Tensor
    vocabulary: int | None = None


def store_pairs(
    config: DictConfig,
    tokens: Sequence[Sequence[np.ndarray]],
    normalizers: Sequence[np.ndarray] | None,
    vocabulary: int | None = None,
) -> StoredPairs:
    """Sum stored token log-probabilities into responses and mix them.

    Args:
        config: of the run; its regularizer says how to mix and at which level.
        tokens: for each reference of positive weight 2 N arrays, chosen and rejected in turn, each (T,) nats.
        normalizers: 2 N arrays (T,) of log F_t in nats, by which a token-level mean is divided; None leaves it.
        vocabulary: ids that the stored log-probabilities normalize over.

    Returns:
        The sums and the mix.
    """
    references, alphas = build.active_references(config)
    regularizer = config.regularizer
    weights = torch.tensor(alphas, dtype=torch.float64)
    sums = torch.tensor([[float(np.sum(a, dtype=np.float64)) for a in one] for one in tokens], dtype=torch.float64)
    pairs = sums.reshape(len(references), -1, 2).transpose(1, 2).contiguous()
    names = [r.name for r in references]
    if regularizer.level == Level.token:
        per_token = power_mean(_flat(tokens), weights, regularizer.mean_order)
        if normalizers is not None:
            per_token = per_token - _flat([normalizers])[0]
        owner = torch.repeat_interleave(torch.tensor([len(a) for a in tokens[0]]))
        mixed = torch.zeros(len(tokens[0]), dtype=torch.float64).index_add(0, owner, per_token)
        return StoredPairs(names, pairs, mixed.reshape(-1, 2).T.contiguous(), vocabulary)
    region = None
    if regularizer.ctro is not None and len(names) > 1:  # a single reference is never clipped
        own = [r.name for r in references if r.path == config.policy.path]
        anchor = names.index(regularizer.ctro.anchor or (own or names)[0])
        region = TrustRegion(anchor, regularizer.ctro.epsilon, regularizer.ctro.adaptive)
    chosen, rejected = mixed_references(
        pairs[:, 0], pairs[:, 1], weights, regularizer.mean_order, region, regularizer.arwc
    )
    return StoredPairs(names, pairs, torch.stack([chosen, rejected]), vocabulary)


def _flat(arrays: Sequence[Sequence[np.ndarray]]) -> Tensor:
    return torch.stack([torch.from_numpy(np.concatenate(one)).double() for one in arrays])


@dataclass(frozen=True)
class PairMicro:
    """Some pairs of one step: their rows for the model and their row numbers."""

    packed: Packed
    rows: list[int]
    batch_pairs: int


class Dpo:
    """-log sigmoid of the difference of implicit rewards beta s_A(log pi - log M_A) (arXiv 2502.01203, Eq. 60, 61)."""

    def __init__(
        self, config: DictConfig, pairs: list[Pair], stored: StoredPairs, hidden_size: int | None, start: int | None
    ) -> None:
        self.config, self.pairs, self.stored, self.start = config, pairs, stored, start
        self.settings, self.regularizer = config.algorithm, config.regularizer
        self.weights = torch.tensor(build.active_references(config)[1], dtype=torch.float64)
        self.lengths = torch.tensor([[len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs]])
        self.share = self.settings.share_prompt
        if self.share is None:
            self.share = sharing_pays(
                [len(p.prompt) for p in pairs], [(len(p.chosen), len(p.rejected)) for p in pairs], hidden_size
            )

    def batch(self, step: int) -> Batch:
        """The pairs of optimizer step `step`: one random order of all pairs per epoch."""
        rows = epoch_batch(len(self.pairs), self.settings.batch_pairs, step, self.config.seed)
        micros = [PairMicro(self._pack(part), part, len(rows)) for part in self._parts(rows)]
        return Batch(micros, [self.pairs[i].row for i in rows], sum(m.packed.real_tokens for m in micros))

    def loss(self, model: nn.Module, micro: PairMicro) -> tuple[Tensor, Averages]:
        """Sum of the pairs' losses over the number of pairs of the whole step, and the step's metrics."""
        device = next(model.parameters()).device
        logps = self._logps(model, micro.packed.to(device))
        return self.loss_of(logps.reshape(-1, 2).T, micro.rows, micro.batch_pairs)

    def loss_of(self, policy: Tensor, rows: list[int], batch_pairs: int) -> tuple[Tensor, Averages]:
        """The loss of some pairs, given (2, n) log-probabilities of the policy for chosen and rejected."""
        mixed = self.stored.mixed[:, rows].to(policy.device)
        references = self.stored.references[:, :, rows].to(policy.device)
        towards = references if self.regularizer.multi_loss else mixed
        reward = implicit_reward(
            policy, towards, self.config.beta, self.regularizer.score_order, self.regularizer.score_clip
        )
        losses = preference_loss(
            reward[..., 0, :],
            reward[..., 1, :],
            loss=self.settings.loss,
            label_smoothing=self.settings.label_smoothing,
            beta=self.config.beta,
            lengths=self.lengths[:, rows].to(policy.device),
        )
        if self.regularizer.multi_loss:
            losses = multi_preference_loss(losses, self.weights.to(policy.device))
        return losses.sum() / batch_pairs, self._metrics(policy.detach(), mixed, references)

    @torch.no_grad()
    def accuracies(self, model: nn.Module) -> np.ndarray:
        """(N,) 1 where the chosen response has the higher implicit reward, one half at a tie, pairs in order."""
        found = np.zeros(len(self.pairs))
        device = next(model.parameters()).device
        for rows in self._parts(list(range(len(self.pairs)))):
            logps = self._logps(model, self._pack(rows).to(device)).cpu()
            mixed = self.stored.mixed[:, rows]
            order, clip = self.regularizer.score_order, self.regularizer.score_clip
            chosen, rejected = implicit_reward(logps.reshape(-1, 2).T, mixed, self.config.beta, order, clip)
            found[rows] = ((chosen > rejected).double() + 0.5 * (chosen == rejected).double()).numpy()
        return found

    def check_start(self, model: nn.Module, progress: Progress) -> None:
        """Before the first step: the loss must be what the stored log-probabilities of the policy's start say.

        Raises:
            RunError: it is not: policy and reference do not see the same tokens, template, type or truncation.
        """
        if self.start is None:
            return
        rows = epoch_batch(len(self.pairs), self.settings.batch_pairs, 0, self.config.seed)
        expected = float(self.loss_of(self.stored.references[self.start][:, rows], rows, len(rows))[0])
        with torch.no_grad():
            actual = sum(float(self.loss(model, micro)[0]) for micro in self.batch(0).micros)
        tolerance = _START_TOLERANCE[next(model.parameters()).dtype == torch.float32] * max(1.0, abs(expected))
        exact = " (ln 2)" if abs(expected - math.log(2)) < 1e-9 else ""
        progress.note(f"loss before the first step: {actual:.6f}, expected {expected:.6f}{exact}")
        if abs(actual - expected) > tolerance:
            raise RunError(
                f"the loss before the first step is {actual:.4f}, from the stored log-probabilities it should be "
                f"{expected:.4f}: policy and reference differ in template, type or truncation (`multiref refs verify`)."
            )

    def identity(self) -> dict[str, Any]:
        """Objective and references: what must not change across a resume."""
        return {"config": build.config_hash(self.config), "mixed": float(self.stored.mixed.sum())}

    def state_dict(self) -> dict[str, Any]:
        """Empty: batches are a function of seed and step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _logps(self, model: nn.Module, packed: Packed) -> Tensor:
        return token_logps(model, packed, vocabulary=self.stored.vocabulary).logps.sum(-1, dtype=torch.float64)

    def _metrics(self, policy: Tensor, mixed: Tensor, references: Tensor) -> Averages:
        averages, order, clip = Averages(), self.regularizer.score_order, self.regularizer.score_clip
        reward = implicit_reward(policy, mixed, self.config.beta, order, clip)
        averages.add("reward_margin", reward[0] - reward[1])
        averages.add("accuracy", (reward[0] > reward[1]).double())
        averages.add("kl/mixed", policy - mixed)
        for name, reference in zip(self.stored.names, references):
            averages.add(f"kl/{name}", policy - reference)
        averages.add("score_clip_fraction", score_is_clipped(policy - mixed, order, clip).double())
        averages.add("logps/chosen", policy[0])
        averages.add("logps/rejected", policy[1])
        return averages

    def _parts(self, rows: list[int]) -> list[list[int]]:
        lengths = [self._row_length(self.pairs[i]) for i in rows]
        parts = micro_batches(lengths, self.settings.micro_tokens, rows=1 if self.share else 2)
        return [[rows[i] for i in part] for part in parts]

    def _row_length(self, pair: Pair) -> int:
        return row_length(len(pair.prompt), (len(pair.chosen), len(pair.rejected)), bool(self.share))

    def _pack(self, rows: list[int]) -> Packed:
        pairs = [self.pairs[i] for i in rows]
        return pack(
            [p.prompt for p in pairs], [(p.chosen, p.rejected) for p in pairs], pad_id=0, share_prompt=bool(self.share)
        )
