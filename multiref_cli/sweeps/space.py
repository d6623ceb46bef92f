"""What a search tunes: the `search` part of a sweep, its ranges, and how numbers between 0 and 1 become settings."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from multiref_cli.config.plain import digest, to_plain
from multiref_cli.config.sentences import nearest
from multiref_cli.errors import RequestError

SAMPLERS = ("tpe", "random")
PRUNINGS = ("none", "median", "halving")
# Digits of a sampled number: what is written into an override is what was sampled.
DIGITS = 4
_KINDS = ("log", "int")
_CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)


@dataclass(frozen=True)
class Axis:
    """One tuned key: a range of numbers (`log`: uniform in the logarithm, `int`: whole ones), or choices as texts."""

    key: str
    low: float = 0.0
    high: float = 0.0
    kind: str = ""
    choices: tuple[str, ...] = ()

    def ends(self) -> tuple[str, str]:
        """Its two ends as override values: the first and the last choice where it has choices."""
        return (self.choices[0], self.choices[-1]) if self.choices else (self.text(self.low), self.text(self.high))

    def text(self, value: float) -> str:
        """A number of the range as an override value, with few digits and still inside."""
        if self.kind == "int":
            return str(round(value))
        rounded = float(f"{value:.{DIGITS}g}")
        return repr(min(max(rounded, self.low), self.high))

    def at(self, share: float) -> str:
        """The value at a share of the range, 0 to below 1, as an override value."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.kind == "log":
            return self.text(self.low * (self.high / self.low) ** share)
        if self.kind == "int":
            return self.text(min(self.low + int(share * (self.high - self.low + 1)), self.high))
        return self.text(self.low + share * (self.high - self.low))

    def share(self, value: str) -> float | None:
        """How far along the range a value lies, 0 to 1; None for choices."""
        if self.choices:
            return None
        if self.kind == "log":
            return math.log(float(value) / self.low) / math.log(self.high / self.low)
        return (float(value) - self.low) / (self.high - self.low)

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kind = {"log": ", log scale", "int": ", whole"}.get(self.kind, "")
        return f"{self.low:g} to {self.high:g}{kind}"


@dataclass(frozen=True)
class Search:
    """How every arm of a sweep is tuned before it is compared.

    Attributes:
        space: the tuned keys.
        trials: settings tried in each arm, the same number in all.
        batch: trials of an arm that run side by side; the next ones know their results.
        sampler: tpe (Optuna) or random; the first batch is random, the same settings in every arm.
        metric: of results.json that is maximized; None: the gold reward, else the reward model, else an accuracy.
        seeds: every trial runs on each of them; none of them is reported.
        tuning: overrides of trials alone, at least another split than the report's.
        pruning: none, median or halving.
        curve: metric of metrics.jsonl by which trials are pruned, higher is better.
        seed: of the sampler.
    """

    space: tuple[Axis, ...]
    tuning: tuple[str, ...]
    trials: int = 16
    batch: int = 4
    sampler: str = "tpe"
    metric: str | None = None
    seeds: tuple[int, ...] = (1000,)
    pruning: str = "none"
    curve: str | None = None
    seed: int = 0

    @property
    def address(self) -> str:
        """Digest of all that the results of a search depend on, apart from how far it goes."""
        kept = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("trials", "batch")}
        return digest(to_plain(kept))


def parse_search(file: object, given: Mapping[str, str], seeds: Sequence[int]) -> Search | None:
    """The search of a sweep, None where there is none.

    Args:
        file: the value of `search` in the sweep file, None where it has none.
        given: `search.KEY=VALUE` of the command line, without `search.`; a key counts before the file's.
        seeds: those that are reported.

    Raises:
        RequestError: an unknown key, an empty or impossible range, seeds that are reported too; one sentence.
    """
    if not file and not given:
        return None
    if file is not None and not isinstance(file, dict):
        raise RequestError(f"search is {file!r}; it has keys: {', '.join(_keys())}.")
    content: dict[str, Any] = dict(file or {})
    space = content.pop("space", None) or {}
    if not isinstance(space, dict):
        raise RequestError(f"search.space is {space!r}; it is KEY: RANGE for every tuned key.")
    tuned: dict[str, Any] = dict(space)
    for key, text in given.items():
        if key.startswith("space."):
            tuned[key.removeprefix("space.")] = _value(text, key)
        else:
            content[key] = _value(text, key) if key not in ("tuning", "metric", "curve") else text
    unknown = [key for key in content if key not in _keys()]
    if unknown:
        raise RequestError(f"there is no key 'search.{unknown[0]}'{nearest(unknown[0], _keys())}.")
    if not tuned:
        raise RequestError("search tunes nothing: give search.space.KEY=[LOW,HIGH] or [LOW,HIGH,log].")
    found = Search(
        space=tuple(_axis(key, value) for key, value in tuned.items() if value is not None),
        tuning=tuple(shlex.split(_text("tuning", content) or "")),
        trials=_count("trials", content, Search.trials),
        batch=_count("batch", content, Search.batch),
        sampler=_one_of("sampler", content, SAMPLERS),
        metric=_text("metric", content),
        seeds=_seeds(content.get("seeds", Search.seeds)),
        pruning=_one_of("pruning", content, PRUNINGS),
        curve=_text("curve", content),
        seed=_count("seed", content, 0, least=0),
    )
    return _checked(found, seeds)


