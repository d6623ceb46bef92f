"""Nothing trained: the start, or the mixed reference token by token, alone or as the best of N, measured as any run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from multiref_cli.algorithms.base import Batch, Job, Sampler, Trainee, load_policy
from multiref_cli.algorithms.grpo import load, parts
from multiref_cli.config.algorithms import UntrainedSettings
from multiref_cli.config.schema import Reward, RewardTerm
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.evaluate import Evaluator
from multiref_cli.rewards.combine import build_reward
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.best_of import BestOf, excess
from multiref_cli.rollouts.engine import Completion, Engine
from multiref_cli.rollouts.mixture import MixtureEngine
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel

__all__ = ["assemble", "load", "mean_tokens", "parts", "sampler"]


class Nothing:
    """An objective without a step."""

    def batch(self, step: int) -> Batch:
        """Never asked for: the run has no step."""
        raise ValueError("nothing is trained")

    def loss(self, model: LanguageModel, micro: object) -> tuple[Tensor, Averages]:
        """Never asked for."""
        raise ValueError("nothing is trained")


def assemble(job: Job, progress: Progress) -> Trainee:
    """Load the start."""
    return Trainee(load_policy(job), Nothing())


def mean_tokens(job: Job) -> float:
    """None: no row is trained on."""
    return 0.0


def sampler(job: Job, model: LanguageModel, evaluator: Evaluator) -> Sampler:
    """The start or the mixed reference, wrapped in best-of-N where the config says so.

    Raises:
        RequestError: references over other vocabularies cannot be mixed token by token.
    """
    settings = cast(UntrainedSettings, job.experiment.algorithm)
    mixed = settings.sampler == "mixed"
    engine: Engine = TransformersEngine(model, 0, job.experiment.evaluation.batch_size, job.vocabulary)
    if mixed:
        engine = _mixture(job, evaluator)
    policy = None if mixed else model
    if settings.best_of == 1:
        return Sampler(engine, policy)
    judge, notes = _judge(job, settings)

    def score(prompts: Sequence[Sequence[int]], drawn: list[list[Completion]]) -> Sequence[float]:
        """Scores of all candidates."""
        known = {tuple(prompt.ids): prompt for prompt in evaluator.prompts}
        asked = replace(evaluator, prompts=[known[tuple(ids)] for ids in prompts])
        return judge(asked.samples(drawn))

    return Sampler(BestOf(engine, settings.best_of, score), policy, excess(settings.best_of), notes)


def _mixture(job: Job, evaluator: Evaluator) -> MixtureEngine:
    """The mixed reference of the regularizer's mean order, from the models that the evaluation measures with."""
    experiment, names = job.experiment, {one.name for one in job.experiment.active_references}
    members = [one for one in evaluator.references if one.name in names]
    for one in members:
        if one.name in evaluator.foreign:
            raise RequestError(f"{one.name} has another tokenizer than the policy: its tokens cannot be mixed.")
    mix = experiment.terms[0].mix
    models, size = [one.model for one in members], experiment.evaluation.batch_size
    return MixtureEngine(models, experiment.active_weights, float(mix.order), 0, size, job.vocabulary)


def _judge(job: Job, settings: UntrainedSettings) -> tuple[Callable[[list[Sample]], Sequence[float]], tuple[str, ...]]:
    """What chooses among candidates, and what a report must say of it."""
    named, local = job.asked.reward, job.experiment.reward
    title = named.name if named is not None else ""
    bound = "the KL to every reference is an upper bound"
    if settings.selector is not None:
        function: dict[str, Any] = {"_target_": "multiref_cli.rewards.model.reward_model", "path": settings.selector}
        local = Reward(name="selector", terms={"score": RewardTerm(function=function)})
        title = f"the reward model {cast(UntrainedSettings, job.asked.algorithm).selector}"
    if local is None:
        raise ValueError("best_of needs something to choose by")  # refused where the config is checked
    reward = build_reward(local)
    said = f"best of {settings.best_of} by {title}: {bound}"
    if settings.selector is None and job.experiment.evaluation.gold:
        said += f"; {title} scores the answers too, so this is what a judge with the solution at hand would pick"
    return (lambda samples: reward(samples).total), (said,)
