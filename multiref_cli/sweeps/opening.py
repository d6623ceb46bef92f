"""What can be known of a sweep's points before its folder is made: one of each kind is opened, as a run opens it."""

from collections.abc import Iterable

from multiref_cli.config.plain import digest
from multiref_cli.config.schema import Experiment
from multiref_cli.errors import HubUnreachable, RequestError
from multiref_cli.sweeps.plan import Point
from multiref_cli.sweeps.request import key_of
from multiref_cli.tracking.progress import Progress

# So many kinds of points are opened, the first ones: an axis of many data sets must not keep a sweep from beginning.
_MOST = 12
# What opens alike whatever it is: the axes of most sweeps.
_ALIKE = ("alpha", "alpha_schedule", "beta", "beta_schedule", "seed", "regularizer", "optimizer", "steps", "epochs")


def check_points(points: Iterable[Point], here: bool, progress: Progress) -> None:
    """Open tokenizers, data, references and rewards of one point of each kind, as `train` does before its folder.

    What a pass of the sweep makes first is left alone: points whose embedded world is not made, and merges.

    Args:
        points: of a plan.
        here: they run on this machine; else its devices say nothing, nor does a hub that it cannot reach.
        progress: told while rows become tokens, which are kept for the points.

    Raises:
        RequestError: a point that no run would begin; one sentence, which says which kind where there are several.
    """
    from multiref_cli.world.worlds import missing

    kinds: dict[str, Point] = {}
    for point in points:
        kind = _kind(point.experiment)
        if kind not in kinds and not missing(point.experiment):
            kinds[kind] = point
    for point in list(kinds.values())[:_MOST]:
        try:
            _open(point.experiment, here, progress)
        except RequestError as error:
            if isinstance(error, HubUnreachable) and not here:
                continue
            own = _own(point, kinds.values())
            raise RequestError(f"{error} (in the points with {' '.join(own)})" if own else str(error)) from error


def _own(point: Point, others: Iterable[Point]) -> list[str]:
    """The overrides by which a point is of another kind than others."""
    given = [set(one.overrides) for one in others]
    return [
        text
        for text in point.overrides
        if key_of(text).split(".")[0] not in _ALIKE and not all(text in overrides for overrides in given)
    ]


def _kind(experiment: Experiment) -> str:
    """What opening depends on: models, data, reward and engine, and of the penalty its level and columns."""
    same = experiment.content(*_ALIKE, "world")
    level = experiment.penalty.level.name if experiment.regularized else None
    routes = experiment.alpha if isinstance(experiment.alpha, dict) else None
    return digest([same, experiment.penalized, level, routes])


def _open(experiment: Experiment, here: bool, progress: Progress) -> None:
    import torch

    from multiref_cli.runs.job import check_cache, check_devices
    from multiref_cli.runs.run import open_job

    if here and not torch.cuda.is_available():  # a device that is tried holds memory, which the workers need
        check_devices(experiment)
    if here:
        check_cache(experiment)
    open_job(experiment, progress, looking=True)
