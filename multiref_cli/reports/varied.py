"""Which settings conditions differ in, and the values that each of them takes: what a sweep searched."""

import json
from collections.abc import Sequence

from multiref_cli.config.plain import digest, to_plain
from multiref_cli.reports.collect import Condition, alpha_text, flat

# What the others say already, or follows from them.
_ASIDE = ("regularizer.name", "regularizer.mean_order", "regularizer.score_order", "regularizer.terms")


def varied(found: Sequence[Condition]) -> dict[str, list[str]]:
    """Key -> its distinct values in order, for every setting in which conditions of one algorithm and data differ.

    Weights that leave one reference alone are baselines, no values of alpha.
    """
    families: dict[tuple[str, ...], list[Condition]] = {}
    for condition in found:
        job = (condition.algorithm, condition.experiment.data.name, *condition.first.references)
        families.setdefault(job, []).append(condition)
    values: dict[str, dict[str, None]] = {}
    for own in families.values():
        for key, texts in _varied(own).items():
            values.setdefault(key, {}).update(texts)
    return {key: sorted(texts, key=_as_number) for key, texts in values.items()}


def _varied(found: Sequence[Condition]) -> dict[str, dict[str, None]]:
    grid = [condition for condition in found if condition.role == "grid"]
    values: dict[str, dict[str, None]] = {}
    for condition in grid:
        routes = condition.experiment.routes
        told = {"regularizer": condition.regularizer.title} if condition.regularizer else {}
        if not condition.experiment.adaptive_weights:
            told["alpha"] = alpha_text(condition.weights) if routes is None else routes.title
        for key, value in told.items():
            values.setdefault(key, {})[value] = None
    for condition in found:
        values.setdefault("beta", {})[f"{condition.beta:g}"] = None
        values.setdefault("world", {})[str(condition.experiment.world)] = None
    for key, other in _others(found).items():
        values.setdefault(key, {}).update(other)
    return {key: one for key, one in values.items() if len(one) > 1}


def _others(found: Sequence[Condition]) -> dict[str, dict[str, None]]:
    """The same of all other keys; those of a regularizer count where they differ under one title."""
    groups: dict[str, Condition] = {}
    for condition in found:
        groups.setdefault(condition.rest + digest(to_plain(condition.regularizer)), condition)
    common: dict[str, dict[str, None]] = {}
    own: dict[tuple[str, str], dict[str, None]] = {}
    for condition in groups.values():
        title = condition.regularizer.title if condition.regularizer else ""
        for key, value in flat(condition.experiment.content("seed", "alpha", "beta", "world")).items():
            text = value if isinstance(value, str) else json.dumps(value)
            if key.startswith("regularizer."):
                own.setdefault((key, title), {})[text] = None
            else:
                common.setdefault(key, {})[text] = None
    for (key, _), texts in own.items():
        if len(texts) > 1 and key not in _ASIDE:
            common.setdefault(key, {}).update(texts)
    return common


def named(values: dict[str, list[str]], most: int = 6) -> str:
    """The settings in words: `regularizer (rkl, fkl), alpha (0.3, 0.5)`."""
    parts = []
    for key, own in values.items():
        shown = ", ".join(own[:most]) + (f" and {len(own) - most} more" if len(own) > most else "")
        parts.append(f"{key.rpartition('.')[2]} ({shown})")
    return ", ".join(parts)


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return 0.0, text
