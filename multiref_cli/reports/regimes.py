"""Where does which regularizer win? Cells of training, references and beta, and which arm of each is best.

A cell is a way to train, the second of two references and beta; its arms are the mixes of start and second under each
regularizer, and each of the two alone. Every pair but that of the two alone is compared over seeds and prompts as the
pairs of a job are; Holm's correction is for all pairs of all cells on one yardstick.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from multiref_cli.evaluation.crossed import BySeed, compare, estimate
from multiref_cli.evaluation.statistics import Interval, holm
from multiref_cli.reports.collect import Condition
from multiref_cli.reports.job_section import CONFIDENCE
from multiref_cli.reports.metrics import most_trusted, scorers
from multiref_cli.reports.verdicts import Verdict

SINGLE = "single"
_ALONE = " alone"
# What arms are measured by; beta and alpha are the cell's, whatever the arm was trained on.
SCORE, GEOMETRIC, ARITHMETIC = "score", "geometric", "arithmetic"
YARDSTICKS = {
    SCORE: "score",
    GEOMETRIC: "score − β Σ α KL(π‖πᵢ)",
    ARITHMETIC: "score − β KL(π‖Σ α πᵢ)",
}
# Two values of beta and two second references at least make a picture.
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to end in a cell: `rkl`, or a reference alone."""

    name: str
    single: bool
    condition: Condition

    @property
    def kind(self) -> str:
        """The regularizer, or `single`."""
        return SINGLE if self.single else self.name


@dataclass(frozen=True)
class Cell:
    """What shares training, references and beta.

    Attributes:
        training: how is trained, in words.
        second: name of the reference beside the start.
        distance: KL from the start to it, nats a response, on the prompts of the evaluation; None: not measured.
        beta: of every arm.
        weights: reference -> weight in the mixes, which is that of the yardsticks.
        metric: score of the responses.
        arms: at most one of each name.
        missing: names of arms that other cells of the same training have.
    """

    training: str
    second: str
    distance: Interval | None
    beta: float
    weights: Mapping[str, float]
    metric: str
    arms: tuple[Arm, ...]
    missing: tuple[str, ...] = ()

    def values(self, arm: Arm, yardstick: str) -> BySeed:
        """Seed -> values of an arm prompt by prompt, or means; empty where something that it needs was not measured."""
        return yardstick_values(arm.condition, self.metric, self.beta, self.weights, yardstick)


@dataclass(frozen=True)
class Regime:
    """What one yardstick says of a cell.

    Attributes:
        training: of the cell, as are second, distance, beta and missing.
        winner: a regularizer or `single`, significantly above everything else; empty: undecided.
        contenders: the arm of the highest mean, then those that are not significantly below it.
        means: arm -> mean with its interval.
        margin: the highest arm minus the next that it is compared with; None with one arm.
        weights: reference -> weight in the mixes; empty where a file does not say.
    """

    training: str
    second: str
    distance: Interval | None
    beta: float
    yardstick: str
    winner: str
    contenders: tuple[str, ...]
    means: Mapping[str, Interval]
    margin: Interval | None
    missing: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """Whether one arm is best."""
        return bool(self.winner)

    @property
    def open_kinds(self) -> list[str]:
        """What the contenders count as, each once."""
        return list(dict.fromkeys(map(kind_of, self.contenders)))

    @property
    def behind(self) -> list[str]:
        """The arms that are significantly below the highest."""
        leader = self.contenders[0] if self.contenders else ""
        return [name for name in self.means if name not in self.contenders and not _both_alone(leader, name)]

    @property
    def kinds(self) -> list[str]:
        """What all arms count as, each once."""
        return list(dict.fromkeys(map(kind_of, self.means)))

    @property
    def next(self) -> str:
        """The highest arm that the leader is compared with; empty where there is none."""
        leader = self.contenders[0]
        others = [name for name in self.means if name != leader and not _both_alone(leader, name)]
        return max(others, key=lambda name: self.means[name].mean, default="")


@dataclass(frozen=True)
class Regimes:
    """A whole picture: its cells, what each yardstick says of them, and the comparisons behind it by training."""

    cells: tuple[Cell, ...]
    found: tuple[Regime, ...]
    verdicts: tuple[tuple[str, Verdict], ...]

    @cached_property
    def yardsticks(self) -> tuple[str, ...]:
        """Those that were measured."""
        return tuple(dict.fromkeys(one.yardstick for one in self.found))