def _checked(found: Search, seeds: Sequence[int]) -> Search:
    both = sorted(set(found.seeds) & set(seeds))
    if both:
        raise RequestError(
            f"seed {both[0]} is tuned on and reported: a setting chosen by luck of a seed must not be judged by it; "
            "give search.seeds=[NUMBERS] that are none of seeds."
        )
    if found.pruning != "none" and found.curve is None:
        raise RequestError(
            f"search.pruning={found.pruning} needs search.curve: the training metric by which trials are stopped, "
            "higher is better, such as reward or accuracy."
        )
    if found.pruning == "none" and found.curve is not None:
        raise RequestError("search.curve is read by search.pruning=median or halving only; give one, or drop it.")
    return found


def _keys() -> list[str]:
    return [one.name for one in fields(Search)]


def _axis(key: str, value: object) -> Axis:
    """A range or choices, as YAML holds them."""
    name = f"search.space.{key}"
    form = "give [LOW, HIGH], [LOW, HIGH, log], [LOW, HIGH, int] or choice(A,B)"
    if key in ("seed", "seeds", "world"):
        raise RequestError(f"{name}: a {key} is nothing that is tuned.")
    if isinstance(value, str) and (match := _CHOICE.fullmatch(value.strip())):
        choices = tuple(dict.fromkeys(one.strip() for one in match.group(1).split(",") if one.strip()))
        if len(choices) < 2:
            raise RequestError(f"{name} is {value}: there is nothing to choose; give two choices or more.")
        return Axis(key, choices=choices)
    if not isinstance(value, list) or not 2 <= len(value) <= 3 or (len(value) == 3 and value[2] not in _KINDS):
        raise RequestError(f"{name} is {value!r}; {form}.")
    try:
        low, high = (float(one) for one in value[:2])
    except (TypeError, ValueError):
        raise RequestError(f"{name} is {value!r}; {form}.") from None
    kind = value[2] if len(value) == 3 else ""
    if not low < high:
        raise RequestError(f"{name} is {value!r}, an empty range: the first number must be below the second.")
    if not abs(low) + abs(high) < 1e300:
        raise RequestError(f"{name} is {value!r}; both ends must be finite.")
    if kind == "log" and low <= 0:
        raise RequestError(f"{name} is {value!r}: a range on a log scale begins above 0.")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise RequestError(f"{name} is {value!r}: the ends of whole numbers are whole.")
    return Axis(key, low, high, kind)


def _value(text: str, key: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise RequestError(f"search.{key} is {text!r}, which cannot be read.") from None


def _count(key: str, content: Mapping[str, Any], default: int, least: int = 1) -> int:
    value = content.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 10**6:
        raise RequestError(f"search.{key} is {value!r}; give a whole number, {least} or more.")
    return value


def _one_of(key: str, content: Mapping[str, Any], allowed: tuple[str, ...]) -> str:
    value = content.get(key, allowed[0])
    value = "none" if value is None and "none" in allowed else value
    if value not in allowed:
        raise RequestError(f"search.{key} is {value!r}; allowed: {', '.join(allowed)}.")
    return str(value)


def _text(key: str, content: Mapping[str, Any]) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"search.{key} is {value!r}; it is a text.")
    return None if value in (None, "", "null") else value


def _seeds(value: object) -> tuple[int, ...]:
    listed: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if not listed or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in listed):
        raise RequestError(f"search.seeds is {value!r}; give a list of whole numbers, 0 or more, such as [1000].")
    return tuple(dict.fromkeys(listed))
