"""What the mixed references are worth before any training: samples of them, scored, for several means and weights."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from multiref_cli.evaluation.evaluate import Evaluator
from multiref_cli.evaluation.statistics import bootstrap_interval
from multiref_cli.files import write_text
from multiref_cli.rollouts.mixture import MixtureEngine
from multiref_cli.tracking.progress import Progress, Silent


@dataclass(frozen=True)
class MixedScore:
    """One mixed reference of two.

    Attributes:
        order: A of the mean: 0 geometric, 1 arithmetic, -1 harmonic.
        alpha: weight of the first reference; 0 and 1 are single references, the same under every mean.
        mean: score, over prompts.
        ci_low: of the 95 % bootstrap interval over prompts.
        ci_high: of the same.
        n: prompts.
        gain: mean minus that of the better single reference, paired over prompts.
        gain_low: of its 95 % bootstrap interval.
        gain_high: of the same.
    """

    order: float
    alpha: float
    mean: float
    ci_low: float
    ci_high: float
    n: int
    gain: float
    gain_low: float
    gain_high: float


def score_mixtures(
    evaluator: Evaluator,
    models: tuple[Any, Any],
    orders: Sequence[float],
    alphas: Sequence[float],
    progress: Progress,
) -> list[MixedScore]:
    """Sample and score the token-level mixed reference of two models; the single references are always among them.

    Every mean and weight draws with the same random numbers on the same prompts.

    Args:
        evaluator: with one scorer, and no references to measure the distance to.
        models: the two references.
        orders: A of each mean.
        alphas: weights of the first model, in [0, 1]; outside it for order 0 alone.
        progress: told of every mixed reference.

    Returns:
        One row an order and weight, orders first; weights ascend.
    """
    alphas = sorted({0.0, 1.0, *alphas})
    wanted = [(0.0, alpha) for alpha in (0.0, 1.0)] + [(a, w) for a in orders for w in alphas if w not in (0, 1)]
    values: dict[tuple[float, float], np.ndarray] = {}
    for done, (order, alpha) in enumerate(wanted):
        progress.advance("mixed references", done, len(wanted))
        values[order, alpha] = mixture_scores(evaluator, models, order, alpha)
    progress.advance("mixed references", len(wanted), len(wanted))
    singles = {alpha: values[0.0, alpha] for alpha in (0.0, 1.0)}
    better = max(singles.values(), key=np.mean)
    resamples = evaluator.settings.bootstrap
    rows = []
    for order in orders:
        for alpha in alphas:
            own = singles[alpha] if alpha in singles else values[order, alpha]
            score = bootstrap_interval(own, resamples=resamples)
            gain = bootstrap_interval(own - better, resamples=resamples)
            rows.append(MixedScore(order, alpha, score.mean, score.low, score.high, score.n, *gain[:3]))
    return rows


def mixture_scores(evaluator: Evaluator, models: tuple[Any, Any], order: float, alpha: float) -> np.ndarray:
    """(P,) mean score of the responses of one mixed reference to each prompt; arguments as of `score_mixtures`."""
    batch_size = evaluator.settings.batch_size
    engine = MixtureEngine(models, (alpha, 1 - alpha), order, 0, batch_size, evaluator.vocabulary)
    (name,) = evaluator.scorers
    _, rows = evaluator.evaluate(None, engine, Silent())
    return np.array([row[name] for row in rows])


def write_scores(rows: Sequence[MixedScore], path: Path) -> None:
    """Write rows as CSV, one line each, columns named as the fields of `MixedScore`."""
    with io.StringIO(newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(MixedScore)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
        write_text(path, file.getvalue())