def regimes(found: Sequence[Condition]) -> Regimes | None:
    """The picture of all conditions; None where they make none: it takes two betas, two second references, and mixes
    under two regularizers beside references alone.

    Args:
        found: conditions of one or several jobs; `untrained` ones say how far references are from the start.
    """
    made = cells(found)
    if not made:
        return None
    judged = [_judged(made, yardstick) for yardstick in YARDSTICKS]
    shown = [one for regimes_, _ in judged for one in regimes_]
    return Regimes(tuple(made), tuple(shown), tuple(one for _, verdicts in judged for one in verdicts))


def cells(found: Sequence[Condition]) -> list[Cell]:
    """The cells of every training that has enough of them, by distance and beta."""
    trainings: dict[Any, list[Condition]] = {}
    for one in found:
        experiment = one.experiment
        if experiment.penalized and experiment.algorithm.trains and one.role in ("grid", "single") and experiment.start:
            trainings.setdefault(_training_key(one), []).append(one)
    made = []
    for group in trainings.values():
        own = _cells_of(group, [one for one in found if one.algorithm == "untrained"])
        betas, seconds = {one.beta for one in own}, {one.second for one in own}
        if min(len(betas), len(seconds)) >= _FEWEST:
            made += own
    return made


def yardstick_values(
    condition: Condition, metric: str, beta: float, weights: Mapping[str, float], yardstick: str
) -> BySeed:
    """Seed -> values of a condition by a yardstick.

    Equation: score; score - beta sum_i alpha_i KL_i, what reverse KL maximizes (arXiv 2502.01203, Theorem 5.1); score -
    beta KL to sum_i alpha_i pi_i, where one response a prompt was sampled: its log pi - log sum_i alpha_i pi_i is
    -log sum_i alpha_i exp(-k_i) with k_i = log pi - log pi_i.

    Args:
        condition: measured on the prompts of one evaluation.
        metric: of the responses' score.
        beta: of the yardstick.
        weights: reference -> alpha_i, those of 0 left out.
        yardstick: of YARDSTICKS.
    """
    scores = condition.by_seed(metric)
    if yardstick == SCORE:
        return scores
    each = [condition.by_seed(f"kl/{name}") for name in weights]
    if yardstick == ARITHMETIC and condition.experiment.evaluation.samples_per_prompt != 1:
        return {}
    made = {}
    for seed in sorted(set(scores).intersection(*each)):
        parts = np.array([np.asarray(one[seed], dtype=np.float64) for one in each])
        if yardstick == ARITHMETIC and parts.ndim == 1:  # means: the logarithm of a mean is another thing
            return {}
        made[seed] = np.asarray(scores[seed]) - beta * _charge(parts, list(weights.values()), yardstick)
    return made


def _charge(parts: np.ndarray, weights: Sequence[float], yardstick: str) -> np.ndarray:
    """(P,) distances to the mix from (K, P) distances to its references."""
    column = np.array(weights).reshape(-1, *[1] * (parts.ndim - 1))
    if yardstick == GEOMETRIC:
        return np.asarray((column * parts).sum(0))
    return np.asarray(-np.logaddexp.reduce(np.log(column) - parts, axis=0))


def _training_key(condition: Condition) -> tuple[Any, ...]:
    penalty = condition.experiment.penalty
    return condition.rest, condition.level, penalty.to_go is False, penalty.estimator


def training_words(condition: Condition) -> str:
    """How a condition is trained, as far as its picture needs it."""
    experiment, penalty = condition.experiment, condition.experiment.penalty
    parts = [condition.algorithm.upper(), f"{condition.level} level"]
    parts += [penalty.estimator.name] if experiment.estimator is not None and penalty.estimator is not None else []
    parts += ["states given"] if experiment.estimator is not None and penalty.to_go is False else []
    scale = getattr(experiment.algorithm, "advantage_scale", "none")
    parts += [f"advantages over the {scale}'s spread"] if scale != "none" else []
    parts += [f"world {experiment.world}"] if experiment.world else []
    return ", ".join(parts)


