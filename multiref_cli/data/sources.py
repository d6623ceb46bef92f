"""Rows that a function makes: `data.source` names it by its dotted path, its other keys are its arguments."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from multiref_cli.errors import RequestError


def make_rows(source: Mapping[str, Any], max_rows: int | None = None) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """Call the function that a source names.

    Args:
        source: `{_target_: dotted.path, **arguments}`; the function returns an iterable of rows (dictionaries).
        max_rows: use no more than the first so many.

    Returns:
        (number from 1, row) each, and the sha256 of their content.

    Raises:
        RequestError: no `_target_`, no such function, arguments that it does not take, or rows that are no
            dictionaries.
    """
    from multiref_cli.rewards.resolve import resolve

    arguments = dict(source)
    path = arguments.pop("_target_", None)
    if path is None:
        raise RequestError("data.source has no _target_, the dotted path of a function that returns rows.")
    function = resolve(path)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        takes = ", ".join(inspect.signature(function).parameters)
        raise RequestError(f"data.source: {path} takes {takes or 'no arguments'}: {error}.") from error
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, row in enumerate(function(**arguments), 1):  # type: ignore[arg-type]
        if max_rows is not None and number > max_rows:
            break
        if not isinstance(row, Mapping):
            raise RequestError(f"data.source: {path} gave {type(row).__name__} as row {number}, not a dictionary.")
        rows.append((number, dict(row)))
    text = json.dumps([row for _, row in rows], sort_keys=True, default=str)
    return rows, hashlib.sha256(text.encode()).hexdigest()
