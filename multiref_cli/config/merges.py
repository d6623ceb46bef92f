"""Models of kind merge as a config names them: what is left out filled in, what contradicts itself refused."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from multiref_cli.errors import RequestError

if TYPE_CHECKING:
    from multiref_cli.config.schema import Model, Part

MERGE = "merge"
_KEYS = ("models", "weights", "base")


def is_given(model: Mapping[str, Any]) -> bool:
    """Whether plain values of a model name a merge, or a part of one."""
    return any(model.get(key) is not None for key in ("kind", *_KEYS))


def completed(model: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a merge with its path, its weights (equal ones if none are given), and parts as mappings.

    Args:
        model: keys of a schema.Model; models and base are paths, or mappings with path, revision and adapter.

    Raises:
        RequestError: another kind, no models, or keys that a merge does not have.
    """
    if model.get("kind") != MERGE:
        given = next((key for key in _KEYS if model.get(key) is not None), None)
        if given is None:
            raise RequestError(f"kind is {model['kind']!r}; allowed: {MERGE}, or none for a model at a path.")
        raise RequestError(f"{given} belongs to a merged model: add kind={MERGE}.")
    models = model.get("models")
    if not isinstance(models, list) or not models:
        raise RequestError(f"kind={MERGE} needs models, a list of paths such as [PATH, OTHER_PATH].")
    parts = [_part(one) for one in models]
    base = None if model.get("base") is None else _part(model["base"])
    weights = model.get("weights")
    weights = [1 / len(parts)] * len(parts) if weights is None else weights
    if not isinstance(weights, list) or not all(isinstance(one, (int, float)) for one in weights):
        raise RequestError(f"weights of a merge are {weights!r}; give a list of numbers, one a model.")
    found = {**model, "models": parts, "base": base, "weights": [float(one) for one in weights]}
    path = _formula(parts, found["weights"], base)
    if model.get("path") not in (None, path):
        raise RequestError(f"kind={MERGE} is made of models and has no path of its own: drop path={model['path']}.")
    return {**found, "path": path}


def check_merge(model: "Model", name: str) -> None:
    """Refuse a merge whose numbers make none.

    Args:
        model: policy or reference.
        name: what it is, for the sentence.

    Raises:
        RequestError: naming the key.
    """
    if model.kind is None:
        idle = next((key for key in _KEYS if getattr(model, key) is not None), None)
        if idle is not None:
            raise RequestError(f"{name}: {idle} belongs to a merged model: add kind={MERGE}.")
        return
    models, weights = model.models or [], model.weights or []
    if len(weights) != len(models):
        raise RequestError(f"{name}: weights are {len(weights)} and models {len(models)}; give one weight a model.")
    if model.base is None and not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise RequestError(
            f"{name}: the weights of an average sum to {sum(weights):g}; they must sum to 1, or give a base (task "
            "arithmetic: base + sum of weight times (model - base))."
        )
    for key in ("revision", "adapter"):
        if getattr(model, key):
            raise RequestError(
                f"{name}: a merge has no {key} of its own; give it to one of its models, "
                f"{{path: {models[0].path}, {key}: {getattr(model, key)}}}."
            )
    if model.trust_remote_code:
        raise RequestError(f"{name}: a merge reads weights by their names, which code of their own may give a meaning.")


def members(model: "Model") -> list[tuple["Part", float]]:
    """The models of a merge, each with what its weights are multiplied by; the factors sum to one.

    Task arithmetic is the same sum: base + sum_i w_i (theta_i - base) = sum_i w_i theta_i + (1 - sum_i w_i) base.
    """
    found = list(zip(model.models or [], model.weights or []))
    if model.base is None:
        return found
    rest = 1 - math.fsum(weight for _, weight in found)
    return [*found, (model.base, 0.0 if abs(rest) < 1e-12 else rest)]


def _part(value: object) -> dict[str, Any]:
    part = {"path": value} if isinstance(value, str) else value
    if not isinstance(part, dict) or not isinstance(part.get("path"), str):
        raise RequestError(f"a model of a merge is {value!r}; give its path, or {{path: PATH, adapter: ADAPTER}}.")
    unknown = sorted(set(part) - {"path", "revision", "adapter"})
    if unknown:
        raise RequestError(f"a model of a merge has no key {unknown[0]!r}; allowed: path, revision, adapter.")
    return part


def _formula(parts: list[dict[str, Any]], weights: list[float], base: dict[str, Any] | None) -> str:
    names = [_named(part) for part in parts]
    if base is None:
        terms = [f"{weight:.12g}*{name}" for weight, name in zip(weights, names)]
    else:
        origin = _named(base)
        terms = [origin, *(f"{weight:.12g}*({name} - {origin})" for weight, name in zip(weights, names))]
    return f"merge({' + '.join(terms)})"


def _named(part: dict[str, Any]) -> str:
    revision = f"@{part['revision']}" if part.get("revision") else ""
    return f"{part['path']}{revision}" + (f"[{part['adapter']}]" if part.get("adapter") else "")
