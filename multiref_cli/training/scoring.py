"""What is measured on a trained model, by algorithm, with the models that measuring needs."""

import hashlib
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from multiref_cli.config import build
from multiref_cli.data.chat import end_ids
from multiref_cli.data.prompts import Prompt
from multiref_cli.errors import RequestError, RunError
from multiref_cli.evaluation.evaluate import Evaluator, Scorer, summary
from multiref_cli.models.decoder import sharing_width
from multiref_cli.models.load import load_causal_lm, load_reward_model, load_tokenizer
from multiref_cli.references.models import first_difference
from multiref_cli.rewards.combine import build_reward
from multiref_cli.rewards.model import RewardModelScorer
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.engine import Completion
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.tracking.progress import Progress
from multiref_cli.tracking.run_dir import read_json
from multiref_cli.training.assemble import load_policy, stored_pairs
from multiref_cli.training.dpo import Dpo
from multiref_cli.training.job import Job, load_data
from multiref_cli.training.reward_model import pair_accuracies

# The latest results of scorers, by scorer and samples.
_SCORES: OrderedDict[str, list[float]] = OrderedDict()
_KEPT_SCORES = 16

# Metrics, rows of evaluation.jsonl, sentences for the report.
Outcome = tuple[dict[str, dict[str, float]], list[dict[str, Any]], list[str]]


def evaluate_policy(job: Job, model: nn.Module, progress: Progress) -> Outcome:
    """Measure a trained model: held-out accuracy of pairs, then samples of held-out prompts."""
    metrics: dict[str, dict[str, float]] = {}
    bootstrap = job.config.evaluation.bootstrap
    if job.config.algorithm.name == "reward_model":
        accuracies = pair_accuracies(model, job.data.held_out, job.config.algorithm.batch_pairs).numpy()
        metrics["held_out_accuracy"] = summary(accuracies, bootstrap)
        _refuse_weak(metrics["held_out_accuracy"]["mean"], job.config.algorithm.minimum_accuracy)
        return metrics, [], []
    if job.config.algorithm.name == "dpo" and job.data.held_out:
        progress.advance("evaluate: held-out pairs", 0, len(job.data.held_out))
        metrics["preference_accuracy"] = summary(_preference_accuracies(job, model, progress), bootstrap)
    if job.config.evaluation.prompts == 0:
        return metrics, [], []
    evaluator, notes = build_evaluator(job, progress)
    engine = TransformersEngine(model, 0, job.config.evaluation.batch_size, job.vocabulary)
    found, samples = evaluator.evaluate(model, engine, progress)
    return metrics | found, samples, notes


def evaluate_folder(job: Job, policy_folder: Path, progress: Progress) -> Outcome:
    """Measure the policy that a finished run left in its folder."""
    if job.config.algorithm.name == "reward_model":
        raise RequestError("a reward model is measured when it is trained; `multiref eval` scores policies.")
    return evaluate_policy(job, load_policy(job, str(policy_folder)), progress)


def build_evaluator(job: Job, progress: Progress) -> tuple[Evaluator, list[str]]:
    """The evaluator of a job, and what a report must say of its scorers."""
    config, settings = job.config, job.config.evaluation
    scorers, notes = _scorers(job)
    store = job.open_store()
    by_name = {r.name: r for r in config.references}

    @lru_cache(maxsize=2)
    def open_reference(name: str) -> nn.Module:
        device = config.hardware.reference_device or build.device_name(config)
        return load_causal_lm(by_name[name], device, build.dtype_name(config, by_name[name].dtype))

    evaluator = Evaluator(
        config=config,
        tokenizer=job.tokenizer,
        prompts=_prompts(job),
        scorers=scorers,
        references=list(by_name),
        open_reference=open_reference,
        foreign_tokenizers=_foreign_tokenizers(job),
        reference_samples=None,
        weights=build.weights(config),
        vocabulary=job.vocabulary,
        end_ids=end_ids(job.tokenizer),
    )
    if settings.win_rate and scorers and by_name:

        def samples(name: str) -> list[list[Completion]]:
            """Stored responses [P][G] of one reference, drawn once."""

            def generate(prompts: list, group_size: int, sampling: Any, seeds: list[int]) -> list[list[Completion]]:
                engine = TransformersEngine(open_reference(name), 0, settings.batch_size, job.vocabulary)
                return engine.generate(prompts, group_size, sampling, seeds)

            prompts = [p.ids for p in evaluator.prompts]
            return store.samples(
                by_name[name], prompts, settings.samples_per_prompt, evaluator.sampling(), evaluator.seeds(), generate
            )

        evaluator.reference_samples = samples
    return evaluator, notes


