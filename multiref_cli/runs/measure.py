"""What is measured on a trained model, with the models that measuring needs."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multiref_cli.algorithms.base import Job, Sampler, load_policy, module_of
from multiref_cli.config import schema
from multiref_cli.data.chat import end_ids
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.evaluate import REWARD_MODEL, Evaluator, Scorer, summary
from multiref_cli.models.inspect import position_limit
from multiref_cli.models.load import load_reward_model
from multiref_cli.references.base import Reference
from multiref_cli.references.tokens import response_ids
from multiref_cli.rewards.combine import build_reward
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.engine import Completion
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.runs.judge import accuracy_of, check_scorer, open_scorer
from multiref_cli.runs.scorer_file import Judged, judge_on_file
from multiref_cli.runs.tasks import measure_tasks
from multiref_cli.sharding import whole
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel

# The latest results of scorers, by scorer and samples.
_SCORES: OrderedDict[str, list[float]] = OrderedDict()
_KEPT_SCORES = 16


@dataclass(frozen=True)
class Outcome:
    """What was measured of a trained model.

    Attributes:
        metrics: name -> mean, ci_low, ci_high, n.
        samples: rows of evaluation.jsonl, one a prompt.
        pairs: rows of pairs.jsonl, one a held-out pair.
        notes: sentences for the report.
        answers: rows of answers.jsonl, the first prompts with their responses one by one.
        tasks: what is known of the tasks of evaluation libraries that were answered.
        task_rows: rows of tasks.jsonl, one a document of a task.
        judged: how well the reward model tells right from wrong on evaluation.scorer_file.
    """

    metrics: dict[str, dict[str, float]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    task_rows: list[dict[str, Any]] = field(default_factory=list)
    judged: Judged = field(default_factory=Judged)


def measure(job: Job, model: LanguageModel, progress: Progress, folder: Path) -> Outcome:
    """Measure a trained model: held-out preference pairs, samples of held-out prompts, tasks of evaluation libraries.

    Args:
        job: of the run.
        model: trained, on its device.
        progress: told of every phase.
        folder: of the run, with the model in policy/.
    """
    with job.precision.autocast():
        found = _measure(replace(job, experiment=job.experiment.final), model, progress)
        if job.experiment.evaluation.scorer_file is not None:
            judged = job.parallel.once(lambda: judge_on_file(job, model, progress))
            metrics, notes = found.metrics | judged.metrics, [*found.notes, *judged.notes]
            found = replace(found, metrics=metrics, notes=notes, judged=judged)
        if not job.experiment.evaluation.tasks:
            return found
        beside = [one.model for one in job.opened.values()] if job.experiment.evaluation.win_rate else []
        with whole(model, *beside):  # the main process asks alone
            tasks = job.parallel.once(lambda: measure_tasks(job, model, progress, folder))
    notes = [*found.notes, *tasks.notes]
    return replace(found, metrics=found.metrics | tasks.metrics, notes=notes, tasks=tasks.facts, task_rows=tasks.rows)


def _measure(job: Job, model: LanguageModel, progress: Progress) -> Outcome:
    settings, algorithm = job.experiment.evaluation, job.experiment.algorithm
    metrics: dict[str, dict[str, float]] = {}
    pairs: list[dict[str, Any]] = []
    if algorithm.measures_pairs and job.data.held_out:
        progress.advance("evaluate: held-out pairs", 0, len(job.data.held_out))
        judged = module_of(job.experiment).measure_pairs(job, model, progress)
        metrics = {name: summary(values, settings.bootstrap) for name, values in judged.items()}
        pairs = [
            {"row": pair.row, **{name: float(values[i]) for name, values in judged.items()}}
            for i, pair in enumerate(job.data.held_out)
        ]
    if settings.prompts == 0 or not algorithm.writes:
        return Outcome(metrics, pairs=pairs)
    evaluator, notes = build_evaluator(job)
    sampler = Sampler(TransformersEngine(model, 0, settings.batch_size, job.vocabulary), model)
    if not algorithm.trains:
        sampler = module_of(job.experiment).sampler(job, model, evaluator)
        evaluator = replace(evaluator, nats_above=sampler.nats_above)
        notes.extend(sampler.notes)
    found, samples = evaluator.evaluate(sampler.policy, sampler.engine, progress)
    cut = sum(getattr(getattr(scorer, "source", None), "cut", 0) for scorer in evaluator.scorers.values())
    if cut:
        notes.append(f"{cut} inputs of the reward model were longer than it reads and lost their end")
    return Outcome(metrics | found, samples, pairs, notes, evaluator.answers)


def measure_folder(job: Job, policy_folder: Path, progress: Progress) -> Outcome:
    """Measure the policy that a finished run left in its folder.

    Raises:
        RequestError: what the run trained writes no responses, and there is no file to judge it on.
    """
    if not job.experiment.algorithm.writes:
        if job.experiment.evaluation.scorer_file is None:
            raise RequestError(
                "a reward model is measured when it is trained; `multiref eval` scores policies, and reward models "
                "with evaluation.scorer_file=FILE."
            )
        dtype = job.precision.parameters(adapted=job.experiment.policy.adapted)
        trained = load_reward_model(schema.Model(path=str(policy_folder)), job.device, dtype)
        return measure(job, trained, progress, policy_folder.parent)
    return measure(job, load_policy(job, str(policy_folder)), progress, policy_folder.parent)


def build_evaluator(job: Job) -> tuple[Evaluator, list[str]]:
    """The evaluator of a job, and what a report must say of its scorers."""
    scorers, notes = _scorers(job)
    return _evaluator(job, scorers), notes


def sample_references(job: Job, progress: Progress) -> None:
    """Draw the responses of the active references that win rates compare with, where they are not stored."""
    evaluator = _evaluator(job, {})
    for reference in evaluator.references:
        if reference.name in {one.name for one in job.experiment.active_references}:
            progress.advance(f"evaluate: samples of {reference.name}", 0, len(evaluator.prompts))
            _reference_samples(job, evaluator, reference)
            reference.release()


def _evaluator(job: Job, scorers: dict[str, Scorer]) -> Evaluator:
    references = job.references(active=False)
    foreign = {r.name: tokenizer for r in references if (tokenizer := job.foreign_tokenizer(r)) is not None}
    evaluator = Evaluator(
        experiment=job.experiment,
        tokenizer=job.tokenizer,
        prompts=job.prompts,
        scorers=scorers,
        references=references,
        foreign=foreign,
        reference_samples=None,
        vocabulary=job.vocabulary,
        end_ids=end_ids(job.tokenizer),
        parallel=job.parallel,
    )
    if job.experiment.evaluation.win_rate and scorers and references:
        evaluator.reference_samples = lambda reference: _reference_samples(job, evaluator, reference)
    return evaluator


def _reference_samples(job: Job, evaluator: Evaluator, reference: Reference) -> list[list[Completion]]:
    """Stored responses [P][S] of one reference, drawn once; one with other tokens answers prompts in these."""
    settings, prompts, how = evaluator.settings, [prompt.ids for prompt in evaluator.prompts], evaluator.sampling()
    foreign, vocabulary = evaluator.foreign.get(reference.name), None
    if foreign is not None:
        prompts = [tuple(response_ids(foreign, prompt.messages, "", False)[0]) for prompt in evaluator.prompts]
        positions = None if reference.spec.server else position_limit(reference.spec)
        room = settings.max_new_tokens if positions is None else positions - max(map(len, prompts))
        fewer = max(1, min(settings.max_new_tokens, room))
        how = replace(how, max_new_tokens=fewer, end_ids=tuple(end_ids(foreign)))
        vocabulary = max(foreign.get_vocab().values()) + 1
    return job.open_store().samples(
        reference, prompts, settings.samples_per_prompt, how, evaluator.seeds(), settings.batch_size, vocabulary
    )


def _scorers(job: Job) -> tuple[dict[str, Scorer], list[str]]:
    experiment, scorers, notes = job.experiment, dict[str, Scorer](), list[str]()
    gold = experiment.reward if experiment.evaluation.gold else None
    if not job.parallel.main:  # the main process scores: no other one holds a reward model
        names = [REWARD_MODEL] * (experiment.evaluation.scorer is not None) + ([gold.name] if gold else [])
        return dict.fromkeys(names, _elsewhere), notes
    if experiment.evaluation.scorer is not None:
        scorers[REWARD_MODEL], note = _reward_model(job, experiment.evaluation.scorer)
        notes.append(note)
    if gold is not None:
        reward = build_reward(gold)
        scorers[gold.name] = _remembered(str(gold), lambda samples: reward(samples).total)
    return scorers, notes


def _elsewhere(samples: list[Sample]) -> list[float]:
    raise ValueError("the main process scores")


def _reward_model(job: Job, spec: schema.Scorer) -> tuple[Scorer, str]:
    """A trained reward model as a scorer, and what is known of its accuracy."""
    scorer = open_scorer(job, spec)
    found = accuracy_of(job, spec, scorer)
    check_scorer(job)
    known = f"{found.value:.3f}" if found is not None else "not recorded with it"
    return _remembered(str(spec), scorer), f"reward model {Path(spec.path).name}: held-out accuracy {known}"


def _remembered(identity: str, scorer: Scorer) -> Scorer:
    """The same scorer, with its latest results kept: all points of a sweep compare with the same reference samples."""

    def score(samples: list[Sample]) -> list[float]:
        """Scores of B samples, looked up where the same samples were the latest to be scored."""
        texts = [(s.messages, s.whole, s.answer, s.finished) for s in samples]
        key = hashlib.sha256(f"{identity}{texts}".encode()).hexdigest()
        if key not in _SCORES:
            _SCORES[key] = scorer(samples)
        _SCORES.move_to_end(key)
        while len(_SCORES) > _KEPT_SCORES:
            _SCORES.popitem(last=False)
        return _SCORES[key]

    score.source = scorer  # type: ignore[attr-defined]
    return score
