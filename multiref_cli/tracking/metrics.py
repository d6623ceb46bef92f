"""Averages over the micro-batches of a step."""

from collections import defaultdict

import torch

from multiref_cli.objectives.aggregate import widened


class Averages:
    """Sums and counts under names; reading them gives weighted means that do not depend on the micro-batches' sizes."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)

    def add(self, name: str, values: torch.Tensor) -> None:
        """Add every entry of a tensor to the average of `name`."""
        self.add_sum(name, float(widened(values.detach()).sum()), values.numel())

    def add_sum(self, name: str, total: float, count: float) -> None:
        """Add a sum of `count` values to the average of `name`."""
        self._totals[name] += total
        self._counts[name] += count

    def update(self, other: "Averages") -> None:
        """Add all of another's sums and counts."""
        for name, total in other._totals.items():
            self.add_sum(name, total, other._counts[name])

    def means(self) -> dict[str, float]:
        """Name -> mean, for every name with a positive count."""
        return {name: total / self._counts[name] for name, total in self._totals.items() if self._counts[name] > 0}