def _foreign_tokenizers(job: Job) -> dict[str, Any]:
    """Tokenizers of the references to which the policy's ids mean something else."""
    found = {r.name: load_tokenizer(r) for r in job.config.references}
    return {name: tokenizer for name, tokenizer in found.items() if first_difference(job.tokenizer, tokenizer)}


def _scorers(job: Job) -> tuple[dict[str, Scorer], list[str]]:
    config, scorers, notes = job.config, {}, []
    if config.evaluation.scorer is not None:
        made_by = (
            read_json(Path(config.evaluation.scorer.path) / "made_by.json")
            if Path(config.evaluation.scorer.path).is_dir()
            else None
        )
        accuracy = ((made_by or {}).get("metrics") or {}).get("held_out_accuracy", {}).get("mean")
        if config.evaluation.scorer.minimum_accuracy is not None:
            _refuse_weak(accuracy or 0.0, config.evaluation.scorer.minimum_accuracy)
        known = f"{accuracy:.3f}" if accuracy is not None else "not recorded with it"
        notes.append(f"reward model {Path(config.evaluation.scorer.path).name}: held-out accuracy {known}")
        dtype = build.dtype_name(config, config.evaluation.scorer.dtype)
        model = load_reward_model(config.evaluation.scorer, build.device_name(config), dtype)
        tokenizer = load_tokenizer(config.evaluation.scorer)
        template = config.evaluation.scorer.whole_template
        scorer = RewardModelScorer(model, tokenizer, whole_template=template)
        scorers["reward_model"] = _remembered(str(config.evaluation.scorer), scorer)
    if config.evaluation.gold and config.reward is not None:
        reward = build_reward(config.reward)
        scorers[config.reward.name] = _remembered(str(config.reward), lambda samples: reward(samples).total)
    return scorers, notes


def _remembered(identity: str, scorer: Scorer) -> Scorer:
    """The same scorer, with its latest results kept: all points of a sweep compare with the same reference samples."""

    def score(samples: list[Sample]) -> list[float]:
        """Scores of B samples, looked up where the same samples were the latest to be scored."""
        texts = [(s.messages, s.completion, s.answer, s.finished) for s in samples]
        key = hashlib.sha256(f"{identity}{texts}".encode()).hexdigest()
        if key not in _SCORES:
            _SCORES[key] = scorer(samples)
        _SCORES.move_to_end(key)
        while len(_SCORES) > _KEPT_SCORES:
            _SCORES.popitem(last=False)
        return _SCORES[key]

    return score


def _prompts(job: Job) -> list[Prompt]:
    """Prompts of the evaluation: those of the data's held-out (or training) rows, repeated prompts once."""
    rows: list[Any] = getattr(job.data, job.config.evaluation.split)
    if rows and not isinstance(rows[0], Prompt):
        rows = getattr(load_data(job.config, job.tokenizer, "grpo"), job.config.evaluation.split)
    if not rows:
        raise RequestError(
            f"evaluation.split={job.config.evaluation.split} has no rows; set data.held_out or evaluation.prompts=0."
        )
    return rows[: job.config.evaluation.prompts]


def _preference_accuracies(job: Job, model: nn.Module, progress: Progress) -> np.ndarray:
    """(N,) 1 where the implicit reward of the chosen response is the higher one, for held-out pairs."""
    held_out = Dpo(
        job.config, job.data.held_out, stored_pairs(job, job.data.held_out, progress), sharing_width(model), None
    )
    return held_out.accuracies(model)


def _refuse_weak(accuracy: float, minimum: float) -> None:
    if accuracy < minimum:
        raise RunError(
            f"the reward model's held-out accuracy is {accuracy:.3f}, below the bar {minimum:g}: its scores say little."
        )
