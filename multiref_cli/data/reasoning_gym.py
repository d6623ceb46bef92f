"""Problems by the thousand from the package `reasoning-gym` (optional extra `problems`), each with its own scorer."""

import inspect
from collections.abc import Mapping
from typing import Any

from multiref_cli.errors import RequestError


def generate(task: str, size: int = 1000, seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
    """Generate the problems of a task.

    Args:
        task: such as chain_sum or gsm_symbolic.
        size: number of problems.
        seed: of the problems, not of the run.
        **settings: of that task, such as `max_terms`.

    Returns:
        Rows of `prompt`, `answer`, and under `reasoning_gym` what the task's scorer needs.

    Raises:
        RequestError: the package is missing, or it has no such task or setting.
    """
    gym = import_gym()
    if task not in gym.factory.DATASETS:
        import difflib

        near = difflib.get_close_matches(task, list(gym.factory.DATASETS), n=3)
        hint = ", ".join(near) if near else "chain_sum, gsm_symbolic, ..."
        raise RequestError(f"data.source.task={task} is no task of reasoning-gym; there is {hint}.")
    known = set(inspect.signature(gym.factory.DATASETS[task][1]).parameters)
    for key in settings:
        if key not in known:
            raise RequestError(f"data.source.{key} is no setting of {task}; it has {', '.join(sorted(known))}.")
    try:
        entries = list(gym.create_dataset(task, size=size, seed=seed, **settings))
    except (AssertionError, TypeError, ValueError) as error:
        raise RequestError(f"reasoning-gym refuses the settings of {task}: {error}.") from error
    return [_row(task, entry) for entry in entries]


def import_gym() -> Any:
    """The package reasoning_gym.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise RequestError("reasoning_gym needs an optional package: pip install reasoning-gym.") from error
    return reasoning_gym


def _row(task: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    entry = dict(entry)  # as it is: scorers compare with its tuples
    return {"prompt": entry["question"], "answer": entry["answer"], "reasoning_gym": {"task": task, "entry": entry}}
