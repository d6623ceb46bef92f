"""A small filter over keys and values, `beta=1 and regularizer=rkl`: read by hand, never run as a program.

    filter := both ("or" both)*;  both := one ("and" one)*;  one := "(" filter ")" | key sign value

with the signs = != < > <= >=; a key or value with spaces or signs stands in quotation marks.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from multiref_cli.errors import RequestError

# What is looked a key up in: key -> value, None where there is none.
Lookup = Callable[[str], Any]

_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "!=": lambda a, b: a != b,
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}
_ORDERED = ("<", ">", "<=", ">=")
_TOKEN = re.compile(
    r"""\s*(?:(?P<sign><=|>=|!=|==?|<|>)|(?P<bracket>[()])|"(?P<double>[^"]*)"|'(?P<single>[^']*)'"""
    r"""|(?P<word>\[[^\]]*\]|[^\s()<>=!"']+))"""
)
# Deeper brackets than anybody writes: reading them recurses.
_DEEPEST = 50


@dataclass(frozen=True)
class Where:
    """A filter that was read.

    Attributes:
        holds: whether what can be looked up passes.
        keys: that it asks for.
    """

    holds: Callable[[Lookup], bool]
    keys: tuple[str, ...]


def where(text: str) -> Where:
    """Read a filter.

    Args:
        text: as the user wrote it.

    Raises:
        RequestError: it is no filter; says where.
    """
    reader = _Reader(text, _tokens(text))
    holds = reader.either(0)
    if reader.place < len(reader.tokens):
        raise reader.error("and, or, or the end")
    return Where(holds, tuple(dict.fromkeys(reader.keys)))


def value_of(content: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key of a config; of a group its name, else its path.

    Args:
        content: of config.yaml.
        key: such as `beta`, `regularizer`, `optimizer.learning_rate`, `references.math.path`.

    Raises:
        KeyError: there is no such key.
    """
    value: Any = content
    for part in key.split("."):
        if isinstance(value, list):
            value = {one.get("name"): one for one in value if isinstance(one, Mapping)}
        if not isinstance(value, Mapping):
            raise KeyError(key)
        value = value[part]
    return value.get("name") or value.get("path") if isinstance(value, Mapping) else value


@dataclass
class _Reader:
    """What is left to read of a filter."""

    text: str
    tokens: list[tuple[str, str, int]]
    place: int = 0
    keys: list[str] = field(default_factory=list)

    def either(self, depth: int) -> Callable[[Lookup], bool]:
        """Parts with `or` between them."""
        parts = [self.both(depth)]
        while self._take("word", "or"):
            parts.append(self.both(depth))
        return lambda lookup: any(part(lookup) for part in parts)

    def both(self, depth: int) -> Callable[[Lookup], bool]:
        """Parts with `and` between them."""
        parts = [self.one(depth)]
        while self._take("word", "and"):
            parts.append(self.one(depth))
        return lambda lookup: all(part(lookup) for part in parts)

    def one(self, depth: int) -> Callable[[Lookup], bool]:
        """A comparison, or a filter in brackets."""
        if self._take("bracket", "("):
            if depth == _DEEPEST:
                raise self.error("fewer brackets")
            found = self.either(depth + 1)
            if not self._take("bracket", ")"):
                raise self.error(")")
            return found
        key = self._next("word", "a key")
        sign = self._next("sign", "one of " + " ".join(_SIGNS)).replace("==", "=")
        value = self._next("word", "a value")
        self.keys.append(key)
        if sign in _ORDERED and _number(value) is None:
            raise RequestError(f"--where: {key}{sign}{value} compares with {value!r}, which is no number.")
        return lambda lookup: _compare(lookup(key), sign, value)

    def error(self, expected: str) -> RequestError:
        """A sentence on what stands here in place of something else."""
        if self.place < len(self.tokens):
            where = f"at {self.text[self.tokens[self.place][2] :].strip()!r}"
        else:
            where = "at its end"
        return RequestError(f"--where {self.text!r}: expected {expected} {where}; write it as 'beta=1 and state=done'.")

    def _take(self, kind: str, text: str) -> bool:
        there = self.place < len(self.tokens) and self.tokens[self.place][:2] in ((kind, text), (kind, text.upper()))
        self.place += there
        return there

    def _next(self, kind: str, expected: str) -> str:
        if self.place == len(self.tokens) or self.tokens[self.place][0] not in (kind, f"quoted {kind}"):
            raise self.error(expected)
        self.place += 1
        return self.tokens[self.place - 1][1]


def _tokens(text: str) -> list[tuple[str, str, int]]:
    """(kind, text, where it begins) of every part."""
    found, place = [], 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise RequestError(f"--where {text!r}: {text[place:].strip()!r} cannot be read; close the quotation mark.")
        kind = str(match.lastgroup)
        quoted = kind in ("double", "single")
        found.append(("quoted word" if quoted else kind, str(match[kind]), place))
        place = match.end()
    return found


def _compare(value: Any, sign: str, wanted: str) -> bool:
    """Whether a value stands so to what is written; what is not there stands to nothing."""
    if value is None and wanted.lower() not in ("null", "none"):
        return False
    number = _number(wanted)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and number is not None:
        return _SIGNS[sign](value, number)
    if sign in _ORDERED:
        return False
    return _SIGNS[sign](_written(value), _written(wanted))


def _written(value: Any) -> str:
    """A value as people write it: lists without blanks, truth in lower case, numbers as short as they are."""
    if value is None or (isinstance(value, str) and value.lower() in ("null", "none")):
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    text = str(value).strip()
    if text.startswith("[") and text.endswith("]"):
        return f"[{','.join(_written(part) for part in text[1:-1].split(','))}]"
    number = _number(text)
    return text if number is None else f"{number:g}"


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None
