"""The scorers of the package `reasoning-gym`, one for each of its tasks."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from multiref_cli.data.answers import final_answer
from multiref_cli.data.reasoning_gym import import_gym
from multiref_cli.rewards.sample import Sample, needs


def no_problem(sample: Sample) -> str | None:
    """A prompt that is no problem of reasoning-gym."""
    return None if "reasoning_gym" in sample.extra else "no problem of data=reasoning_gym"


@needs(no_problem)
def task_score(
    samples: Sequence[Sample], forms: Sequence[str] = ("xml", "boxed", "hash"), whole: bool = True
) -> list[float]:
    """Score responses with the scorer of the task that their problems come from.

    Args:
        samples: (B,) responses to prompts of `data=reasoning_gym`.
        forms: where an answer may be stated, as in `multiref_cli.rewards.verifiers.final_number`.
        whole: take the whole response as the answer where none is stated in these forms.

    Returns:
        (B,) rewards between 0 and 1; a task may give partial credit.

    Raises:
        ValueError: a prompt is not a problem of reasoning-gym.
    """
    scores = []
    for sample in samples:
        problem = sample.extra.get("reasoning_gym")
        if problem is None:
            raise ValueError("the prompt is not a problem of data=reasoning_gym")
        answer = final_answer(sample.completion, forms) or (sample.completion.strip() if whole else None)
        scores.append(float(_scorer(problem["task"])(answer, problem["entry"])))
    return scores


@lru_cache(maxsize=32)
def _scorer(task: str) -> Any:
    return import_gym().get_score_answer_fn(task)
