"""Calling a reward function, ours or one written for TRL, and checking what it gives back."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from multiref_cli.rewards.sample import RewardFunction, Sample


class WrongValue(Exception):
    """A reward function gave something else than a number a response; the message goes behind the function's name."""


def call(function: RewardFunction, samples: Sequence[Sample], options: Mapping[str, Any]) -> list[float | None]:
    """Call a reward function on B samples.

    A function whose parameters are called `completions` or `prompts` is one for TRL: `f(prompts, completions,
    **columns)` or `f(completions, **kwargs)`. It is given the prompts and completions as the row has them, plain texts
    or conversations, and the columns of the data set as lists of B values. Any other is given the samples.

    Args:
        function: of the config.
        samples: (B,) responses.
        options: keyword arguments of the config.

    Returns:
        (B,) values; None where the function says that it does not apply.

    Raises:
        WrongValue: it gives something else than B numbers.
    """
    arguments = {**columns(function, samples), **options} if takes_columns(function) else None
    found: Any = function(**arguments) if arguments is not None else function(samples, **options)
    if inspect.isawaitable(found):
        raise WrongValue("is asynchronous, which is not supported")
    if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Iterable):
        raise WrongValue(f"gave {_kind(found)}, not a list of one number a response")
    values = [_number(value) for value in found]
    if len(values) != len(samples):
        raise WrongValue(f"gave {len(values)} values for {len(samples)} responses")
    return values


def takes_columns(function: RewardFunction) -> bool:
    """Whether a function is written for TRL."""
    return bool({"completions", "prompts"} & set(inspect.signature(function).parameters))


def columns(function: RewardFunction, samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Prompts, completions and columns of the rows as TRL gives them: as many as the function takes."""
    talks = [sample.conversational for sample in samples]
    found: dict[str, list[Any]] = {
        "prompts": [list(s.messages) if talk else s.prompt for s, talk in zip(samples, talks)],
        "completions": [
            [{"role": "assistant", "content": s.completion}] if talk else s.completion
            for s, talk in zip(samples, talks)
        ],
    }
    names = dict.fromkeys(name for sample in samples for name in sample.extra)
    found |= {name: [sample.extra.get(name) for sample in samples] for name in names if name not in found}
    if any(sample.answer is not None for sample in samples):
        found["answer"] = [sample.extra.get("answer", sample.answer) for sample in samples]
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return found
    return {name: values for name, values in found.items() if name in parameters}


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)):
        raise WrongValue(f"gave {_kind(value)} for a response, not a number")
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise WrongValue(f"gave {_kind(value)} for a response, not a number") from None


def weighted_sum(values: Sequence[float | None], weights: Sequence[float]) -> float:
    """Sum of the terms that apply, 0 where none does."""
    return math.fsum(weight * value for value, weight in zip(values, weights) if value is not None)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
