"""Evaluation: sample held-out prompts from a policy, score the responses, measure its distance to the references."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiref_cli.config.schema import Evaluation, Experiment, Level
from multiref_cli.data.chat import end_ids, shape_of
from multiref_cli.data.prompts import Prompt
from multiref_cli.evaluation.kept import add_reference, answers_of
from multiref_cli.evaluation.measures import avg_at_k, length_controlled_wins, pass_at_k
from multiref_cli.evaluation.statistics import bootstrap_interval, wins
from multiref_cli.models.logprobs import score_references, token_logps
from multiref_cli.models.packing import Packed, micro_batches, pack
from multiref_cli.objectives.mixing import log_mixed
from multiref_cli.parallel import ALONE, Parallel
from multiref_cli.references.base import Reference
from multiref_cli.references.store import Sequence
from multiref_cli.references.tokens import rescored_ids
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.engine import Completion, Engine, Sampling
from multiref_cli.seeding import derive
from multiref_cli.sharding import gathered
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Device, LanguageModel, Tokenizer

# A scorer gives one number a sample; its name is that of the metric.
Scorer = Callable[[list[Sample]], list[float]]
# The scorer that is a Bradley-Terry model: a difference of two of its scores is a log odds.
REWARD_MODEL = "reward_model"
# References that stay in memory during an evaluation; of more, one at a time, where their mean allows it.
RESIDENT = 2


@dataclass
class Evaluator:
    """Everything an evaluation needs besides the policy.

    Attributes:
        experiment: of the run.
        tokenizer: of the policy.
        prompts: held-out prompts, already cut to the number wanted.
        scorers: metric name -> scorer (reward model, gold reward).
        references: to measure the distance to, in the order of the weights.
        foreign: name -> tokenizer of a reference that reads the text in tokens of its own.
        reference_samples: responses of one reference to the same prompts, [P][S]; None: no win rates.
        vocabulary: ids shared by policy and references.
        end_ids: ids that end a response.
        parallel: the processes that share the work; all of them have the whole result.
        nats_above: added to every distance, for a sampler whose log-probs are those of what it chose from.
        answers: of the last evaluation: the first prompts' responses one by one, see `evaluation.kept`.
    """

    experiment: Experiment
    tokenizer: Tokenizer
    prompts: list[Prompt]
    scorers: dict[str, Scorer]
    references: list[Reference]
    foreign: dict[str, Any]
    reference_samples: Callable[[Reference], list[list[Completion]]] | None
    vocabulary: int | None
    end_ids: list[int] = field(default_factory=list)
    parallel: Parallel = ALONE
    nats_above: float = 0.0
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def settings(self) -> Evaluation:
        """How is measured."""
        return self.experiment.evaluation

    def sampling(self) -> Sampling:
        """How responses are drawn, from the policy and from the references alike."""
        settings = self.settings
        return Sampling(settings.temperature, settings.top_p, 0, 0.0, settings.max_new_tokens, tuple(self.end_ids))

    def seeds(self) -> list[int]:
        """One seed a prompt, the same for every run of a comparison."""
        return [derive(self.settings.seed, "evaluation", i) for i in range(len(self.prompts))]

    def evaluate(
        self, policy: LanguageModel | None, engine: Engine, progress: Progress
    ) -> tuple[dict[str, dict], list[dict[str, Any]]]:
        """Sample, score and measure.

        Args:
            policy: the trained model, on its device; None where the engine's own log-probs are exact, or distances are
                left out.
            engine: samples from it.
            progress: told of every phase.

        Returns:
            (metrics, samples): metric -> {mean, ci_low, ci_high, n} with prompts as the unit; one row a response.
        """
        progress.advance("evaluate: sample", 0, len(self.prompts))
        count = self.settings.samples_per_prompt
        own, seeds = self.parallel.share(self.prompts), self.parallel.share(self.seeds())
        drawn = engine.generate([p.ids for p in own], count, self.sampling(), seeds)
        completions = self.parallel.woven(drawn)
        values = {
            "length": _per_prompt(completions, lambda c: len(c.ids)),
            "truncated": _per_prompt(completions, lambda c: not c.finished),
        }
        samples = self.samples(completions)
        scores = self._score(samples, progress)
        means = {name: table.mean(1) for name, table in scores.items()}
        values |= means | self._attempts(scores) | self._greedy(engine, progress)
        distances = self._distances(policy, engine, completions, samples, progress)
        values |= {name: table.mean(1).numpy() for name, table in distances.items()}
        values |= self._objectives(values, means)
        self.answers = answers_of(self.prompts, samples, scores, distances)
        values |= self._win_rates(scores, completions, samples, progress)
        bootstrap = self.settings.bootstrap
        metrics = {name: summary(np.asarray(v, dtype=float), bootstrap) for name, v in values.items()}
        metrics |= self._groups(means)
        return metrics, self._rows(samples, values)

    def _groups(self, scores: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Every score over the prompts of each value of alpha.by: `<scorer>/<column>=<value>`."""
        routes = self.experiment.routes
        if routes is None:
            return {}
        values = np.array([self.experiment.route_of(prompt.extra) for prompt in self.prompts])
        return {
            f"{name}/{routes.column}={value}": summary(score[values == value], self.settings.bootstrap)
            for name, score in scores.items()
            for value in routes.weights
            if (values == value).any()
        }

    def _score(self, samples: list[Sample], progress: Progress) -> dict[str, np.ndarray]:
        """Scorer -> (P, S) scores of S responses a prompt."""
        scores = {}
        for name in self.scorers:
            progress.advance(f"evaluate: {name}", 0, len(samples))
            scores[name] = self._scored(name, samples).reshape(len(self.prompts), -1)
        return scores

    def _greedy(self, engine: Engine, progress: Progress) -> dict[str, np.ndarray]:
        """greedy/<scorer>: the score of the one response to each prompt that is decoded without sampling."""
        if not self.settings.greedy or not self.scorers:
            return {}
        progress.advance("evaluate: decode without sampling", 0, len(self.prompts))
        sampling = replace(self.sampling(), temperature=0.0, top_p=1.0)
        own = self.parallel.share(self.prompts)
        seeds = self.parallel.share(self.seeds())
        drawn = engine.generate([p.ids for p in own], 1, sampling, seeds)
        scores = self._score(self.samples(self.parallel.woven(drawn)), progress)
        return {f"greedy/{name}": table[:, 0] for name, table in scores.items()}

    def _attempts(self, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """pass@k for k = 2, 4, ... and S, and avg@S of a reward that says from which score a response is right."""
        reward, count = self.experiment.reward, self.settings.samples_per_prompt
        if reward is None or reward.correct_at is None or reward.name not in scores or count < 2:
            return {}
        table = scores[reward.name]
        correct = (table >= reward.correct_at).sum(1)
        powers = {2**i for i in range(1, count.bit_length()) if 2**i < count}
        found = {f"pass@{k}/{reward.name}": pass_at_k(correct, count, k) for k in sorted({*powers, count})}
        return found | {f"avg@{count}/{reward.name}": avg_at_k(table, count)}

    def samples(self, completions: list[list[Completion]], foreign: Tokenizer | None = None) -> list[Sample]:
        """Responses as the scorers read them, prompt-major; in tokens of `foreign` where these are given."""
        tokenizer = self.tokenizer if foreign is None else foreign
        ends, opening = set(self.end_ids if foreign is None else end_ids(foreign)), shape_of(tokenizer).opening
        rows = []
        for prompt, group in zip(self.prompts, completions):
            for one in group:
                ids = one.ids[:-1] if one.ids and one.ids[-1] in ends else one.ids
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                rows.append(
                    Sample(
                        messages=prompt.messages,
                        completion=text,
                        answer=prompt.answer,
                        extra=prompt.extra,
                        finished=one.finished,
                        row=prompt.row,
                        opening=opening,
                        conversational=prompt.conversational,
                    )
                )
        return rows

    def _distances(
        self,
        policy: LanguageModel | None,
        engine: Engine,
        completions: list[list[Completion]],
        samples: list[Sample],
        progress: Progress,
    ) -> dict[str, Tensor]:
        """kl/<reference>, (P, S): log pi - log pi_i of whole responses in nats; kl/mixed, to the mixed reference."""
        if not self.references or self.settings.temperature != 1.0 or self.settings.top_p != 1.0:
            return {}
        flat = [one for group in completions for one in group]
        each = len(flat) // len(self.prompts)
        sequences = [
            Sequence(tuple(self.prompts[i // each].ids), tuple(one.ids), sample.messages, sample.whole)
            for i, (one, sample) in enumerate(zip(flat, samples))
        ]
        if engine.exact_logps:
            own = torch.tensor([sum(one.logps) for one in flat], dtype=torch.float64)
        elif policy is not None:
            own = _sums(self._tokens(policy, sequences))
        else:  # a mixture in bfloat16: no model has its log-probabilities
            return {}
        regularizer = self.experiment.regularizer
        token_level = regularizer is not None and regularizer.level is Level.token
        mixes = regularizer is not None and self.experiment.routes is None and len(self.experiment.terms_of_all) == 1
        names = {one.name for one in self.experiment.active_references} if token_level and mixes else set()
        active = [reference for reference in self.references if reference.name in names]
        tokens, log_f = self._together(active, sequences, progress) if active else ({}, [])
        for reference in self.references:
            if reference.name not in tokens:
                progress.advance(f"evaluate: kl/{reference.name}", 0, len(sequences))
                foreign = self.foreign.get(reference.name)
                tokens[reference.name] = self._tokens_of(reference, sequences, foreign)
                if len(self.references) > RESIDENT:
                    reference.release()
        sums = torch.stack([_sums(tokens[reference.name]) for reference in self.references])
        own = own + self.nats_above
        found = {f"kl/{reference.name}": own - sums[i] for i, reference in enumerate(self.references)}
        if mixes:  # neither several summands nor rows with weights of their own have one mixed reference
            mixed = self._mixed(tokens, log_f) if token_level else log_mixed(self.experiment.terms_of_all, sums)[0]
            found["kl/mixed"] = own - mixed
        return {name: v.reshape(len(completions), -1) for name, v in found.items()}

    def _together(
        self, references: list[Reference], sequences: list[Sequence], progress: Progress
    ) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
        """Token log-probabilities of the active references, and log F of their mix, in one pass."""
        names = [reference.name for reference in references]
        progress.advance(f"evaluate: kl of {', '.join(names)}", 0, len(sequences))
        models, mixes = [reference.model for reference in references], [self.experiment.terms[0].mix]

        def compute(rows: Packed) -> Tensor:
            logps, log_normalizers = score_references(models, rows, mixes, vocabulary=self.vocabulary)
            return torch.cat([logps, torch.stack(log_normalizers)])

        with gathered(*models):
            found = self._each([(one.prompt, one.completion) for one in sequences], _device(models[0]), compute)
        return {name: [one[k] for one in found] for k, name in enumerate(names)}, [one[-1] for one in found]

    def _mixed(self, tokens: dict[str, list[Tensor]], log_f: list[Tensor]) -> Tensor:
        """(B,) log M of whole responses, mixed token by token."""
        logps = torch.stack([torch.cat(tokens[reference.name]) for reference in self.references])
        penalty = self.experiment.penalty
        normalizers = torch.cat(log_f)[None] if penalty.normalized else None
        per_token = log_mixed(self.experiment.terms_of_all, logps, normalizers)[0]
        return _sums(list(per_token.split([len(one) for one in log_f])))

    def _tokens_of(self, reference: Reference, sequences: list[Sequence], foreign: Tokenizer | None) -> list[Tensor]:
        """`_tokens` of a reference."""
        if reference.spec.server is None:
            return self._tokens(reference.model, sequences, foreign)
        found = self._each(self._ids(sequences, foreign), "cpu", reference.token_logps)
        self.parallel.once(reference.confirm)
        return found

    def _ids(self, sequences: list[Sequence], foreign: Tokenizer | None) -> list[tuple[Any, Any]]:
        """(prompt, response) in the policy's tokens, or in those of a reference with others."""
        if foreign is None:
            return [(one.prompt, one.completion) for one in sequences]
        return [rescored_ids(one, self.tokenizer, foreign) for one in sequences]

    def _tokens(
        self, model: LanguageModel, sequences: list[Sequence], foreign: Tokenizer | None = None
    ) -> list[Tensor]:
        """log-probabilities of every response's tokens, under the model's own tokenizer where that is another one."""
        ids, vocabulary = self._ids(sequences, foreign), self.vocabulary if foreign is None else None
        with gathered(model):
            return self._each(
                ids, _device(model), lambda packed: token_logps(model, packed, vocabulary=vocabulary).logps
            )

    @torch.no_grad()
    def _each(self, ids: list[tuple[Any, Any]], device: Device, compute: Callable[[Packed], Tensor]) -> list[Tensor]:
        """Results (..., T) of every (prompt, response) in order, float64, on CPU; `compute` gives (..., B, T)."""
        lengths = [len(prompt) + len(response) for prompt, response in ids]
        parts = micro_batches(lengths, self.settings.batch_size * max(lengths), processes=self.parallel.size)

        def one(part: list[int]) -> list[Tensor]:
            """Results of some of them."""
            packed = pack([ids[i][0] for i in part], [(ids[i][1],) for i in part], 0, share_prompt=True)
            values = compute(packed.to(device)).cpu().double()
            return [values[..., row, : len(ids[i][1])] for row, i in enumerate(part)]

        found: list[Tensor] = [torch.empty(0)] * len(ids)
        for part, rows in zip(parts, self.parallel.woven(self.parallel.each(parts, one))):
            for i, row in zip(part, rows):
                found[i] = row
        return found

    def _objectives(self, values: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """J = score - beta sum_i alpha_i KL(pi || pi_i) for every scorer: reverse KL, whatever the regularizer."""
        names = [reference.name for reference in self.references]
        if not names or not all(f"kl/{name}" in values for name in names):
            return {}
        rows = [self.experiment.weights_of_row(prompt.extra) for prompt in self.prompts]
        penalty = sum(np.array(w) * values[f"kl/{name}"] for name, w in zip(names, zip(*rows)))
        return {f"objective/{name}": score - self.experiment.beta * penalty for name, score in scores.items()}

    def _win_rates(
        self,
        scores: dict[str, np.ndarray],
        completions: list[list[Completion]],
        policy: list[Sample],
        progress: Progress,
    ) -> dict[str, np.ndarray]:
        """Share of prompts on which the policy's score is above a reference's, ties counting half; its score too.

        By a Bradley-Terry reward model also win_rate_lc, what is left of the preference at equal lengths, pairing the
        responses of a prompt in order. A reference with other tokens answers in these; lengths are then of the texts.
        """
        if self.reference_samples is None or not scores:
            return {}
        found = {}
        for reference in self.references:
            others, foreign = self.reference_samples(reference), self.foreign.get(reference.name)
            samples = self.samples(others, foreign)
            longer = _lengths(completions) - _lengths(others) if foreign is None else _bytes(policy) - _bytes(samples)
            own: dict[str, np.ndarray] = {}
            for name in self.scorers:
                theirs = own[name] = self._scored(name, samples).reshape(len(self.prompts), -1)
                found[f"win_rate/{name}/{reference.name}"] = wins(scores[name].mean(1), theirs.mean(1))
                found[f"reference/{name}/{reference.name}"] = theirs.mean(1)
                if name == REWARD_MODEL:
                    preferences = (1 + np.tanh((scores[name] - theirs) / 2)) / 2  # the sigmoid
                    rates = length_controlled_wins(preferences, longer.reshape(preferences.shape))
                    found |= {} if rates is None else {f"win_rate_lc/{name}/{reference.name}": rates}
            add_reference(self.answers, reference.name, samples, own)
        return found

    def _scored(self, name: str, samples: list[Sample]) -> np.ndarray:
        """(B,) scores, by the main process: the same response scored in another batch would not tie with itself."""
        return np.asarray(self.parallel.once(lambda: self.scorers[name](samples)), dtype=float)

    def _rows(self, samples: list[Sample], values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        each, rows = len(samples) // max(1, len(self.prompts)), []
        for index, prompt in enumerate(self.prompts):
            means = {name: float(v[index]) for name, v in values.items()}
            texts = [sample.completion for sample in samples[index * each : (index + 1) * each]]
            rows.append(
                {"prompt": prompt.messages[-1]["content"], "answer": prompt.answer, "responses": texts, **means}
            )
        return rows


def summary(values: np.ndarray, resamples: int) -> dict[str, float]:
    """Mean and bootstrap 95 % interval over the units (prompts or pairs) of one run.

    Args:
        values: (P,) one value per unit.
        resamples: bootstrap resamples.

    Returns:
        {mean, ci_low, ci_high, n}.
    """
    interval = bootstrap_interval(values, resamples=resamples)
    return {"mean": interval.mean, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device


def _sums(tokens: list[Tensor]) -> Tensor:
    """Log-probabilities of whole responses, (B,), from those of their tokens."""
    return torch.stack([one.sum() for one in tokens])


def _per_prompt(completions: list[list[Completion]], value: Callable[[Completion], float]) -> np.ndarray:
    return np.array([np.mean([float(value(c)) for c in group]) for group in completions])


def _bytes(samples: list[Sample]) -> np.ndarray:
    """(B,) bytes of every response's text."""
    return np.array([float(len(sample.whole.encode())) for sample in samples])


def _lengths(completions: list[list[Completion]]) -> np.ndarray:
    """(P, S) tokens of every response."""
    return np.array([[float(len(one.ids)) for one in group] for group in completions])
