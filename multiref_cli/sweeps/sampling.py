"""The next settings to try, as a pure function of what a search is and of what its trials so far have given."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from multiref_cli.errors import RequestError
from multiref_cli.sweeps.space import Axis

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

OPTUNA_MISSING = (
    "search.sampler=tpe needs Optuna, which is not installed: pip install optuna, or give search.sampler=random."
)


@dataclass(frozen=True)
class Tried:
    """Settings that were tried, and what came of them.

    Attributes:
        params: key -> override value.
        value: what is maximized; None where the trial failed or was pruned.
        reached: steps and last value of the training curve of a trial that was pruned, else None.
    """

    params: dict[str, str]
    value: float | None
    reached: tuple[int, float] | None = None


def random_settings(axes: Sequence[Axis], seed: int, trial: int) -> dict[str, str]:
    """Settings drawn uniformly, on a log scale where the axis says so; the same in every arm with these axes."""
    return {axis.key: axis.at(_share(f"{seed} {trial} {axis.key}")) for axis in axes}


def _share(text: str) -> float:
    """A number from 0 to below 1 that follows from a text on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def check_sampler(sampler: str) -> None:
    """Refuse a sampler whose library is not there.

    Raises:
        RequestError: naming what to install.
    """
    if sampler == "tpe":
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise RequestError(OPTUNA_MISSING) from None


def tpe_settings(axes: Sequence[Axis], seed: int, tried: Sequence[Tried], count: int) -> list[dict[str, str]]:
    """The next settings by the tree-structured Parzen estimator (Bergstra et al. 2011; Optuna's), several at a time.

    Optuna's study is made anew from the trials so far, and asked; the settings of one call know of each other
    (constant liar), but not of each other's results. Nothing is kept: the same trials give the same settings.

    Args:
        axes: A of them.
        seed: of the sampler.
        tried: finished trials of this arm, in their order.
        count: number of settings.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=1)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        distributions = {axis.key: _distribution(axis) for axis in axes}
        worst = min((one.value for one in tried if one.value is not None), default=0.0)
        for one in tried:
            study.add_trial(_told(one, axes, distributions, worst))
        asked = [study.ask(distributions).params for _ in range(count)]
    return [{axis.key: _written(axis, params[axis.key]) for axis in axes} for params in asked]


def _told(
    one: Tried, axes: Sequence[Axis], distributions: "dict[str, BaseDistribution]", worst: float
) -> "FrozenTrial":
    """A trial as Optuna takes it: a failed one counts as the worst, a pruned one as far as it went."""
    import optuna

    params = {axis.key: _read(axis, one.params[axis.key]) for axis in axes}
    more: dict[str, Any] = {"value": worst if one.value is None else one.value}
    if one.reached is not None:
        step, value = one.reached
        more = {"state": optuna.trial.TrialState.PRUNED, "intermediate_values": {step: value}}
    return optuna.trial.create_trial(params=params, distributions=distributions, **more)


def _distribution(axis: Axis) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        return CategoricalDistribution(axis.choices)
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.kind == "log")


def _written(axis: Axis, value: Any) -> str:
    return str(value) if axis.choices else axis.text(float(value))


def _read(axis: Axis, text: str) -> Any:
    if axis.choices:
        return text
    return int(text) if axis.kind == "int" else float(text)


def top_share(values: Sequence[float], share: float) -> float:
    """The least value that lies within the top `share` of some values; -inf without any."""
    if not values:
        return -math.inf
    ordered = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    return float(ordered[max(math.ceil(share * len(ordered)), 1) - 1])
