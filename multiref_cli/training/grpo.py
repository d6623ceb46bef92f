"""Group-relative policy optimization towards a mixed reference: rollouts, rewards, references, penalty, loss.

Deviations from GRPO as first published (arXiv 2402.03300): the penalty is (mean order, score order, level, estimator)
towards K references; micro-batches never change the loss; the old log-probs of further inner iterations are those of
the first one, which is on the policy that sampled.

Policy and references are read at the sampling temperature, as in TRL. A token-level penalty joins the per-token loss
with weight beta before the reduction, so with `loss_reduction: grpo` it is a mean per token where `estimator: reward`
charges whole responses: equal betas are equal strengths only within one of the two.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from multiref_cli.config import build
from multiref_cli.config.schema import Estimator, States
from multiref_cli.data.prompts import Prompt
from multiref_cli.models.logprobs import token_divergence, token_logps
from multiref_cli.models.packing import Packed
from multiref_cli.objectives.advantages import advantages
from multiref_cli.objectives.aggregate import masked_sum, reduce
from multiref_cli.objectives.divergence import score_is_clipped
from multiref_cli.objectives.penalty import calibrated_threshold, clipped_penalty, k2, k3, k3_ratio, reward_penalty
from multiref_cli.objectives.policy_gradient import clipped_surrogate, importance_ratios
from multiref_cli.rewards.combine import RewardBatch
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.engine import Completion, Engine, sampling_of
from multiref_cli.seeding import derive, epoch_batch
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.training.live_references import LiveReferences, ReferenceScores
from multiref_cli.training.loop import Batch
from multiref_cli.training.window import (
    GroupMicro,
    Layout,
    StoredMicro,
    Window,
    padded,
    rollout_metrics,
    step_size,
    term_metrics,
)

_IN_REWARD = (Estimator.reward, Estimator.clipped)
_SHOWN_SAMPLES = 2


@dataclass
class Parts:
    """What a run works with, besides its config.

    Attributes:
        model: the policy, a transformers model with or without an adapter.
        tokenizer: of the policy.
        prompts: training prompts.
        end_ids: ids that end a completion.
        engine: samples from the policy.
        reward: B samples to their rewards.
        references: frozen models; None without a penalty, or where the penalty is on stored samples.
        stored: for `states: reference`, for each reference its stored responses, prompt number -> [S] token ids.
        stored_weights: alpha of each reference with stored responses.
        vocabulary: ids shared by policy and references; None: the whole head.
        may_share: whether every model gives the same hidden states when responses share their prompt's row.
    """

    model: Any
    tokenizer: Any
    prompts: list[Prompt]
    end_ids: list[int]
    engine: Engine
    reward: Callable[[list[Sample]], RewardBatch]
    references: LiveReferences | None = None
    stored: list[dict[int, list[list[int]]]] = field(default_factory=list)
    stored_weights: list[float] = field(default_factory=list)
    vocabulary: int | None = None
    may_share: bool = True


class Grpo:
    """The online algorithm as the training loop takes it."""

    def __init__(self, config: DictConfig, parts: Parts) -> None:
        """Takes everything ready-made; `build_grpo` makes it from a job."""
        self.config, self.parts = config, parts
        self.settings, self.regularizer = config.algorithm, config.regularizer
        self.estimator, self.temperature = build.estimator(config), config.rollout.temperature
        self.layout = Layout(self.settings.micro_tokens, parts.may_share, parts.model.config.hidden_size)
        self.notes = notes(config)
        self.window: Window | None = None
        self._packs: list[tuple[Tensor, Packed]] = []

    def check_start(self, model: nn.Module, progress: Progress) -> None:
        """Says once what a reader of the run must know."""
        for note in self.notes:
            progress.note(note)

    def batch(self, step: int) -> Batch:
        """New rollouts every `inner_iterations` steps, the same ones in between."""
        number, inner = divmod(step, self.settings.inner_iterations)
        times = {"time/rollout": 0.0, "time/score": 0.0}
        if self.window is None or self.window.number != number:
            times = self._collect(number)
        window, length = self.window, self.settings.max_length_constant or self.config.rollout.max_new_tokens
        size = step_size(window.completions, length)
        micros: list[GroupMicro | StoredMicro] = [
            GroupMicro(packed, places, size, inner == 0) for places, packed in self._packs
        ]
        micros += self._stored_micros(window.rows, length)
        logged = (step + 1) % self.config.hardware.log_every == 0
        return Batch(
            micros=micros,
            ids=[self.parts.prompts[row].row for row in window.rows],
            tokens=sum(micro.packed.real_tokens for micro in micros),
            metrics=window.metrics | times,
            samples=window.samples if logged else [],
        )

    def loss(self, model: nn.Module, micro: GroupMicro | StoredMicro) -> tuple[Tensor, Averages]:
        """This micro-batch's share of the loss of the step, and its metrics."""
        packed = micro.packed.to(next(model.parameters()).device)
        if isinstance(micro, StoredMicro):
            return self._stored_loss(model, packed, micro)
        mask, averages, penalty = packed.mask, Averages(), None
        if self.parts.references is not None and self.estimator == Estimator.exact:
            logps, penalty = self._exact(model, packed, averages)
        else:
            found = token_logps(model, packed, self.temperature, entropy=True, vocabulary=self.parts.vocabulary)
            logps = found.logps
            _add_tokens(averages, "entropy", found.entropy, mask)
            self._add_distances(averages, micro, logps.detach(), mask)
        ratios = importance_ratios(logps, self._old_logps(micro, logps), mask, self.settings.importance)
        advantage = self.window.advantages.flatten()[micro.places].to(logps)
        values, stopped = clipped_surrogate(ratios, advantage, self.settings.clip_low, self.settings.clip_high)
        _add_tokens(averages, "clip_fraction", stopped.float(), mask)
        if self.window.mixed is not None and self.estimator not in _IN_REWARD:
            penalty = self._sampled(logps - self._at(micro, self.window.mixed, logps), ratios)
        if penalty is not None:
            values = values + self.config.beta * penalty
            _add_tokens(averages, "penalty", penalty.detach(), mask)
        return reduce(values, mask, self.settings.loss_reduction, micro.step), averages

    def identity(self) -> dict[str, Any]:
        """What must not change across a resume."""
        return {"config": build.config_hash(self.config), "rows": len(self.parts.prompts)}

    def state_dict(self) -> dict[str, Any]:
        """The window in use: rollouts, scores, old log-probs."""
        return {"window": None if self.window is None else dict(vars(self.window))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the window back, so that a resume inside it goes on with the same rollouts."""
        self.window = None if state["window"] is None else Window(**state["window"])
        if self.window is not None:
            self._packs = self.layout.packs(self._prompt_ids(self.window.rows), self.window.completions)

    def _collect(self, number: int) -> dict[str, float]:
        """A new window: samples, rewards, what the references say, penalty, advantages. Returns the times."""
        started = time.perf_counter()
        rows, groups = self._roll_out(number)
        rolled = time.perf_counter()
        flat = [(self.parts.prompts[row], one) for row, group in zip(rows, groups) for one in group]
        samples = [self._sample(prompt, one) for prompt, one in flat]
        judged = self.parts.reward(samples)
        rewards = torch.tensor(judged.total, dtype=torch.float64).reshape(len(rows), -1)
        completions = [[one.ids for one in group] for group in groups]
        self._packs = self.layout.packs(self._prompt_ids(rows), completions)
        logps = padded([one.logps for _, one in flat])
        scores = self._score(samples, logps.shape)
        metrics = rollout_metrics(rewards, samples, completions) | term_metrics(judged)
        total = rewards
        if scores is not None and self.estimator in _IN_REWARD:
            penalty = self._reward_penalty(self._policy_sums(logps) - scores.mixed_sums, metrics)
            total = rewards - self.config.beta * penalty.reshape(rewards.shape)
        values = advantages(total, self.settings.baseline, self.settings.advantage_scale)
        shown = _shown(samples, rewards.flatten(), values.flatten())
        scored = {} if scores is None else vars(scores)
        self.window = Window(number, rows, completions, rewards, values, metrics, shown, logps, **scored)
        return {"time/rollout": rolled - started, "time/score": time.perf_counter() - rolled}

    def _roll_out(self, number: int) -> tuple[list[int], list[list[Completion]]]:
        rows = epoch_batch(len(self.parts.prompts), self.settings.batch_prompts, number, self.config.seed)
        seeds = [derive(self.config.seed, "rollout", number, row) for row in rows]
        sampling = sampling_of(self.config.rollout, self.parts.end_ids)
        return rows, self.parts.engine.generate(self._prompt_ids(rows), self.config.rollout.group_size, sampling, seeds)

    def _prompt_ids(self, rows: list[int]) -> list[Any]:
        return [self.parts.prompts[row].ids for row in rows]

    def _sample(self, prompt: Prompt, one: Completion) -> Sample:
        ids = one.ids[:-1] if one.finished else one.ids
        text = self.parts.tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(prompt.messages, text, prompt.answer, prompt.extra, one.finished, prompt.row)

    def _score(self, samples: list[Sample], shape: torch.Size) -> ReferenceScores | None:
        """What the references say of every response, put together from the passes; None where the loss asks them."""
        if self.parts.references is None or self.estimator == Estimator.exact:
            return None
        parts = [
            (places, self.parts.references.score(packed, [samples[i] for i in places], self.parts.vocabulary))
            for places, packed in self._packs
        ]
        names = [name for name, value in vars(parts[0][1]).items() if value is not None]
        merged: dict[str, Tensor | None] = dict.fromkeys(vars(parts[0][1]))
        for name in names:
            first = getattr(parts[0][1], name)
            by_token = name in ("mixed", "log_normalizers")
            whole = first.new_zeros(shape if by_token else (*first.shape[:-1], shape[0]))
            for places, scores in parts:
                value = getattr(scores, name)
                if by_token:
                    whole[places, : value.shape[1]] = value
                else:
                    whole[..., places] = value
            merged[name] = whole
        return ReferenceScores(**merged)

    def _policy_sums(self, logps: Tensor) -> Tensor:
        """(B,) log pi of whole responses: the sampler's own where it computes in float32 what the trainer computes."""
        if not self.parts.engine.exact_logps:
            device = next(self.parts.model.parameters()).device
            with torch.no_grad():
                for places, packed in self._packs:
                    found = token_logps(
                        self.parts.model, packed.to(device), self.temperature, vocabulary=self.parts.vocabulary
                    ).logps
                    logps[places, : found.shape[1]] = found.float().cpu()
        return logps.sum(-1, dtype=torch.float64)

    def _reward_penalty(self, log_ratio: Tensor, metrics: dict[str, float]) -> Tensor:
        """(B,) penalties that go into the reward; says in the metrics how large and how often clipped they are."""
        order, clip, zero = self.regularizer.score_order, self.regularizer.score_clip, torch.zeros_like(log_ratio)
        if self.estimator == Estimator.clipped:
            threshold = self.regularizer.ratio_clip or calibrated_threshold(log_ratio)
            penalty = clipped_penalty(log_ratio, zero, order, threshold)
            metrics["ratio_clip"] = threshold
            metrics["ratio_clip_fraction"] = float((log_ratio.abs() > threshold).double().mean())
        else:
            penalty = reward_penalty(log_ratio, zero, order, clip)
            metrics["score_clip_fraction"] = float(score_is_clipped(log_ratio, order, clip).double().mean())
        metrics["penalty"] = float(penalty.mean())
        return penalty

    def _exact(self, model: nn.Module, packed: Packed, averages: Averages) -> tuple[Tensor, Tensor]:
        """Policy log-probs and the full-vocabulary penalty (B, T); the references are asked in the same pass."""
        references, mask = self.parts.references, packed.mask
        found = token_divergence(
            model,
            references.models,
            references.mix,
            self.regularizer.score_order,
            packed,
            self.temperature,
            entropy=True,
            vocabulary=self.parts.vocabulary,
        )
        policy = found.logps.detach()
        _add_tokens(averages, "entropy", found.entropy, mask)
        _add_tokens(averages, "disagreement", -found.log_normalizers, mask)
        for name, logps in zip(references.names, found.reference_logps):
            averages.add(f"kl/{name}", masked_sum((policy - logps).double(), mask, 1))
        mixed = references.mixed_tokens(found.reference_logps, found.log_normalizers)
        averages.add("kl/mixed", masked_sum((policy - mixed).double(), mask, 1))
        return found.logps, found.divergence

    def _sampled(self, log_ratio: Tensor, ratios: Tensor) -> Tensor:
        """(B, T) the penalty as a loss term on the sampled tokens."""
        order = self.regularizer.score_order
        if self.estimator == Estimator.k2:
            return k2(log_ratio, order, self.regularizer.score_clip)
        return k3(log_ratio) if self.estimator == Estimator.k3 else k3_ratio(log_ratio, ratios, order)

    def _old_logps(self, micro: GroupMicro, logps: Tensor) -> Tensor:
        """(B, T) of the policy that sampled; on the first inner iteration that is the policy now, which is kept."""
        if not micro.first:
            return self._at(micro, self.window.old_logps, logps)
        if self.settings.inner_iterations > 1:
            self.window.old_logps[micro.places, : logps.shape[1]] = logps.detach().float().cpu()
        return logps.detach()

    def _at(self, micro: GroupMicro, values: Tensor, like: Tensor) -> Tensor:
        """The rows (b, t) of a micro-batch out of (B, T) values of the window, on its device."""
        return values[micro.places, : like.shape[1]].to(like)

    def _add_distances(self, averages: Averages, micro: GroupMicro, logps: Tensor, mask: Tensor) -> None:
        """kl/<reference> and kl/mixed, nats a response, and the references' disagreement, nats a token."""
        window = self.window
        if window.sums is None:
            return
        policy = masked_sum(logps.double(), mask, 1).cpu()
        for name, sums in zip(self.parts.references.names, window.sums):
            averages.add(f"kl/{name}", policy - sums[micro.places])
        averages.add("kl/mixed", policy - window.mixed_sums[micro.places])
        if window.log_normalizers is not None:
            _add_tokens(averages, "disagreement", -self._at(micro, window.log_normalizers, logps), mask)

    def _stored_micros(self, rows: list[int], length: int) -> list[StoredMicro]:
        """The references' stored responses to a step's prompts; reference i has weight alpha_i K, S responses each."""
        if not self.parts.stored:
            return []
        completions = [[one for stored in self.parts.stored for one in stored[row]] for row in rows]
        count = len(self.parts.stored)
        each = len(completions[0]) // count
        weights = torch.tensor(self.parts.stored_weights).repeat_interleave(each).repeat(len(rows)) * count
        size = step_size(completions, length)
        packs = self.layout.packs(self._prompt_ids(rows), completions)
        return [StoredMicro(packed, weights[places], size) for places, packed in packs]

    def _stored_loss(self, model: nn.Module, packed: Packed, micro: StoredMicro) -> tuple[Tensor, Averages]:
        """-beta sum_i alpha_i E_{y ~ pi_i} log pi(y), the forward KL up to the references' entropy."""
        logps = token_logps(model, packed, self.temperature, vocabulary=self.parts.vocabulary).logps
        weights = micro.weights.to(logps)
        averages = Averages()
        _add_tokens(averages, "penalty", -logps.detach() * weights[:, None], packed.mask)
        share = reduce(-logps, packed.mask, self.settings.loss_reduction, micro.step, weights)
        return self.config.beta * share, averages


def notes(config: DictConfig) -> list[str]:
    """Sentences that a reader of a run must see: what it does otherwise than its names suggest."""
    found, regularizer = [], config.regularizer
    if config.beta == 0:
        return ["beta is 0: no reference is loaded, and no distance to one is measured while training"]
    left_out = [r.name for r, weight in zip(config.references, build.weights(config)) if weight == 0]
    if left_out:
        found.append(f"weight 0, never loaded: {', '.join(left_out)}")
    if regularizer.states == States.reference:
        found.append("the penalty is the forward KL on stored reference samples; distances are measured at the end")
    elif build.estimator(config) == Estimator.k3 and regularizer.score_order != 1:
        found.append(
            f"estimator k3 as a loss term descends the FORWARD KL to the mixed reference, not the divergence that "
            f"regularizer={regularizer.name} names (score order {regularizer.score_order:g}); use exact, k2 or k3_ratio"
        )
    return found


def _shown(samples: list[Sample], rewards: Tensor, values: Tensor) -> list[dict[str, Any]]:
    """A few responses with their rewards and advantages, the best and the worst of the window first."""
    order = rewards.argsort(descending=True, stable=True).tolist()
    chosen = [order[0], *order[::-1][: _SHOWN_SAMPLES - 1]]
    return [
        {
            "prompt": samples[i].prompt,
            "response": samples[i].completion,
            "answer": samples[i].answer,
            "reward": float(rewards[i]),
            "advantage": float(values[i]),
            "finished": samples[i].finished,
        }
        for i in chosen
    ]


def _add_tokens(averages: Averages, name: str, values: Tensor, mask: Tensor) -> None:
    """Adds (B, T) values at unmasked tokens, or (B, 1) values once for each response."""
    if values.shape[1] == 1 and mask.shape[1] != 1:
        averages.add(name, values)
    else:
        averages.add_sum(name, float(masked_sum(values.detach(), mask)), float(mask.sum()))
