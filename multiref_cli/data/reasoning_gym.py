"""Problems by the thousand from the package `reasoning-gym` (optional extra `problems`), each with its own scorer."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from multiref_cli.data.rows import Rows
from multiref_cli.errors import RequestError

# Options of ours; whatever else stands in data.options goes to the task.
OURS = ("task", "size", "seed", "name", "answer")


def generate(options: Mapping[str, Any]) -> Rows:
    """Generate the problems of a task.

    Args:
        options: `task` such as chain_sum or gsm_symbolic; `size` problems (default 1,000) from `seed` (default 0); any
            other key is a setting of that task, such as `max_terms`.

    Returns:
        Rows of `prompt`, `answer`, and under `reasoning_gym` what the task's scorer needs.

    Raises:
        RequestError: the package is missing, or it has no such task or setting.
    """
    gym = import_gym()
    task = str(options.get("task"))
    if task not in gym.factory.DATASETS:
        import difflib

        near = difflib.get_close_matches(task, list(gym.factory.DATASETS), n=3)
        hint = ", ".join(near) if near else "chain_sum, gsm_symbolic, ..."
        raise RequestError(f"data.options.task={task} is no task of reasoning-gym; there is {hint}.")
    settings = {key: value for key, value in options.items() if key not in OURS}
    known = set(inspect.signature(gym.factory.DATASETS[task][1]).parameters)
    for key in settings:
        if key not in known:
            raise RequestError(f"data.options.{key} is no setting of {task}; it has {', '.join(sorted(known))}.")
    size, seed = int(options.get("size", 1000)), int(options.get("seed", 0))
    try:
        entries = list(gym.create_dataset(task, size=size, seed=seed, **settings))
    except (AssertionError, TypeError, ValueError) as error:
        raise RequestError(f"reasoning-gym refuses the settings of {task}: {error}.") from error
    rows = [(number, _row(task, entry)) for number, entry in enumerate(entries, 1)]
    text = json.dumps([row for _, row in rows], sort_keys=True, default=str)
    return Rows(rows, [], hashlib.sha256(text.encode()).hexdigest())


def import_gym() -> Any:
    """The package reasoning_gym.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise RequestError("reasoning_gym needs an optional package: pip install 'multiref[problems]'.") from error
    return reasoning_gym


def _row(task: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    entry = json.loads(json.dumps(dict(entry), default=str))
    return {"prompt": entry["question"], "answer": entry["answer"], "reasoning_gym": {"task": task, "entry": entry}}
