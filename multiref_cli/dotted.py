"""From a dotted path in a config to the function that it names."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from multiref_cli.errors import RequestError


def function_of(path: str, key: str = "_target_") -> Callable[..., Any]:
    """Import the function that a dotted path names, such as `my_module.my_function`, also from the working directory.

    Args:
        path: module and name, with dots.
        key: of the config, for the message.

    Returns:
        The function.

    Raises:
        RequestError: there is no such module or function, or it cannot be called.
    """
    module, _, name = str(path).rpartition(".")
    if not module:
        raise RequestError(f"{key}={path}: give a dotted path, such as my_module.my_function.")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look into the working directory by itself
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise RequestError(f"{key}={path}: importing {module} failed: {error}.") from error
    if not hasattr(found, name):
        import difflib

        functions = [one for one, value in vars(found).items() if callable(value) and not one.startswith("_")]
        near = difflib.get_close_matches(name, functions, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(functions)) or 'no function'}."
        raise RequestError(f"{key}={path}: {module} has no {name}{hint}")
    function = getattr(found, name)
    if not callable(function):
        raise RequestError(f"{key}={path} is a {type(function).__name__}, not a function.")
    return function
