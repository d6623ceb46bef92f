"""From a dotted path in a config to the reward function that it names."""

import inspect
from typing import Any

from multiref_cli.dotted import function_of
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
    return function_of(path)


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
