"""Which conditions a report compares, and what may be said of each pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiref_cli.config.plain import to_plain
from multiref_cli.evaluation.statistics import (
    Comparison,
    Interval,
    compare,
    conclusion,
    holm,
    stratified_bootstrap_interval,
)
from multiref_cli.reports.collect import Condition


@dataclass(frozen=True)
class Verdict:
    """A comparison of two sides, with its p value corrected for all comparisons of its family."""

    first: str
    second: str
    kind: str
    comparison: Comparison
    adjusted_p: float

    def sentence(self, metric: str, confidence: float = 0.95) -> str:
        """One plain sentence."""
        return conclusion(self.first, self.second, metric, self.comparison, self.adjusted_p, confidence)

    def word(self, confidence: float = 0.95) -> str:
        """above, below or not significant."""
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

    def bootstrap(self, metric: str) -> Interval | None:
        """Mean over alpha with a bootstrap interval that resamples seeds within each alpha."""
        strata = [list(condition.values(metric).values()) for condition in self.conditions]
        return stratified_bootstrap_interval(strata) if strata and all(strata) else None


def series(found: Sequence[Condition]) -> list[Series]:
    """Group the grid into lines over alpha, in order of the first reference's weight."""
    groups: dict[str, list[Condition]] = {}
    for condition in found:
        if condition.role == "grid":
            groups.setdefault(series_label(condition, found), []).append(condition)
    return [Series(label, tuple(sorted(group, key=lambda c: c.weights[:1]))) for label, group in groups.items()]


def series_label(condition: Condition, found: Sequence[Condition]) -> str:
    """The label of a condition without its alpha; beta is named where several are compared."""
    label = condition.label
    start = label.find(" α=")
    if start >= 0:
        end = label.index(" β=", start)
        label = label[:start] + label[end:]
    betas = {other.beta for other in found if other.regularized and other.beta > 0}
    return label if len(betas) > 1 else label.replace(f" β={condition.beta:g}", "")


def compare_over_alpha(found: Sequence[Condition], metric: str, confidence: float = 0.95) -> list[Verdict]:
    """Compare the mean over alpha of every line with its single references, with beta 0, and with other lines.

    Two lines, like two conditions, are compared where they differ in one thing alone: the regularizer's orders, or how
    it is estimated. Every further pair would cost the ones that answer a question their significance.
    """
    pairs = []
    lines = series(found)
    for index, line in enumerate(lines):
        head = line.conditions[0]
        for other in _baselines(head, found):
            pairs.append((_over(line), other.label, _kind(other), line.values(metric), other.values(metric)))
        for other_line in lines[index + 1 :]:
            kind = _one_difference(head, other_line.conditions[0])
            if kind and _same_weights(line, other_line):
                pairs.append((_over(line), _over(other_line), kind, line.values(metric), other_line.values(metric)))
    return _judge(pairs, confidence)


def compare_conditions(found: Sequence[Condition], metric: str, confidence: float = 0.95) -> list[Verdict]:
    """Compare every condition of the grid with its baselines, and with other regularizers at its alpha and beta."""
    pairs = []
    grid = [condition for condition in found if condition.role == "grid"]
    for index, condition in enumerate(grid):
        for other in _baselines(condition, found):
            pairs.append((condition.label, other.label, _kind(other), condition.values(metric), other.values(metric)))
        for other in grid[index + 1 :]:
            kind = _one_difference(condition, other)
            if kind and other.weights == condition.weights:
                pairs.append((condition.label, other.label, kind, condition.values(metric), other.values(metric)))
    return _judge(pairs, confidence)


def _baselines(condition: Condition, found: Sequence[Condition]) -> list[Condition]:
    """The single references of a condition's own setting, and the run without penalty."""
    return [
        other
        for other in found
        if (other.role == "single" and other.setting == condition.setting)
        or (other.role == "beta0" and (other.algorithm, other.rest) == (condition.algorithm, condition.rest))
    ]


def _one_difference(first: Condition, second: Condition) -> str | None:
    """regularizer or estimator, where that is all in which two conditions differ (alpha aside); else None."""
    if (first.beta, first.rest) != (second.beta, second.rest):
        return None
    if (first.level, first.estimator) == (second.level, second.estimator):
        return "regularizer"
    return "estimator" if _objective(first) == _objective(second) else None


def _objective(condition: Condition) -> dict[str, Any]:
    """What a regularizer is, its name aside and how it is estimated."""
    aside = ("name", "level", "estimator")
    return {key: value for key, value in to_plain(condition.regularizer).items() if key not in aside}


def _kind(other: Condition) -> str:
    return "single reference" if other.role == "single" else "no penalty"


def _over(line: Series) -> str:
    count = len(line.conditions)
    return f"{line.label} (mean over {count} α)" if count > 1 else line.conditions[0].label


def _same_weights(first: Series, second: Series) -> bool:
    return [c.weights for c in first.conditions] == [c.weights for c in second.conditions]


def _judge(pairs: list[tuple[str, str, str, dict, dict]], confidence: float) -> list[Verdict]:
    pairs = [pair for pair in pairs if set(pair[3]) & set(pair[4])]
    comparisons = [compare(first, second, confidence) for *_, first, second in pairs]
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [Verdict(*pair[:3], one, p) for pair, one, p in zip(pairs, comparisons, adjusted)]
