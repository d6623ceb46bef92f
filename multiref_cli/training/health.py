"""What is to be said of a training: that nothing could be learned, that most was cut, that the sampler drifted away."""

from collections.abc import Iterable, Mapping
from typing import Any

# A sentence is said while training once so many logged steps agree on it.
EARLY = 10
# Shares and nats from which something is said.
_MOST, _APART = 0.5, 0.05


class Health:
    """Judges a training by its logged steps; the same steps give the same sentences, also across a resume."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._said: set[str] = set()

    def read(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in steps that were logged before."""
        for row in rows:
            self._add(row)

    def step(self, row: Mapping[str, Any]) -> list[str]:
        """Take in a step; returns what is to be said now and was not said before."""
        self._add(row)
        found = [(name, text) for name, text in self._found() if self._counts[name] >= EARLY and name not in self._said]
        self._said |= {name for name, _ in found}
        return [f"so far: {text}" for _, text in found]

    def notes(self) -> list[str]:
        """What holds of the whole training, as its report says it."""
        return [text for _, text in self._found()]

    def _add(self, row: Mapping[str, Any]) -> None:
        for name in _RULES:
            value = row.get(name)
            if isinstance(value, (int, float)):
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1

    def _found(self) -> list[tuple[str, str]]:
        """Name of a metric and sentence, for every rule that its mean over steps breaks."""
        found = []
        for name, (least, sentence) in _RULES.items():
            if name in self._counts:
                mean = self._sums[name] / self._counts[name]
                if mean >= least:
                    found.append((name, sentence.format(mean=mean, steps=self._counts[name])))
        return found


# Metric of a step -> from which mean over the steps on, and what is then said.
_RULES: dict[str, tuple[float, str]] = {
    "zero_spread_fraction": (
        1.0,
        "all rewards of a prompt were equal at every one of {steps} steps: the reward taught nothing",
    ),
    "score_clip_fraction": (_MOST, "the score was cut (regularizer.score_clip) in {mean:.0%} of the responses"),
    "clip_fraction": (_MOST, "the ratio to the policy that sampled was clipped at {mean:.0%} of the tokens"),
    "ratio_clip_fraction": (_MOST, "the log ratio to the references was clipped at {mean:.0%} of the tokens"),
    "rollout/kl": (
        _APART,
        "sampler and trainer are apart: {mean:.2g} nats a token (rollout/kl), mean over {steps} steps",
    ),
}
