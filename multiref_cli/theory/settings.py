"""What the laboratory can be asked for; meanings, units and usual ranges stand in conf/theory/config.yaml."""

from dataclasses import dataclass, field
from typing import Any, Optional

from multiref_cli.config.ranges import SEED, number
from multiref_cli.config.terms import DivergenceTerm


@dataclass
class Selection:
    """A choice of studies, one YAML file each in conf/theory/study/."""

    name: str = "all"
    parts: list[str] = field(default_factory=list)


@dataclass
class RunFolder:
    name: Optional[str] = None
    dir: Optional[str] = None


@dataclass
class Laboratory:
    """Settings of the finite-space laboratory, the root of conf/theory/config.yaml."""

    study: Selection = field(default_factory=Selection)
    seed: int = number(SEED, 0)
    problems: int = number("[1, 1e6]", 1000)
    n: int = number("[64, 1e8]", 16384)
    draws: int = number("[20, 1e6]", 400)
    responses: int = number("[4, 1000]", 8)
    alpha: Any = 0.5
    beta: float = number("(0, 1e6]", 0.5)
    reward_max: float = number("(0, 100]", 1.0)
    dimension: int = number("[1, 1000]", 3)
    class_size: int = number("[2, 1e6]", 256)
    delta: float = number("(0, 1)", 0.05)
    distance: float = number("(0, 1]", 0.3)
    vocabulary: int = number("[2, 1000]", 3)
    length: int = number("[1, 14]", 6)
    trees: int = number("[2, 1e6]", 40)
    divergence: Optional[str] = None
    order: Optional[float] = number("[-100, 100]", None)
    terms: list[DivergenceTerm] = field(default_factory=list)
    run: RunFolder = field(default_factory=RunFolder)
