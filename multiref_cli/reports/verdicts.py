"""Which conditions a report compares, and what may be said of each pair."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multiref_cli.config.plain import to_plain
from multiref_cli.evaluation.crossed import BySeed, compare
from multiref_cli.evaluation.sequential import decide
from multiref_cli.evaluation.statistics import Comparison, conclusion, holm
from multiref_cli.reports.collect import Condition


@dataclass(frozen=True)
class Looked:
    """When one of several looks decided a comparison: `look` 1 is the first, 0 none so far; `seeds` were there then."""

    look: int
    of: int
    seeds: int

    def __str__(self) -> str:
        if self.look:
            return f"Decided at look {self.look} of {self.of}, after {self.seeds} seeds"
        return f"Undecided after {self.seeds} seeds"


@dataclass(frozen=True)
class Verdict:
    """A comparison of two sides, with its p value corrected for all comparisons of its family.

    `over_alpha`: sides are means over alpha, not single conditions.
    `looked`: when it was decided, where a sweep looks several times.
    `members`: hashes of the conditions on both sides.
    """

    metric: str
    first: str
    second: str
    kind: str
    over_alpha: bool
    comparison: Comparison
    adjusted_p: float
    looked: Looked | None = None
    members: frozenset[str] = frozenset()

    def sentence(self, confidence: float = 0.95) -> str:
        """One plain sentence."""
        text = conclusion(self.first, self.second, self.metric, self.comparison, self.adjusted_p, confidence)
        return text if self.looked is None else f"{text} {self.looked}."

    def word(self, confidence: float = 0.95) -> str:
        """above, below, not significant or cannot be judged."""
        if np.isnan(self.adjusted_p):
            return "cannot be judged"
        if not self.adjusted_p < 1 - confidence:
            return "not significant"
        return "**above**" if self.comparison.difference.mean > 0 else "**below**"


@dataclass(frozen=True)
class Series:
    """Conditions that differ in alpha alone: one line of a figure, one side of a comparison over all alpha."""

    label: str
    conditions: tuple[Condition, ...]

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> mean over alpha, for the seeds that every alpha has."""
        found = [condition.values(metric) for condition in self.conditions]
        common = set.intersection(*(set(one) for one in found)) if found else set()
        return {seed: float(np.mean([one[seed] for one in found])) for seed in sorted(common)}

    def by_seed(self, metric: str) -> BySeed:
        """Seed -> mean over alpha prompt by prompt, where every alpha has the same number of prompts; else `values`."""
        found = [condition.by_seed(metric) for condition in self.conditions]
        if len({np.shape(value) for one in found for value in one.values()}) != 1:
            return self.values(metric)
        return {seed: np.mean([np.asarray(one[seed]) for one in found], axis=0) for seed in self.values(metric)}


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: the mean of one or several conditions."""

    label: str
    line: Series

    @property
    def members(self) -> tuple[Condition, ...]:
        """Its conditions."""
        return self.line.conditions


@dataclass(frozen=True)
class _Pair:
    first: _Side
    second: _Side
    kind: str

    @property
    def over_alpha(self) -> bool:
        """Whether a side is a mean over several alpha."""
        return len(self.first.line.conditions) > 1


def series(found: Sequence[Condition]) -> list[Series]:
    """Group the grid into lines over alpha, in order of the first reference's weight."""
    groups: dict[str, list[Condition]] = {}
    for condition in found:
        if condition.role == "grid" and condition.experiment.routes is None:
            groups.setdefault(series_label(condition, found), []).append(condition)
    return [Series(label, tuple(sorted(group, key=lambda c: c.weights[:1]))) for label, group in groups.items()]


def series_label(condition: Condition, found: Sequence[Condition]) -> str:
    """The label of a condition without its alpha; beta is named where several are compared."""
    betas = {other.beta for other in found if other.regularized and other.beta > 0 and "beta" not in other.tuned}
    return condition.called(alpha=False, beta=len(betas) > 1)


