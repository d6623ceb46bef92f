"""Alpha as people write it, and as a list on the simplex, or with negative weights where these are allowed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multiref_cli.errors import RequestError, require

# Words in place of weights, for rules that choose them (runs/choose.py): by the value, by the disagreement.
AUTO, BALANCED = "auto", "balanced"
RULES = (AUTO, BALANCED)
EXTRAPOLATE = " (regularizer=extrapolate takes negative weights and such above 1)"


@dataclass(frozen=True)
class Routes:
    """Weights that depend on a column of the data: exact, prompt by prompt, whatever the divergence.

    Attributes:
        column: of the data's rows.
        weights: value of the column, as text -> K weights.
    """

    column: str
    weights: dict[str, list[float]]

    @property
    def title(self) -> str:
        """As labels and names have it: `domain{code:1,0;math:0,1}`."""
        parts = [f"{value}:{','.join(f'{w:g}' for w in weights)}" for value, weights in sorted(self.weights.items())]
        return f"{self.column}{{{';'.join(parts)}}}"

    @property
    def plain(self) -> dict[str, Any]:
        """As a config has it, every weight a list."""
        return {"by": self.column, "weights": dict(sorted(self.weights.items()))}

    def value_of(self, columns: Mapping[str, Any]) -> str | None:
        """Which value a row has, as text; None where it has no such column."""
        found = columns.get(self.column)
        return None if found is None else str(found)


@dataclass(frozen=True)
class Weighing:
    """Weights by a function of the references' stored log-probabilities (`objectives.weighing`).

    Attributes:
        path: dotted path of the function.
        options: its keyword arguments.
    """

    path: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.path.rpartition(".")[2]

    @property
    def plain(self) -> dict[str, Any]:
        """As a config has it."""
        return {"by": self.path} | ({"options": self.options} if self.options else {})


def weighing_of(alpha: object) -> Weighing | None:
    """A function from `{by: dotted.path, options: {...}}`; None where alpha is something else.

    Raises:
        RequestError: options that are no mapping.
    """
    if not isinstance(alpha, Mapping) or "weights" in alpha or not set(alpha) <= {"by", "options"}:
        return None
    path, options = alpha.get("by"), alpha.get("options") or {}
    if not isinstance(path, str) or "." not in path:
        return None
    require(isinstance(options, Mapping), f"alpha.options is {options!r}; give {{NAME: VALUE}}")
    return Weighing(path, {str(key): value for key, value in options.items()})


def routes_of(alpha: object, names: Sequence[str], signed: bool = False) -> Routes | None:
    """Weights by row from `{by: COLUMN, weights: {value: weights}}`; None where alpha is a number or a list.

    Args:
        alpha: as in the config. The weights of a value are what `weights_of` takes, or the name of one reference.
        names: of the K references.
        signed: whether weights may be negative.

    Raises:
        RequestError: another key, no values, or weights that do not fit.
    """
    if not isinstance(alpha, Mapping) or weighing_of(alpha) is not None:
        return None
    require(
        set(alpha) == {"by", "weights"},
        f"alpha has {', '.join(map(str, alpha))}; give alpha={{by: COLUMN, weights: {{VALUE: WEIGHTS}}}} "
        "or alpha={by: my_module.my_function}",
    )
    column, given = alpha["by"], alpha["weights"]
    require(isinstance(column, str) and bool(column), f"alpha.by is {column!r}; give the name of a column")
    require(isinstance(given, Mapping) and bool(given), "alpha.weights has no values; give {VALUE: WEIGHTS}")
    found = {}
    for value, weights in given.items():
        if isinstance(weights, str):
            require(weights in names, f"alpha.weights.{value} is {weights!r}; allowed: {', '.join(names)}, or weights")
            found[str(value)] = [float(name == weights) for name in names]
        else:
            found[str(value)] = weights_of(weights, len(names), signed)
    return Routes(column, found)


def weights_of(alpha: object, count: int, signed: bool = False) -> list[float]:
    """Weights of `count` references from a number (the first of two) or a list.

    Args:
        alpha: None, a number or a list of numbers.
        count: references, at least 1.
        signed: whether weights may be negative, and above 1.

    Returns:
        `count` weights from 0 to 1, or signed ones, that sum to one.

    Raises:
        RequestError: not on the simplex, or not as many as references.
    """
    if alpha is None and count == 1:
        return [1.0]
    if isinstance(alpha, (int, float)) and not isinstance(alpha, bool):
        require(math.isfinite(alpha), f"alpha is {alpha:g}, a weight is a finite number")
        require(signed or 0 <= alpha <= 1, f"alpha is {alpha:g}, a weight lies between 0 and 1{EXTRAPOLATE}")
        if count == 1:
            return [1.0]
        require(count == 2, f"one number for alpha fits two references, not {count}; give 'alpha=[...]'")
        return [float(alpha), 1.0 - float(alpha)]
    if isinstance(alpha, str) and alpha in RULES:
        raise RequestError(f"alpha={alpha} is chosen by train, sweep and refs weights alone; give numbers here.")
    if not isinstance(alpha, (list, tuple)) or not all(type(a) in (int, float) for a in alpha):
        given = "null" if alpha is None else repr(alpha)
        raise RequestError(f"alpha is {given}; give a number, a list of numbers, {' or '.join(RULES)}.")
    weights = [float(a) for a in alpha]
    require(len(weights) == count, f"alpha has {len(weights)} weights for {count} references")
    require(all(map(math.isfinite, weights)), f"alpha has a weight that is no finite number: {weights}")
    require(signed or all(w >= 0 for w in weights), f"alpha has a negative weight: {weights}{EXTRAPOLATE}")
    require(abs(sum(weights) - 1) < 1e-6, f"alpha must sum to 1, {weights} sums to {sum(weights):g}")
    return weights
