"""How beta and alpha move over a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from multiref_cli.config.ranges import number

LINEAR, COSINE, CONSTANT, TARGET_KL = "linear", "cosine", "constant", "target_kl"
# How beta may move, and how alpha may.
BETA_KINDS, ALPHA_KINDS = (CONSTANT, LINEAR, COSINE, TARGET_KL), (CONSTANT, LINEAR, COSINE)


@dataclass(frozen=True)
class BetaSchedule:
    """From `beta` to `end` along a line or half a cosine, or led by the measured KL; see conf/config.yaml."""

    kind: str = CONSTANT
    end: Optional[float] = number("[0, 1e6]", None)
    target: Optional[float] = number("(0, 1e6]", None)
    horizon: float = number("[1, 1e9]", 10.0)

    @property
    def title(self) -> str:
        """In names: `linear0.01`, `kl6`."""
        return f"kl{self.target:g}" if self.kind == TARGET_KL else f"{self.kind}{self.end:g}"

    def words(self, start: float) -> str:
        """In sentences: `0.1, linear to 0.01`."""
        if self.kind == TARGET_KL:
            return f"{start:g} at first, led to a KL of {self.target:g} nats"
        return f"{start:g}, {self.kind} to {self.end:g}"


@dataclass(frozen=True)
class AlphaSchedule:
    """From `alpha` to `end`, weights as alpha has them, along a line or half a cosine; see conf/config.yaml."""

    kind: str = CONSTANT
    end: Any = None


def moved(kind: str, step: int, total: int) -> float:
    """Share of the way from start to end at a step, 0 at the first and 1 at the last.

    Args:
        kind: linear or cosine.
        step: from 0.
        total: steps of the run.
    """
    way = min(1.0, step / max(total - 1, 1))
    return way if kind == LINEAR else (1 - math.cos(math.pi * way)) / 2


def between(start: float, end: float, share: float) -> float:
    """The number that lies so far on the way; the very ends at shares 0 and 1."""
    return start if share == 0 else end if share == 1 else start + share * (end - start)


def all_between(start: Sequence[float], end: Sequence[float], share: float) -> list[float]:
    """`between` for every weight."""
    return [between(a, b, share) for a, b in zip(start, end)]


def controlled(beta: float, measured: float, schedule: BetaSchedule) -> float:
    """The next beta of the proportional controller of Ziegler et al. (arXiv 1909.08593, 2.2).

    beta (1 + e / horizon) with e = measured / target - 1, at most 0.2 in size; their K_beta of 0.1 is a horizon of 10.

    Args:
        beta: now.
        measured: KL of the policy from its references in nats a response.
        schedule: of kind target_kl.
    """
    error = min(0.2, max(-0.2, measured / (schedule.target or 1.0) - 1))
    return beta * (1 + error / schedule.horizon)
