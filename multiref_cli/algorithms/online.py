"""What every algorithm that samples from its policy does: rollouts, rewards, references, penalty, loss.

Deviations from GRPO as first published (arXiv 2402.03300): the penalty is (mean order, score order, level, estimator)
towards K references; micro-batches never change the loss; the old log-probs of further inner iterations are those of
the first one, which is on the policy that sampled.

Policy and references are read at the sampling temperature, as in TRL. The advantage multiplies the log-prob of every
token of a response, so that a penalty in the reward and one at each token meet the same reduction: beta is reward per
nat of a whole response for every estimator. `config.objective` says which objective a choice of settings has.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from multiref_cli.algorithms.base import Batch, Job, Trainee, load_policy
from multiref_cli.algorithms.charged import Charged
from multiref_cli.algorithms.in_reward import reward_penalty
from multiref_cli.algorithms.parts import Parts, live_references, reached, reference_samples
from multiref_cli.algorithms.scheduled import Scheduled
from multiref_cli.algorithms.taught import taught_responses
from multiref_cli.algorithms.window import (
    GroupMicro,
    Layout,
    StoredMicro,
    TaughtMicro,
    Window,
    padded,
    reward_metrics,
    rollout_metrics,
    step_size,
)
from multiref_cli.config.algorithms import OnlineSettings
from multiref_cli.config.objective import notes
from multiref_cli.config.schema import Estimator, Experiment, States, Term
from multiref_cli.data.chat import end_ids, shape_of
from multiref_cli.data.prompts import Prompt
from multiref_cli.models.columns import topk_token_divergence
from multiref_cli.models.decoder import honours_shared_prompts
from multiref_cli.models.logprobs import TokenDivergence, token_divergence, token_logps
from multiref_cli.models.packing import Packed
from multiref_cli.objectives.advantages import advantages
from multiref_cli.objectives.aggregate import StepSize, masked_sum, reduce, widened
from multiref_cli.objectives.penalty import penalty_to_go, sampled_charge, sampled_penalty
from multiref_cli.objectives.policy_gradient import clipped_surrogate, importance_ratios, sampler_weights
from multiref_cli.references.live import LiveReferences, ReferenceScores, joined
from multiref_cli.rewards.combine import RewardBatch
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.engine import Closing, Completion, sampling_of
from multiref_cli.rollouts.factory import build_engine, words_on
from multiref_cli.seeding import derive, epoch_batch
from multiref_cli.sharding import gathered
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel

_SHOWN_SAMPLES = 2
# A token whose ratio of trainer over sampler is further from 1 than this is counted in rollout/beyond_fraction.
_FAR = 0.2


def assemble_online(job: Job, reward: Callable[[list[Sample]], RewardBatch] | None, progress: Progress) -> Trainee:
    """What every algorithm that samples from its policy trains.

    Args:
        job: of an online algorithm.
        reward: B samples to their rewards; None: the references alone are learned from.
        progress: told while references are loaded or sampled.
    """
    experiment, model = job.experiment, load_policy(job)
    place = experiment.hardware.cache_folder / "rollouts"
    with job.precision.autocast():
        engine = build_engine(experiment.rollout, model, 0, job.vocabulary, job.tokenizer, place)
    # Ids beyond the tokenizer's are padding of the head: never sampled, left out of every softmax.
    parts = Parts(
        model=model,
        tokenizer=job.tokenizer,
        prompts=job.data.train,
        end_ids=end_ids(job.tokenizer),
        engine=engine,
        reward=reward,
        vocabulary=job.vocabulary,
        opening=shape_of(job.tokenizer).opening,
        may_share=honours_shared_prompts(model),
        parallel=job.parallel,
    )
    job.parallel.shard(model, job.device)  # before other models are opened
    if experiment.reads_samples:
        parts.stored = reference_samples(job, reached(job), progress)
    if experiment.penalized and experiment.penalty.states is States.policy:
        parts.references = live_references(job, progress)
        parts.may_share = parts.may_share and parts.references.share_prompts()
    said = notes(experiment)

    def tell(progress: Progress) -> None:
        for note in [*said, *words_on(experiment.rollout, job.device)]:
            progress.note(note)

    close = engine.close if isinstance(engine, Closing) else None
    beside = parts.references.sharded if parts.references is not None else ()
    return Trainee(model, Online(experiment, parts, job.total_steps), said, tell, close, beside)


class Online:
    """The online algorithm as the training loop takes it."""

    def __init__(self, experiment: Experiment, parts: Parts, total: int | None = None) -> None:
        """Takes everything ready-made; `assemble_online` makes it from a job.

        Args:
            experiment: of an online algorithm.
            parts: what it works with.
            total: optimizer steps, where beta or alpha move over them.
        """
        self.experiment, self.parts = experiment, parts
        self.settings = cast(OnlineSettings, experiment.algorithm)
        self.scheduled = Scheduled(experiment, total, parts.parallel)
        self.estimator, self.temperature = experiment.estimator, experiment.rollout.temperature
        self.parallel, width = parts.parallel, parts.model.config.hidden_size
        self.layout = Layout(self.settings.micro_tokens, parts.may_share, width, self.parallel.size)
        # Of a group's responses the first are the policy's own, the others stored ones of the teachers.
        self.group = experiment.rollout.group_size - experiment.taught
        self.charged = Charged(experiment, parts.tokenizer)
        self.window: Window | None = None
        self._packs: list[tuple[Tensor, Packed, tuple[Term, ...]]] = []

    def batch(self, step: int) -> Batch:
        """New rollouts every `inner_iterations` steps, the same ones in between."""
        number, inner = divmod(step, self.settings.inner_iterations)
        window, times = self.window, {"time/rollout": 0.0, "time/score": 0.0}
        if window is None or window.number != number:
            if self.parts.references is not None:
                self.parts.references.moving.follow(step, self.parts.model)
            self.scheduled.at(step)
            window, times = self._collect(number)
        length = self.settings.max_length_constant or self.experiment.rollout.max_new_tokens
        taught = self._taught(window)
        size = step_size([[*own, *more] for own, more in zip(window.completions, taught)], length)
        micros: list[GroupMicro | StoredMicro | TaughtMicro] = [
            GroupMicro(packed, places, size, inner == 0, terms) for places, packed, terms in self._packs
        ]
        micros += self._stored_micros(window.rows, size)
        micros += [TaughtMicro(packed, size, terms) for _, packed, terms in self._passes(window.rows, taught)]
        logged = (step + 1) % self.experiment.hardware.log_every == 0
        return Batch(
            micros=micros,
            ids=[self.parts.prompts[row].row for row in window.rows],
            tokens=sum(micro.packed.real_tokens for micro in micros),
            metrics=window.metrics | times | self.scheduled.metrics(),
            samples=window.samples if logged else [],
        )

    def loss(self, model: LanguageModel, micro: GroupMicro | StoredMicro | TaughtMicro) -> tuple[Tensor, Averages]:
        """This micro-batch's share of the loss of the step, and its metrics."""
        packed = micro.packed.to(next(model.parameters()).device)
        if isinstance(micro, StoredMicro):
            return self._stored_loss(model, packed, micro)
        if isinstance(micro, TaughtMicro):
            return self._taught_loss(model, packed, micro)
        window, mask, averages, penalty = self._window(), packed.mask, Averages(), None
        if self.parts.references is not None and self.estimator is not None and self.estimator.beside:
            logps, penalty, entropy = self._beside(model, self.parts.references, packed, micro, averages)
        else:
            found = token_logps(model, packed, self.temperature, entropy=True, vocabulary=self.parts.vocabulary)
            logps = found.logps
            entropy = found.entropy
            self._add_distances(averages, micro, logps.detach(), mask)
        if entropy is not None:
            _add_tokens(averages, "entropy", entropy, mask)
        old_logps = self._old_logps(micro, logps)
        ratios = importance_ratios(logps, old_logps, mask, self.settings.importance)
        advantage, charge = window.advantages.flatten()[micro.places].to(logps), penalty
        if self.estimator is not None and window.scores is not None and self.experiment.in_loss:
            own = importance_ratios(logps, old_logps, mask)
            penalty, charge = self._sampled(self.estimator, micro, window.scores, logps, own)
        if penalty is not None and charge is not None:
            rewards = window.rewards.flatten()[micro.places]
            penalty, charge = (self.charged.kept(one, packed, rewards) for one in (penalty, charge))
        if charge is not None and self.experiment.to_go:
            advantage = advantage[:, None] - self.scheduled.beta * penalty_to_go(charge, mask, self.group)
        values, stopped = clipped_surrogate(ratios, advantage, self.settings.clip_low, self.settings.clip_high)
        _add_tokens(averages, "clip_fraction", stopped.float(), mask)
        if penalty is not None:
            values = values + self.scheduled.beta * penalty
            _add_tokens(averages, "penalty", penalty.detach(), mask)
        if window.sampler_logps is not None:
            drawn = self._at(micro, window.sampler_logps, logps)
            values = values * self._sampler_weights(drawn, old_logps, mask, averages)
        return reduce(values, mask, self.settings.loss_reduction, micro.step), averages

    def state_dict(self) -> dict[str, Any]:
        """The window in use (rollouts, scores, old log-probs) and references that move; every process asks for it.

        Raises:
            RunError: a server serves another model than when training began or went on: nothing is kept of that.
        """
        if self.parts.references is not None:
            self.parallel.once(self.parts.references.confirm)
        if self.window is not None:
            own = [(places, self.window.old_logps[places]) for places, *_ in self.parallel.share(self._packs)]
            for places, logps in self.parallel.woven(own):
                self.window.old_logps[places] = logps
        references = self.parts.references
        moved = references.moving.state_dict() if references is not None else {}
        window = None if self.window is None else self.window.state_dict()
        return {"window": window, "references": moved, "scheduled": self.scheduled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the window back, so that a resume inside it goes on with the same rollouts."""
        if "scheduled" in state:  # not in checkpoints from before there were schedules
            self.scheduled.load_state_dict(state["scheduled"])
        self.window = None if state["window"] is None else Window.of(state["window"])
        if self.parts.references is not None:
            self.parts.references.moving.load_state_dict(state.get("references", {}))
        if self.window is not None:
            self._packs = self._passes(self.window.rows, self.window.completions)

    @property
    def _in_reward(self) -> bool:
        return self.estimator is not None and self.estimator.in_reward

    def _window(self) -> Window:
        if self.window is None:
            raise ValueError("the loss is asked for before the first batch")
        return self.window

    def _collect(self, number: int) -> tuple[Window, dict[str, float]]:
        """A new window: samples, rewards, what the references say, penalty, advantages; and the times."""
        started = time.perf_counter()
        rows, groups = self._roll_out(number)
        if self.group == 0:
            nothing = torch.zeros(len(rows), 0, dtype=torch.float64)
            self.window = Window(number, rows, [[] for _ in rows], nothing, nothing, {}, [], torch.zeros(0, 1))
            return self.window, {"time/rollout": time.perf_counter() - started, "time/score": 0.0}
        rolled = time.perf_counter()
        flat = [(self.parts.prompts[row], one) for row, group in zip(rows, groups) for one in group]
        samples = [self._sample(prompt, one) for prompt, one in flat]
        completions = [[one.ids for one in group] for group in groups]
        metrics, rewards = rollout_metrics(samples, completions), torch.zeros(len(rows), len(groups[0])).double()
        self._packs = self._passes(rows, completions)
        self._expect(samples)
        if self.parts.reward is not None:
            judge = self.parts.reward
            judged = self.parallel.once(lambda: judge(samples))
            rewards = torch.tensor(judged.total, dtype=torch.float64).reshape(len(rows), -1)
            metrics |= reward_metrics(judged, rewards)
            if (failed := self.charged.failed(rewards)) is not None:
                metrics["failed_fraction"] = float(failed.double().mean())
        logps = padded([one.logps for _, one in flat])
        drawn = None if self.parts.engine.exact_logps else logps.clone()
        scores, total = self._score(samples, logps.shape), rewards
        if scores is not None and self._in_reward:
            policy = self._policy_sums(logps)
            parts = [(terms, places) for places, _, terms in self._packs]
            penalty = reward_penalty(self.experiment, parts, policy, scores.mixed_sums, metrics)
            penalty = penalty.reshape(rewards.shape)
            if (failed := self.charged.failed(rewards)) is not None:
                penalty = penalty * failed
                metrics["penalty"] = float(penalty.mean())
            total = rewards - self.scheduled.beta * penalty
        values = advantages(total, self.settings.baseline, self.settings.advantage_scale)
        shown = _shown(samples, rewards.flatten(), values.flatten())
        self.window = Window(number, rows, completions, rewards, values, metrics, shown, logps, scores, drawn)
        return self.window, {"time/rollout": rolled - started, "time/score": time.perf_counter() - rolled}

    def _roll_out(self, number: int) -> tuple[list[int], list[list[Completion]]]:
        rows = epoch_batch(len(self.parts.prompts), self.settings.batch_prompts, number, self.experiment.seed)
        sampling, size = sampling_of(self.experiment.rollout, self.parts.end_ids), self.group

        def drawn(own: list[int]) -> list[list[Completion]]:
            """A group for each of some rows."""
            seeds = [derive(self.experiment.seed, "rollout", number, row) for row in own]
            return self.parts.engine.generate(self._prompt_ids(own), size, sampling, seeds) if size else []

        if self.experiment.rollout.server is not None:  # one server samples for all processes
            return rows, self.parallel.once(lambda: drawn(rows))
        return rows, self.parallel.woven(drawn(self.parallel.share(rows)))

    def _passes(
        self, rows: list[int], completions: Sequence[Sequence[Sequence[int]]]
    ) -> list[tuple[Tensor, Packed, tuple[Term, ...]]]:
        """Groups laid out for the model, those of the same summands together: (places among B, rows, summands) each."""
        routes: dict[str | None, list[int]] = {}
        for number, row in enumerate(rows):
            routes.setdefault(self.experiment.route_of(self.parts.prompts[row].extra), []).append(number)
        size, found = len(completions[0]), list[tuple[Tensor, Packed, tuple[Term, ...]]]()
        if size == 0:
            return found
        for route, numbers in routes.items():
            own = torch.tensor([number * size + g for number in numbers for g in range(size)])
            packs = self.layout.packs(self._prompt_ids([rows[i] for i in numbers]), [completions[i] for i in numbers])
            terms = self.scheduled.terms[route]
            found += [(own[places], packed, terms) for places, packed in packs]
        return found

    def _taught(self, window: Window) -> list[list[list[int]]]:
        """The teachers' stored responses to each prompt of a window; none without a `teacher_share`."""
        count, seed = self.experiment.taught, self.experiment.seed
        if not count:
            return [[] for _ in window.rows]
        weights = [self.scheduled.weights(self.parts.prompts[row].extra) for row in window.rows]
        drawn = zip(window.rows, weights)
        return [taught_responses(self.parts.stored, row, own, count, seed, window.number) for row, own in drawn]

    def _prompt_ids(self, rows: list[int]) -> list[Any]:
        return [self.parts.prompts[row].ids for row in rows]

    def _sample(self, prompt: Prompt, one: Completion) -> Sample:
        ids = one.ids[:-1] if one.finished else one.ids
        text = str(self.parts.tokenizer.decode(ids, skip_special_tokens=True))
        told = (prompt.answer, prompt.extra, one.finished, prompt.row, self.parts.opening)
        return Sample(prompt.messages, text, *told, prompt.conversational)

    def _expect(self, samples: list[Sample]) -> None:
        """Servers begin with their share while rewards are computed here."""
        if self.parts.references is not None:
            for places, packed, _ in self.parallel.share(self._packs):
                self.parts.references.expect(packed, [samples[i] for i in places])

    def _score(self, samples: list[Sample], shape: torch.Size) -> ReferenceScores | None:
        """What the references say of every response, put together from the passes; None where the loss asks them."""
        references = self.parts.references
        if references is None or self.estimator is None or self.estimator.beside:
            return None

        def score(one: tuple[Tensor, Packed, tuple[Term, ...]]) -> tuple[Tensor, ReferenceScores]:
            """One pass."""
            places, packed, terms = one
            return places, references.score(packed, [samples[i] for i in places], self.parts.vocabulary, terms)

        with gathered(*references.sharded):
            own = self.parallel.each(self._packs, score)
        return joined(self.parallel.woven(own), *shape)

    def _policy_sums(self, logps: Tensor) -> Tensor:
        """(B,) log pi of whole responses: the sampler's own where it computes in float32 what the trainer computes."""
        if not self.parts.engine.exact_logps:
            with torch.no_grad(), gathered(self.parts.model):
                own = self.parallel.each(self._packs, lambda one: (one[0], self._own_logps(one[1])))
            for places, found in self.parallel.woven(own):
                logps[places, : found.shape[1]] = found
        return logps.sum(-1, dtype=torch.float64)

    def _own_logps(self, packed: Packed) -> Tensor:
        """(b, t) log-probs of the policy."""
        rows = packed.to(next(self.parts.model.parameters()).device)
        return (
            token_logps(self.parts.model, rows, self.temperature, vocabulary=self.parts.vocabulary).logps.float().cpu()
        )

    def _beside(
        self, model: LanguageModel, references: LiveReferences, packed: Packed, micro: GroupMicro, averages: Averages
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Policy log-probs, full-vocabulary penalty and entropy (B, T); the references are asked in the same pass."""
        mask, terms = packed.mask, micro.terms
        found = self._divergence(model, references, packed, micro)
        policy = found.logps.detach()
        if not self.experiment.rollout.truncated:
            distances = [masked_sum(widened(policy - logps), mask, 1) for logps in found.reference_logps]
            self._add_references(averages, micro, distances)
        if self.experiment.one_mix:  # several summands have no mixed reference
            _add_tokens(averages, "disagreement", -found.log_normalizers[0], mask)
        if self.experiment.one_mix and not self.experiment.rollout.truncated:
            mixed = references.mixed_tokens(terms, found.reference_logps, found.log_normalizers)
            averages.add("kl/mixed", masked_sum(widened(policy - mixed[0]), mask, 1))
        return found.logps, found.divergence, found.entropy

    def _divergence(
        self, model: LanguageModel, references: LiveReferences, packed: Packed, micro: GroupMicro
    ) -> TokenDivergence:
        """The divergence of every token over the whole vocabulary, exact or of the likeliest tokens and a sample."""
        penalty, models, vocabulary = self.experiment.penalty, references.models, self.parts.vocabulary
        normalized, temperature = penalty.mixes_whole_vocabulary, self.temperature
        if self.estimator is Estimator.exact:
            return token_divergence(model, models, micro.terms, packed, temperature, True, vocabulary, normalized)
        old = None if micro.first else self._at(micro, self._window().old_logps, packed.mask.float())
        count, terms = penalty.topk, micro.terms
        return topk_token_divergence(
            model, models, terms, packed, count, old, temperature, True, vocabulary, normalized
        )

    def _sampled(
        self, estimator: Estimator, micro: GroupMicro, scores: ReferenceScores, logps: Tensor, ratios: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, T) the penalty as a loss term on the sampled tokens, and (B, T) what each of them is charged."""
        if scores.mixed is None:
            raise ValueError("a loss term at each token needs the references token by token")
        terms, log_f, penalty = micro.terms, None, self.experiment.penalty
        log_ratios = logps - self._at(micro, scores.mixed[: len(terms)], logps)
        if penalty.mixes_whole_vocabulary and scores.log_normalizers is not None:
            log_f = self._at(micro, scores.log_normalizers[: len(terms)], logps)
        loss = sampled_penalty(estimator, terms, log_ratios, ratios, log_f, penalty.score_clip)
        return loss, sampled_charge(terms, log_ratios, ratios, log_f)

    def _old_logps(self, micro: GroupMicro, logps: Tensor) -> Tensor:
        """(B, T) of the policy that sampled; on the first inner iteration that is the policy now, which is kept."""
        window = self._window()
        if not micro.first:
            return self._at(micro, window.old_logps, logps)
        if self.settings.inner_iterations > 1:
            window.old_logps[micro.places, : logps.shape[1]] = logps.detach().float().cpu()
        return logps.detach()

    def _sampler_weights(self, drawn: Tensor, trainer: Tensor, mask: Tensor, averages: Averages) -> Tensor:
        """(B, T) what samples of an engine with log-probs of its own count for, and in the metrics how far it is."""
        far = widened(torch.where(mask, trainer - drawn, torch.zeros_like(trainer)))
        _add_tokens(averages, "rollout/kl", far.exp() - 1 - far, mask)
        _add_tokens(averages, "rollout/beyond_fraction", (far.exp() - 1).abs().gt(_FAR).float(), mask)
        if self.settings.sampler_correction == "none":
            return torch.ones_like(trainer)
        level = "sequence" if self.settings.sampler_correction == "sequence" else "token"
        return sampler_weights(trainer, drawn, mask, level, self.settings.sampler_cap)

    def _at(self, micro: GroupMicro, values: Tensor, like: Tensor) -> Tensor:
        """The rows (..., b, t) of a micro-batch out of (..., B, T) values of the window, on its device."""
        return values[..., micro.places, : like.shape[1]].to(like)

    def _add_distances(self, averages: Averages, micro: GroupMicro, logps: Tensor, mask: Tensor) -> None:
        """kl/<reference> and kl/mixed, nats a response, and the references' disagreement, nats a token."""
        scores, references = self._window().scores, self.parts.references
        if scores is None or references is None or self.experiment.rollout.truncated:
            return
        policy = masked_sum(widened(logps), mask, 1).cpu()
        self._add_references(averages, micro, [policy - sums[micro.places] for sums in scores.sums])
        if not self.experiment.one_mix:  # several summands have no mixed reference
            return
        averages.add("kl/mixed", policy - scores.mixed_sums[0, micro.places])
        if scores.log_normalizers is not None:
            _add_tokens(averages, "disagreement", -self._at(micro, scores.log_normalizers[0], logps), mask)

    def _add_references(self, averages: Averages, micro: GroupMicro, distances: Sequence[Tensor]) -> None:
        """kl/<reference> from (B,) log ratios to each, and their weighted sum for what leads beta by it."""
        for reference, distance in zip(self.experiment.active_references, distances):
            averages.add(f"kl/{reference.name}", distance)
        if micro.first and self.experiment.moving_beta is not None:
            prompts = [self.parts.prompts[self._window().rows[int(i) // self.group]] for i in micro.places]
            weights = torch.tensor([self.scheduled.weights(one.extra) for one in prompts], dtype=torch.float64).T
            charge = (weights.to(distances[0]) * torch.stack(list(distances))).sum()
            self.scheduled.see(float(charge), len(micro.places))

    def _stored_micros(self, rows: list[int], sampled: StepSize) -> list[StoredMicro]:
        """The references' stored responses to a step's prompts; reference i has weight alpha_i K, S responses each.

        Their tokens are summed over one constant length, that of `dr_grpo` or else the mean of the responses sampled
        beside them: with 1 / |y| each the loss would not rest at the forward KL, and with their own mean length beta
        would not be in proportion to the reward.
        """
        if not self.parts.stored or self.experiment.taught:
            return []
        completions = [[one for stored in self.parts.stored for one in stored[row]] for row in rows]
        count = len(self.parts.stored)
        each = len(completions[0]) // count
        weights = (
            torch.tensor(self.experiment.weights_moved(self.scheduled.share)).repeat_interleave(each).repeat(len(rows))
            * count
        )
        constant = self.settings.loss_reduction == "dr_grpo"
        size = step_size(completions, sampled.length if constant else sampled.tokens / sampled.sequences)
        packs = self.layout.packs(self._prompt_ids(rows), completions)
        return [StoredMicro(packed, weights[places], size) for places, packed in packs]

    def _stored_loss(self, model: LanguageModel, packed: Packed, micro: StoredMicro) -> tuple[Tensor, Averages]:
        """-beta sum_i alpha_i E_{y ~ pi_i} log pi(y), the forward KL up to the references' entropy."""
        logps = token_logps(model, packed, self.temperature, vocabulary=self.parts.vocabulary).logps
        weights = micro.weights.to(logps)
        averages = Averages()
        _add_tokens(averages, "penalty", -logps.detach() * weights[:, None], packed.mask)
        return self.scheduled.beta * reduce(-logps, packed.mask, "dr_grpo", micro.step, weights), averages

    def _taught_loss(self, model: LanguageModel, packed: Packed, micro: TaughtMicro) -> tuple[Tensor, Averages]:
        """The exact divergence at the states of the teachers' responses, which no choice of the policy leads to."""
        references, averages = self.parts.references, Averages()
        if references is None:
            raise ValueError("the teachers are not loaded")
        normalized, vocabulary = self.experiment.penalty.mixes_whole_vocabulary, self.parts.vocabulary
        found = token_divergence(
            model,
            references.models,
            micro.terms,
            packed,
            self.temperature,
            vocabulary=vocabulary,
            normalized=normalized,
        )
        penalty, mask = self.charged.kept(found.divergence, packed), packed.mask
        _add_tokens(averages, "penalty/teacher_states", penalty.detach(), mask)
        return self.scheduled.beta * reduce(penalty, mask, self.settings.loss_reduction, micro.step), averages


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