def compare_job(found: Sequence[Condition], metrics: Sequence[str], confidence: float = 0.95) -> list[Verdict]:
    """Make all comparisons of a job on all metrics: one family under one Holm correction.

    Every line over alpha (its mean) and every condition of the grid is compared with its single references, with
    beta 0, and with others that differ in one thing alone: the regularizer's orders, how it is estimated, or whether
    advantages are divided by the group's spread. Every further pair would cost the ones that answer a question their
    significance.

    Args:
        found: conditions of one job.
        metrics: those to compare on.
        confidence: of the intervals.
    """
    if found and found[0].looks:
        return _compare_in_looks(found, metrics, confidence)
    made = _judged(found, metrics, confidence)
    adjusted = holm([one.comparison.p_value for one in made])
    return [replace(one, adjusted_p=p) for one, p in zip(made, adjusted)]


def _judged(found: Sequence[Condition], metrics: Sequence[str], confidence: float) -> list[Verdict]:
    """Every comparison that the conditions allow, its p value not corrected yet."""
    pairs = [*_pairs_over_alpha(found), *_pairs_at_each_alpha(found)]
    judged = [(metric, pair, _compared(pair, found, metric, confidence)) for metric in metrics for pair in pairs]
    return [
        Verdict(
            metric,
            pair.first.label,
            pair.second.label,
            pair.kind,
            pair.over_alpha,
            one,
            one.p_value,
            members=frozenset(c.experiment.condition_hash for side in (pair.first, pair.second) for c in side.members),
        )
        for metric, pair, one in judged
        if one is not None
    ]


def _compare_in_looks(found: Sequence[Condition], metrics: Sequence[str], confidence: float) -> list[Verdict]:
    """The comparisons of a sweep that looks at them after so many seeds each, of the one family that they are.

    A look reads the seeds that it had, whatever came later. A comparison that has no more seeds than at the look before
    is not judged again; what is shown of it is its difference over all seeds that both sides have.
    """
    looks, have = found[0].looks, max(run.seed for condition in found for run in condition.runs) + 1
    last = {_key(one): one for one in _judged(found, metrics, confidence)}
    history: list[list[float]] = []
    seeds = dict.fromkeys(last, 0)
    decided: dict[tuple[str, ...], int] = {}
    for count in [n for n in looks if n <= have] or [looks[0]]:
        seen = [replace(c, runs=[run for run in c.runs if run.seed < count]) for c in found]
        made = {_key(one): one for one in _judged([c for c in seen if c.runs], metrics, confidence)}
        row = []
        for key in last:
            one = made.get(key)
            fresh = one is not None and one.comparison.difference.n > seeds[key]
            row.append(one.comparison.p_value if one is not None and fresh else math.nan)
            seeds[key] = one.comparison.difference.n if one is not None else seeds[key]
        history.append(row)
        told = decide(history, [n / looks[-1] for n in looks], confidence) if last else []
        for key, decision in zip(last, told):
            if decision.look and key not in decided:
                decided[key] = seeds[key]
    return [
        replace(
            verdict,
            adjusted_p=one.adjusted_p,
            looked=Looked(one.look, len(looks), decided.get(key, seeds[key])),
        )
        for (key, verdict), one in zip(last.items(), told)
    ]


def _key(verdict: Verdict) -> tuple[str, ...]:
    return (verdict.metric, verdict.first, verdict.second, verdict.kind)


def _pairs_over_alpha(found: Sequence[Condition]) -> list[_Pair]:
    """Lines of several alpha, against baselines and other lines over the same alpha."""
    pairs = []
    lines = [line for line in series(found) if len(line.conditions) > 1]
    for index, line in enumerate(lines):
        head = line.conditions[0]
        pairs += [_Pair(_over(line), _alone(other), _kind(other)) for other in _baselines(head, found)]
        for other_line in lines[index + 1 :]:
            kind = _one_difference(head, other_line.conditions[0])
            if kind and _same_weights(line, other_line):
                pairs.append(_Pair(_over(line), _over(other_line), kind))
    return pairs


