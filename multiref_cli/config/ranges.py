"""Ranges of numbers: each stands in the schema beside its key, in the notation of intervals, and is checked there."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from multiref_cli.config.plain import LATER
from multiref_cli.errors import RequestError


@dataclass(frozen=True)
class Range:
    """An interval of numbers; NaN lies in none.

    Attributes:
        low: smallest number.
        high: largest number.
        with_low: whether `low` itself is allowed.
        with_high: whether `high` itself is allowed.
        note: what a special value means, for the sentence of a refusal.
    """

    low: float
    high: float
    with_low: bool
    with_high: bool
    note: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number lies in it."""
        above = value >= self.low if self.with_low else value > self.low
        return above and (value <= self.high if self.with_high else value < self.high)

    def asked(self, value: float) -> str:
        """What a number outside of it must be: of a count or seed that is too large the bound too."""
        return f"at most {self.high:.0f}" if value > self.high >= 2**53 else str(self)

    def __str__(self) -> str:
        high = f"at most {self.high:g}" if self.with_high else f"below {self.high:g}"
        note = f" ({self.note})" if self.note else ""
        if self.with_low and self.high >= 2**53:
            return f"{self.low:g} or more{note}"
        if self.with_low:
            return f"from {self.low:g} {'to' if self.with_high else 'up to'} {self.high:g}{note}"
        return f"above {self.low:g} and {high}{note}"


def interval(text: str, note: str = "") -> Range:
    """The range that is written `[0, 1]`, `(0, 1]`, `[0, 1)` or `(0, 1)`; a round bracket leaves its end out."""
    low, high = map(float, text[1:-1].split(","))
    return Range(low, high, text[0] == "[", text[-1] == "]", note)


# Counts and seeds: what 64-bit integers hold, and what a computer can be asked to count to.
COUNT, COUNT_OR_0 = "[1, 1e9]", "[0, 1e9]"
SEED = f"[0, {2**53}]"


def number(allowed: str, default: Any, note: str = "", later: bool = False) -> Any:
    """A field of a schema that holds a number of a range.

    Args:
        allowed: an interval, such as `(0, 1]`.
        default: a number, None or MISSING.
        note: what a special value means.
        later: see `plain.LATER`.
    """
    return field(default=default, metadata=within(allowed, note) | (LATER if later else {}))


def within(allowed: str, note: str = "", length: int | None = None) -> dict[str, Any]:
    """Metadata of a field whose number, or every number of its list of some length, lies in a range."""
    return {"range": interval(allowed, note), "length": length}


def check_numbers(settings: object, prefix: str = "") -> None:
    """Refuse numbers outside the ranges of their keys, and numbers of no range that are not finite.

    Args:
        settings: a dataclass of the schema, with dataclasses, lists and dictionaries in it.
        prefix: stands before a key in the sentence, with its dot.

    Raises:
        RequestError: naming the key, its value and what is allowed.
    """
    for one in fields(settings):  # type: ignore[arg-type]
        value, key = getattr(settings, one.name), f"{prefix}{one.name}"
        allowed: Range | None = one.metadata.get("range")
        if allowed is None:
            _check_inside(value, key)
            continue
        length, items = one.metadata["length"], value if isinstance(value, list) else [value]
        if length is not None and len(items) != length:
            raise RequestError(f"{key} is {value}; it must be a list of {length} numbers, each {allowed}.")
        for item in items:
            if item is not None and not allowed.holds(item):
                raise RequestError(f"{key} is {item:g}; it must be {allowed.asked(item)}.")


def check_number(kind: type, name: str, value: float, key: str) -> None:
    """Refuse a number outside the range that a field of a schema has.

    Args:
        kind: dataclass of the schema.
        name: of the field.
        value: to be checked.
        key: what the sentence calls it.
    """
    allowed = {one.name: one for one in fields(kind)}[name].metadata["range"]
    if not allowed.holds(value):
        raise RequestError(f"{key} is {value:g}; it must be {allowed.asked(value)}.")


def _check_inside(value: object, key: str) -> None:
    """Check what lies in a dataclass, a list or a dictionary of any keys."""
    if is_dataclass(value) and not isinstance(value, type):
        check_numbers(value, f"{key}.")
    for name, child in _children(value):
        _check_inside(child, f"{key}{name}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{key} is {value:g}; it must be a finite number.")


def _children(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((f".{name}", child) for name, child in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
