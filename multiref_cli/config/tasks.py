"""Tasks of evaluation libraries as a config names them: LIBRARY:TASK, TASK being a name of the library or a file."""

import difflib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from multiref_cli.errors import RequestError


class Library(NamedTuple):
    """An evaluation library: the packages that Python imports, what pip installs, our module that speaks to it."""

    packages: tuple[str, ...]
    requirement: str
    module: str


LIBRARIES = {
    # Its models of transformers need accelerate, which it has in an extra of its own.
    "lm_eval": Library(("lm_eval", "accelerate"), "'lm-eval[hf]'", "multiref_cli.evaluation.tasks.lm_eval"),
    "inspect": Library(("inspect_ai",), "inspect-ai", "multiref_cli.evaluation.tasks.inspect_ai"),
}


def library_and_task(given: str) -> tuple[str, str]:
    """The two parts of LIBRARY:TASK.

    Raises:
        RequestError: it has other parts, or a library that is not known.
    """
    library, colon, task = given.partition(":")
    if not colon or not task.strip():
        raise RequestError(
            f"evaluation.tasks has {given!r}; give LIBRARY:TASK, such as lm_eval:gsm8k or inspect:FILE.py@TASK."
        )
    if library not in LIBRARIES:
        close = difflib.get_close_matches(library, LIBRARIES, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}:{task}" if close else ""
        raise RequestError(f"evaluation.tasks has {given!r}; its library is one of {', '.join(LIBRARIES)}{hint}.")
    return library, task


def check_tasks(tasks: Sequence[str], writes: bool) -> None:
    """Refuse tasks that nothing can be made of, before any is looked for.

    Args:
        tasks: of the config.
        writes: whether what is trained writes responses.

    Raises:
        RequestError: a task of another form, twice the same, or whose library is not installed; or nobody to answer.
    """
    for given in tasks:
        library, _ = library_and_task(given)
        packages, requirement, _ = LIBRARIES[library]
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            raise RequestError(
                f"evaluation.tasks={given} needs {missing[0]}, which is not installed: pip install {requirement}, or "
                "drop the task."
            )
        if list(tasks).count(given) > 1:
            raise RequestError(f"evaluation.tasks has {given!r} twice; drop one.")
    if tasks and not writes:
        raise RequestError("evaluation.tasks are answered by a policy, and a reward model writes nothing; drop them.")
