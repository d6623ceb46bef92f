"""Overrides that cannot be read, and how they are written for the shell in use."""

import os
import re
import shlex
from collections.abc import Collection
from pathlib import PurePath
from typing import Any, get_origin

from multiref_cli.config.folders import groups, options
from multiref_cli.config.sentences import nearest
from multiref_cli.config.written import is_open, key_types, text_keys

_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@-]*", re.ASCII)
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def shell_word(text: str) -> str:
    """A word as the shell in use takes it whole: of bash, zsh, fish, PowerShell, or cmd."""
    shell = PurePath(os.environ.get("SHELL", "")).name
    if os.name == "nt" and not os.environ.get("PSMODULEPATH"):
        return '"' + text.replace('"', '\\"') + '"'
    if os.name == "nt" or shell in ("pwsh", "powershell"):
        return "'" + text.replace("'", "''") + "'"
    if shell == "fish":
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return shlex.quote(text) if "'" in text else f"'{text}'"


def unreadable(text: str, keys: Collection[str]) -> str:
    """What is said of an override that the grammar does not take.

    Args:
        text: the override.
        keys: all that there are.
    """
    key, sign, value = text.partition("=")
    if not sign:
        return f"{text!r} is not an override; write key=value, with what has blanks in quotes: {shell_word('key=a b')}."
    if not _KEY.fullmatch(key):
        bare = key.strip(" \"'")
        if bare in keys:
            return f"{text!r} is not an override; write {bare}=VALUE, without blanks or quotes around the key."
        return f"there is no key {key!r}{nearest(bare, sorted(keys))}."
    if key in groups():
        return f"{key} has no option {value!r}{nearest(value, options(key))}."
    gap = unclosed(value)
    if gap:
        return (
            f"{text} has no closing {gap}; what has brackets or blanks is quoted: {shell_word(f'{key}={value}{gap}')}."
        )
    if _is_text(key) or key not in keys:
        return f"{text} cannot be read; a text with such signs has quotes of its own: {shell_word(_inner(key, value))}."
    return f"{text} cannot be read; {key} takes {_takes(key)}."


def several_values(text: str) -> str:
    """What is said of several values where one is wanted."""
    key, _, value = text.partition("=")
    asked = f"{text} gives several values for one key: use `multiref sweep` for axes"
    if _is_text(key):
        return f"{asked}; one text with a comma is written {shell_word(_inner(key, value))}."
    listed = f"; a list is written {shell_word(f'{key}=[{value}]')}" if _kind(key) in ("list", "any") else ""
    return f"{asked}{listed}."


def _takes(key: str) -> str:
    """What a key takes, in words, with the form that a shell leaves alone."""
    listed, quoted = shell_word(f"{key}=[a,b]"), shell_word(f'{key}=["a;b"]')
    known = {
        "number": "one number, with a dot for decimals",
        "bool": "true or false",
        "list": f"a list, {listed}, with signs in its texts {quoted}",
        "dict": f"names with values, {shell_word(f'{key}={{name: value}}')}",
    }
    return known.get(_kind(key), f"a number, a word, or a list, {listed}")


def _kind(key: str) -> str:
    kind = key_types().get(key.lstrip("+~"))
    if kind in (int, float):
        return "number"
    if kind is bool:
        return "bool"
    if kind is Any:
        return "any"
    origin = get_origin(kind)
    return "list" if origin is list else "dict" if origin is dict else "word"


def _is_text(key: str) -> bool:
    return key.lstrip("+~") in text_keys() or is_open(key.lstrip("+~"))


def unclosed(value: str) -> str:
    """The closing signs that a value lacks, outside of its quotes; empty where every bracket is closed."""
    open_signs, quote = [], ""
    for sign in value:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in _PAIRS:
            open_signs.append(_PAIRS[sign])
        elif open_signs and sign == open_signs[-1]:
            open_signs.pop()
    return quote + "".join(reversed(open_signs))


def joined(words: list[str]) -> list[str]:
    """Overrides that a shell took apart at blanks put together again: `alpha=0.3, 0.5`, `alpha=[0.3, 0.7]`, `beta = 1`.

    A word belongs to the one before it if that ends with a comma or an equals sign or has an open bracket, or if it
    begins with a comma or an equals sign itself.
    """
    found: list[str] = []
    for word in words:
        before = found[-1] if found else ""
        key, sign, value = before.partition("=")
        setting = bool(sign) and bool(_KEY.fullmatch(key))  # else it is a prompt of `multiref compare`
        inside = setting and (before[-1] in ",=" or bool(unclosed(value)))
        if inside and not word.startswith("-"):
            found[-1] = f"{before} {word}" if before[-1] not in ",=" else before + word
        elif (word[0:1] == "," and setting) or (word[0:1] == "=" and _KEY.fullmatch(before)):
            found[-1] = before + word
        else:
            found.append(word)
    return found


def _inner(key: str, value: str) -> str:
    inside = re.sub(r"(\\+)(?=\"|$)", r"\1\1", value.strip("\"'")).replace('"', '\\"')
    return f'{key}="{inside}"'
