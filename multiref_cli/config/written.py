"""What people type as an override, in the words that Hydra's grammar reads: paths, texts, lists of references."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from multiref_cli.config.folders import groups, options
from multiref_cli.config.schema import Experiment, ReferenceSpec
from multiref_cli.config.sentences import nearest
from multiref_cli.errors import RequestError

# Free texts: everything behind the sign belongs to them, commas and braces too; \n is a line break.
_TEXTS = ("data.system_prompt", "data.prompt_template")
# Parts of an experiment whose keys are the user's own.
_OPEN = ("data.columns", "data.options", "data.source", "data.chat_template_kwargs", "rollout.options", "policy.new")
_PLAIN = re.compile(r"[\w./:%@?*|+-]*", re.ASCII)
_OTHER_TYPE = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?|true|false|nan|[-+]?inf", re.IGNORECASE)
# Names of folders: one text, whatever is in it.
_WHOLE = ("run.name", "run.dir")
_BRACKETS = re.compile(r"\[|\{")
_GRAMMAR = re.compile(r"(choice|range|glob|interval|sort|shuffle|tag|extend_list|str|int|float|bool)\(")


def written(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra's grammar reads them.

    A list of references (`references=[{name: a, path: X}]`) needs no file. A key that holds text takes a value with
    `~`, `=`, blanks or digits alone as it is; a comma still separates several values, except in the system prompt and
    the prompt template.

    Raises:
        RequestError: no key, a list of references that is none, or what is no option in place of a group's option.
    """
    found: list[str] = []
    for override in overrides:
        mark, key, value = _parts(override)
        if not key and value is not None:
            raise RequestError(f"{override!r} has no key before its sign; write KEY=VALUE.")
        if key in groups() and value is not None and value.lstrip().startswith("{"):
            form = "references is a list of references; write references='[{name: a, path: X}, ...]'"
            chosen = f"{key} is chosen by name; give one of {', '.join(options(key))}, and its keys as {key}.KEY=VALUE"
            raise RequestError(f"{form if key == 'references' else chosen}.")
        if key in groups() and value is not None and value.lower() in ("true", "false"):
            raise RequestError(f"{key}={value} is no option of {key}; give one of {', '.join(options(key))}.")
        if key == "references" and value is not None and value.lstrip().startswith("["):
            found += ["references=_list", f"++own={_reference_list(value)}"]
        elif value is None or value in ("null", "None"):
            found.append(override)
        elif key == "policy.models" and value is not None and _is_list(value):
            found.append(f"{mark}{key}={_value(yaml.safe_load(value))}")
        elif key in _TEXTS:
            found.append(f"{mark}{key}={_quoted(_text(value))}")
        elif key in _WHOLE and not _is_quoted(value) and "${" not in value:
            found.append(f"{mark}{key}={_quoted(value)}")
        elif key in text_keys():
            found.append(f"{mark}{key}={_values(value)}")
        elif is_open(key) and not _BRACKETS.match(value):
            found.append(f"{mark}{key}={_values(value, _is_unreadable)}")
        else:
            found.append(override)
    return found


def _is_list(value: str) -> bool:
    """Whether a value is one list of YAML, not several between commas or one in Hydra's own grammar (`{key:value}`)."""
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        return False
    return isinstance(found, list) and not any(isinstance(one, dict) and None in one.values() for one in found)


def is_open(key: str) -> bool:
    """Whether a key lies in a part of the experiment whose keys are the user's own."""
    return key.startswith(tuple(f"{part}." for part in _OPEN))


def named(overrides: Sequence[str], name: str) -> bool:
    """Whether a key, or a part of it, is among the overrides."""
    keys = [_parts(override)[1] for override in overrides]
    return any(key == name or key.startswith((f"{name}.", f"{name}@")) for key in keys)


def _parts(override: str) -> tuple[str, str, str | None]:
    """Marks such as `++`, the key, and the value; None without an equals sign."""
    key, sign, value = override.partition("=")
    bare = key.lstrip("+~")
    return key[: len(key) - len(bare)], bare, value if sign else None


@cache
def text_keys() -> frozenset[str]:
    """Dotted keys of the schema that hold text, and those of references=pair."""
    return frozenset({"first", "second", *(key for key, kind in key_types().items() if kind is str)})


@cache
def key_types() -> dict[str, Any]:
    """Dotted keys of the schema with the type of their values, None left aside; Any where several are possible."""
    found: dict[str, Any] = {}

    def walk(kind: Any, prefix: str) -> None:
        """Add the keys of a dataclass."""
        for name, hint in get_type_hints(kind).items():
            options = [one for one in get_args(hint) if one is not type(None)] if get_origin(hint) is Union else [hint]
            only = options[0] if len(options) == 1 else Any
            found[f"{prefix}{name}"] = only
            if isinstance(only, type) and is_dataclass(only):
                walk(only, f"{prefix}{name}.")

    walk(Experiment, "")
    return found


def _is_strange(value: str) -> bool:
    return bool(_OTHER_TYPE.fullmatch(value)) or _is_unreadable(value)


def _is_unreadable(value: str) -> bool:
    return not _PLAIN.fullmatch(value)


def _values(value: str, strange: Callable[[str], bool] = _is_strange) -> str:
    """One value, or several between commas, each in quotes where the grammar would read it as something else."""
    if _is_quoted(value) or "${" in value or _GRAMMAR.match(value):
        return value
    parts = [value] if _BRACKETS.match(value) else value.split(",")
    return ",".join(_quoted(one) if strange(one.strip()) else one for one in parts)


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _text(value: str) -> str:
    inside = value[1:-1] if _is_quoted(value) else value
    breaks = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
    # Only line breaks and tabs: a backslash elsewhere is LaTeX's (\boxed). Words of LaTeX that begin so stay too.
    return re.sub(r"\\(?:n(?!eq|u\b|ot\b|abla|ewline)|t(?!ext|imes|heta|frac|o\b)|\\)", lambda m: breaks[m[0]], inside)


def _quoted(value: str) -> str:
    """A value in Hydra's quotes; a backslash counts only before a quote or at the end."""
    value = re.sub(r"(\\+)(?=\"|$)", r"\1\1", value).replace('"', '\\"')
    return f'"{value}"'


def _reference_list(value: str) -> str:
    try:
        references = yaml.safe_load(value)
    except yaml.YAMLError:
        references = None
    if not isinstance(references, list) or not references or not all(isinstance(one, dict) for one in references):
        raise RequestError(
            f"references={value} is no list of references; write references='[{{name: a, path: X}}, ...]'."
        )
    known = [one for base in reversed(ReferenceSpec.__mro__) for one in getattr(base, "__annotations__", {})]
    for number, one in enumerate(references):
        unknown = next((str(name) for name in one if name not in known), None)
        if unknown is not None:
            raise RequestError(f"references[{number}]: there is no key {unknown!r}{nearest(unknown, known)}.")
        if not {"path", "kind", "server", "model"} & set(one):
            raise RequestError(f"references={value}: every reference needs a path, one has {', '.join(map(str, one))}.")
        name = one.get("path", one.get("model"))
        one.setdefault("name", PurePath(str(name)).name if name is not None else str(one.get("kind")))
    return _value(references)


def _value(value: object) -> str:
    """A list, an object or one value of the grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_value(one) for one in value) + "]"
    return json.dumps(value) if value is None or isinstance(value, (bool, int, float)) else _quoted(str(value))