def _cells_of(group: Sequence[Condition], untrained: Sequence[Condition]) -> list[Cell]:
    """The cells of one training; none where no two regularizers, or no references alone, are there."""
    start, metrics = group[0].experiment.start, scorers(group)
    mixes: dict[tuple[str, float, tuple[float, ...]], list[Condition]] = {}
    for one in sorted(group, key=lambda one: one.experiment.adaptive_weights):
        active = [reference.name for reference in one.experiment.active_references]
        if len(active) == 2 and start in active:
            second = next(name for name in active if name != start)
            own_weights = (second, one.beta, tuple(one.weights))
            same = [key for key in mixes if key[:2] == own_weights[:2]] if one.experiment.adaptive_weights else []
            for key in same or [own_weights]:  # what makes weights of its own is an arm at all of them
                mixes.setdefault(key, []).append(one)
    made = []
    for (second, beta, weights), own in mixes.items():
        alone = [one for one in group if one.alone in (start, second) and one.beta == beta]
        arms = [Arm(one.experiment.penalty.title.removesuffix("_token"), False, one) for one in own]
        arms += [Arm(f"{one.alone}{_ALONE}", True, one) for one in sorted(alone, key=lambda c: c.alone != start)]
        names = group[0].first.references
        used = {name: weight for name, weight in zip(names, weights) if weight}
        far = _distance(own[0], second, untrained)
        made.append(
            Cell(
                training_words(own[0]),
                second,
                far,
                beta,
                used,
                most_trusted(metrics) if metrics else "",
                _told_apart(arms),
            )
        )
    kinds = {arm.kind for cell in made for arm in cell.arms}
    if len(kinds - {SINGLE}) < 2 or SINGLE not in kinds or not metrics:
        return []
    names = list(dict.fromkeys(name for cell in made for name in _roles(cell)))
    order = [replace(cell, missing=tuple(name for name in names if name not in _roles(cell))) for cell in made]
    return sorted(order, key=_place)


def _place(cell: Cell) -> tuple[float, str, float, float]:
    """Where a cell stands: by the distance of the second reference, its weight and beta."""
    far = math.inf if cell.distance is None else cell.distance.mean
    return far, cell.second, cell.weights[cell.second], cell.beta


def weights_vary(found: Sequence[Cell] | Sequence[Regime]) -> bool:
    """Whether cells differ in the weights of their mixes."""
    return len({(one.training, one.second, *one.weights.values()) for one in found}) > len(
        {(one.training, one.second) for one in found}
    )