def _pairs_at_each_alpha(found: Sequence[Condition]) -> list[_Pair]:
    """Conditions of the grid, against baselines and others at the same alpha and beta.

    What makes weights of its own has no alpha, and is compared at every one.
    """
    pairs = []
    grid = [condition for condition in found if condition.role == "grid" and condition.experiment.routes is None]
    for index, condition in enumerate(grid):
        pairs += [_Pair(_alone(condition), _alone(other), _kind(other)) for other in _baselines(condition, found)]
        for other in grid[index + 1 :]:
            kind = _one_difference(condition, other)
            if kind and _same_alpha(condition, other):
                pairs.append(_Pair(_alone(condition), _alone(other), kind))
    return pairs


def _compared(pair: _Pair, found: Sequence[Condition], metric: str, confidence: float) -> Comparison | None:
    """Judge a pair by the residual that all conditions with a penalty share; None without a common seed.

    Without a penalty runs differ between seeds several times more: beta 0 is no part of the shared residual, and a
    pair with it is judged by its own spread, as is one that varies more than the others.
    """
    sides = pair.first.line, pair.second.line
    first, second = (side.by_seed(metric) for side in sides)
    if not set(first) & set(second):
        return None
    alike = all(condition.role != "beta0" for side in sides for condition in side.conditions)
    block = [c for c in found if c.role != "beta0"] if alike else []
    own = [condition for side in sides for condition in side.conditions]
    others = [c.values(metric) for c in block if not any(c is one for one in own)]
    weight = sum(1 / len(side.conditions) for side in sides)
    return compare(first, second, [c.values(metric) for c in block], weight, confidence, others)


def _baselines(condition: Condition, found: Sequence[Condition]) -> list[Condition]:
    """The single references of a condition's own setting, and the run without penalty."""
    return [
        other
        for other in found
        if (other.role == "single" and other.setting == condition.setting)
        or (other.role == "beta0" and (other.algorithm, other.rest) == (condition.algorithm, condition.rest))
    ]


def _one_difference(first: Condition, second: Condition) -> str | None:
    """The one thing in which two conditions differ (alpha aside): regularizer, estimator, scale of the advantages; None
    where there are more, or others."""
    if first.beta != second.beta and "beta" not in first.tuned:
        return None
    if first.rest != second.rest:
        alike = [(one.shared, one.level, one.estimator, _objective(one)) for one in (first, second)]
        return "advantage scale" if alike[0] == alike[1] else None
    if (first.level, first.estimator) == (second.level, second.estimator):
        return "regularizer"
    return "estimator" if _objective(first) == _objective(second) else None


def _objective(condition: Condition) -> dict[str, Any]:
    """What a regularizer is, its name aside and how it is estimated."""
    aside = ("name", "level", "estimator", "to_go")
    return {key: value for key, value in to_plain(condition.regularizer).items() if key not in aside}


def _kind(other: Condition) -> str:
    return "single reference" if other.role == "single" else "no penalty"


def side_label(line: Series) -> str:
    """What a line over alpha is called as one side of a comparison; of one alpha, its condition."""
    if len(line.conditions) == 1:
        return line.conditions[0].label
    return f"{line.label} (mean over {len(line.conditions)} α)"


def _over(line: Series) -> _Side:
    return _Side(side_label(line), line)


def _alone(condition: Condition) -> _Side:
    return _Side(condition.label, Series(condition.label, (condition,)))


def _same_alpha(first: Condition, second: Condition) -> bool:
    """Whether alpha does not tell two conditions apart: it is the same, or one of them makes weights of its own."""
    if first.experiment.adaptive_weights or second.experiment.adaptive_weights:
        return first.experiment.active_references == second.experiment.active_references
    return first.weights == second.weights


def _same_weights(first: Series, second: Series) -> bool:
    return [c.weights for c in first.conditions] == [c.weights for c in second.conditions]
