"""Alpha as people write it, and as a list on the simplex, or with negative weights where these are allowed."""

import math

from multiref_cli.errors import RequestError

EXTRAPOLATE = " (regularizer=extrapolate takes negative weights and such above 1)"


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
        _require(math.isfinite(alpha), f"alpha is {alpha:g}, a weight is a finite number")
        _require(signed or 0 <= alpha <= 1, f"alpha is {alpha:g}, a weight lies between 0 and 1{EXTRAPOLATE}")
        if count == 1:
            return [1.0]
        _require(count == 2, f"one number for alpha fits two references, not {count}; give 'alpha=[...]'")
        return [float(alpha), 1.0 - float(alpha)]
    if not isinstance(alpha, (list, tuple)) or not all(type(a) in (int, float) for a in alpha):
        raise RequestError(f"alpha is {alpha!r}; give a number or a list of numbers.")
    weights = [float(a) for a in alpha]
    _require(len(weights) == count, f"alpha has {len(weights)} weights for {count} references")
    _require(all(map(math.isfinite, weights)), f"alpha has a weight that is no finite number: {weights}")
    _require(signed or all(w >= 0 for w in weights), f"alpha has a negative weight: {weights}{EXTRAPOLATE}")
    _require(abs(sum(weights) - 1) < 1e-6, f"alpha must sum to 1, {weights} sums to {sum(weights):g}")
    return weights


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise RequestError(sentence + ".")