def _told_apart(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Arms with a name each: a reference alone under a second regularizer says which."""
    found: dict[str, Arm] = {}
    for arm in arms:
        names = [arm.name, f"{arm.name} ({arm.condition.experiment.penalty.title})"]
        name = next((one for one in names if one not in found), f"{arm.name} {len(found) + 1}")
        found[name] = replace(arm, name=name)
    return tuple(found.values())


def _roles(cell: Cell) -> list[str]:
    """What each arm is in its cell, by names that all cells share."""
    own = f"{cell.second}{_ALONE}"
    return [f"second{arm.name.removeprefix(own)}" if arm.name.startswith(own) else arm.name for arm in cell.arms]


def _distance(condition: Condition, second: str, untrained: Sequence[Condition]) -> Interval | None:
    """How far a reference is from the start, where the start was measured on the same prompts."""
    for one in untrained:
        same = one.arena == condition.arena and one.experiment.policy.path == condition.experiment.policy.path
        if same and (found := one.interval(f"kl/{second}")) is not None:
            return found
    return None


def _judged(made: Sequence[Cell], yardstick: str) -> tuple[list[Regime], list[tuple[str, Verdict]]]:
    """What one yardstick says: all pairs of all cells are one family."""
    known = [(cell, {arm: v for arm in cell.arms if (v := cell.values(arm, yardstick))}) for cell in made]
    if not any(values for _, values in known):
        return [], []
    pairs = []
    for cell, values in known:
        block = _block(known, cell)
        for first, second in itertools.combinations(values, 2):
            if not (first.single and second.single) and set(values[first]) & set(values[second]):
                # No F test of the pair's own spread: an arm has to be above four others, and of equal spreads one in
                # ten fails it. The block holds nothing but the same training and beta in its place.
                pairs.append((cell, first, second, compare(values[first], values[second], block, 2.0, CONFIDENCE)))
    adjusted = holm([one.p_value for *_, one in pairs])
    weighed = weights_vary(made)
    metric = {SCORE: "{}", GEOMETRIC: "J to the geometric mean, {}", ARITHMETIC: "J to the arithmetic mean, {}"}
    verdicts: dict[int, list[tuple[Arm, Arm, Verdict]]] = {}
    for (cell, first, second, one), p in zip(pairs, adjusted):
        names = (_named(cell, first, weighed), _named(cell, second, weighed))
        verdict = Verdict(metric[yardstick].format(cell.metric), *names, "regime", False, one, p)
        verdicts.setdefault(id(cell), []).append((first, second, verdict))
    regimes_ = [_regime(cell, values, verdicts.get(id(cell), []), yardstick) for cell, values in known]
    told = [(cell.training, one) for cell in made for *_, one in verdicts.get(id(cell), [])]
    return regimes_, told


def _named(cell: Cell, arm: Arm, weighed: bool) -> str:
    """An arm in a list of comparisons, where its cell must be told too, with the weights if others have other ones."""
    mix = [f"{weight:g} × {name}" if weighed else name for name, weight in cell.weights.items()]
    return f"{arm.name} β={cell.beta:g}, {' + '.join(mix)}"


def _block(known: Sequence[tuple[Cell, Mapping[Arm, BySeed]]], cell: Cell) -> list[dict[int, float]]:
    """Means by seed of all arms of the same training and beta: a pair is judged by the spread that they share."""
    alike = [(other, own) for other, own in known if (other.training, other.beta) == (cell.training, cell.beta)]
    once = {(id(arm.condition), tuple(other.weights)): values for other, own in alike for arm, values in own.items()}
    return [{seed: float(np.mean(value)) for seed, value in values.items()} for values in once.values()]


def _regime(
    cell: Cell, values: Mapping[Arm, BySeed], judged: Sequence[tuple[Arm, Arm, Verdict]], yardstick: str
) -> Regime:
    means = {arm: estimate(value, CONFIDENCE).interval for arm, value in values.items()}
    ranked = sorted(means, key=lambda arm: -means[arm].mean)
    same = (cell.training, cell.second, cell.distance, cell.beta, yardstick)
    if not ranked:
        return Regime(*same, "", (), {}, None, cell.missing, cell.weights)
    leader = ranked[0]
    against = {other: (verdict, sign) for other, verdict, sign in _of(leader, judged)}
    others = [arm for arm in ranked[1:] if not (arm.single and leader.single)]
    open_ = [arm for arm in others if not _above(against.get(arm))]
    won = bool(others) and not open_ and not cell.missing
    margin = _margin(against.get(others[0])) if others else None
    contenders = (leader.name, *(arm.name for arm in open_))
    shown = {arm.name: mean for arm, mean in means.items()}
    return Regime(*same, leader.kind if won else "", contenders, shown, margin, cell.missing, cell.weights)


def _of(leader: Arm, judged: Sequence[tuple[Arm, Arm, Verdict]]) -> list[tuple[Arm, Verdict, int]]:
    """The comparisons of one arm: the other one, the verdict, and 1 where the arm stands first in it, else -1."""
    first = [(b, verdict, 1) for a, b, verdict in judged if a == leader]
    return first + [(a, verdict, -1) for a, b, verdict in judged if b == leader]


def _above(one: tuple[Verdict, int] | None) -> bool:
    return one is not None and one[0].word(CONFIDENCE) == ("**above**" if one[1] > 0 else "**below**")


def _margin(one: tuple[Verdict, int] | None) -> Interval | None:
    if one is None:
        return None
    found = one[0].comparison.difference
    return found if one[1] > 0 else Interval(-found.mean, -found.high, -found.low, found.n)


def _both_alone(first: str, second: str) -> bool:
    return kind_of(first) == kind_of(second) == SINGLE


def kind_of(name: str) -> str:
    """What an arm counts as: its regularizer, or `single`."""
    return SINGLE if _ALONE in name else name
