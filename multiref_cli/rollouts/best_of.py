"""Best of N: several candidates for each answer, of which a judge's favorite is kept."""

import math
from collections.abc import Callable, Sequence

from multiref_cli.rollouts.engine import Completion, Engine, Sampling

# P prompts of token ids and [P][G] candidates -> P x G scores, prompt by prompt.
Judge = Callable[[Sequence[Sequence[int]], list[list[Completion]]], Sequence[float]]


class BestOf:
    """Draws N candidates an answer from an engine and keeps the one with the highest score, the first of equal ones.

    The log-probs of an answer are those of the candidate under the engine, not under best-of-N, whose KL to anything
    exceeds the mean of them by `excess(N)` at most.
    """

    def __init__(self, engine: Engine, count: int, judge: Judge) -> None:
        """Wraps an engine.

        Args:
            engine: draws the candidates.
            count: N, 1 or more.
            judge: scores them.
        """
        self.engine, self.count, self.judge = engine, count, judge

    @property
    def exact_logps(self) -> bool:
        """As of the engine, for the candidates."""
        return self.engine.exact_logps

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, seeds: list[int]
    ) -> list[list[Completion]]:
        """Draws `group_size` answers to each prompt; see `Engine.generate`."""
        if not prompts:
            return []
        drawn = self.engine.generate(prompts, group_size * self.count, sampling, seeds)
        scores, found, start = list(self.judge(prompts, drawn)), [], 0
        for group in drawn:
            own = scores[start : start + len(group)]
            start += len(group)
            starts = range(0, len(group), self.count)
            found.append([group[max(range(i, i + self.count), key=lambda j: (own[j], -j))] for i in starts])
        return found


def excess(count: int) -> float:
    """log N - (N - 1) / N, an upper bound in nats on KL(best of N || the engine's own distribution).

    Source: arXiv 2401.01879; it is reached where no two responses score the same and none is likely twice.
    """
    return math.log(count) - (count - 1) / count
