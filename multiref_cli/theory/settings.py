"""What the laboratory can be asked for; meanings, units and usual ranges stand in conf/theory/config.yaml."""

from dataclasses import dataclass, field
from typing import Any, Optional


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
    seed: int = 0
    problems: int = 1000
    n: int = 16384
    draws: int = 400
    responses: int = 8
    alpha: Any = 0.5
    beta: float = 0.5
    reward_max: float = 1.0
    dimension: int = 3
    class_size: int = 256
    delta: float = 0.05
    distance: float = 0.3
    vocabulary: int = 3
    length: int = 6
    trees: int = 40
    divergence: Optional[str] = None
    run: RunFolder = field(default_factory=RunFolder)
