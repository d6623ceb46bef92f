"""Settings as plain values and back: dictionaries, lists, numbers and texts, as JSON and YAML hold them."""

import hashlib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_plain(value: object) -> Any:
    """Settings as dictionaries and lists; an enum as its name."""
    if is_dataclass(value):
        return {one.name: to_plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    return value.name if isinstance(value, Enum) else value


def from_plain(kind: Callable[..., T], content: Mapping[str, Any]) -> T:
    """Settings from what `to_plain` gave: no value is converted; a key that is not there has its default.

    Args:
        kind: a dataclass of the schema.
        content: its fields; what is none of them is left out, as an earlier version may have had it.
    """
    known = {name: _typed(hint, content[name]) for name, hint in _fields(kind).items() if name in content}
    return kind(**known)


# Metadata of a field that came after experiments had hashes: at its default it is no part of what they are known by.
LATER = {"later": True}


def without_later(settings: object, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of settings less the keys of LATER fields that have their default.

    Args:
        settings: a dataclass of the schema.
        plain: what `to_plain` gave of it, or a part of that.
    """
    later = [one for one in fields(settings) if one.metadata.get("later")]  # type: ignore[arg-type]
    idle = {one.name for one in later if getattr(settings, one.name) == _default(one)}
    return {key: value for key, value in plain.items() if key not in idle}


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


def changed(value: object, change: Callable[[str], str]) -> Any:
    """Settings or plain values with every text in them changed."""
    if isinstance(value, str):
        return change(value)
    if is_dataclass(value):
        kind: Any = type(value)
        return kind(**{one.name: changed(getattr(value, one.name), change) for one in fields(value)})
    if isinstance(value, Mapping):
        return {key: changed(one, change) for key, one in value.items()}
    return [changed(one, change) for one in value] if isinstance(value, list) else value


def digest(content: object) -> str:
    """The first 12 digits of the sha256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """Name -> type of every field of a dataclass."""
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


def _typed(hint: Any, value: Any) -> Any:
    """A plain value as the type of its field asks for it: dataclasses, enums, and those inside lists and dicts."""
    origin = get_origin(hint)
    if value is None or hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _typed(next(one for one in get_args(hint) if one is not type(None)), value)
    if origin is list:
        return [_typed(get_args(hint)[0], one) for one in value]
    if origin is dict:
        return {key: _typed(get_args(hint)[1], one) for key, one in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return from_plain(hint, value)
    return hint[value] if isinstance(hint, type) and issubclass(hint, Enum) else value
