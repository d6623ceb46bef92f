"""From a dotted path in a config to the reward function that it names."""

import importlib
import inspect
import os
import sys
from typing import Any

from multiref_cli.errors import RequestError
from multiref_cli.rewards.call import takes_columns
from multiref_cli.rewards.sample import RewardFunction


def resolve(path: str) -> RewardFunction:
    """Import the function that a dotted path names, such as `my_rewards.politeness`, also from the working directory.

    Args:
        path: module and name, with dots.

    Returns:
        The function.

    Raises:
        RequestError: there is no such module or function, or it cannot be called.
    """
    module, _, name = str(path).rpartition(".")
    if not module:
        raise RequestError(f"_target_={path}: give a dotted path, such as my_module.my_reward.")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look into the working directory by itself
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise RequestError(f"_target_={path}: importing {module} failed: {error}.") from error
    if not hasattr(found, name):
        import difflib

        functions = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, functions, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(functions)) or 'no function'}."
        raise RequestError(f"_target_={path}: {module} has no {name}{hint}")
    function = getattr(found, name)
    if not callable(function):
        raise RequestError(f"_target_={path} is a {type(function).__name__}, not a function.")
    return function


def check_options(path: str, function: RewardFunction, options: dict[str, Any]) -> None:
    """Refuse options that a reward function does not take.

    Args:
        path: dotted path, for the message.
        function: takes samples and keyword options.
        options: as given in the config.

    Raises:
        RequestError: naming the option and what the function takes.
    """
    parameters = list(inspect.signature(function).parameters.values())
    of_rows = takes_columns(function)  # the columns of the data set are arguments then
    if not of_rows:
        parameters = parameters[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = {parameter.name: parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL}
    unknown = [name for name in options if name not in known]
    missing = [n for n, parameter in known.items() if parameter.default is parameter.empty and n not in options]
    if unknown:
        raise RequestError(f"{path} has no option {unknown[0]}; it takes {', '.join(known) or 'none'}.")
    if missing and not of_rows:
        raise RequestError(f"{path} needs the option {missing[0]}, which is not given.")
