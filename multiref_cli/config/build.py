"""From a checked config to the plain values that the rest of the program takes: weights, hashes, names, devices."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multiref_cli.config.check import simplex
from multiref_cli.config.schema import Estimator, Level, Reference, States

# Keys that can change without changing a result: where it runs, where it is written, how it is watched.
_WITHOUT_EFFECT = ("run", "tracking", "hardware", "first", "second")
_HARDWARE_WITH_EFFECT = ("dtype",)


def weights(config: DictConfig) -> list[float]:
    """Alpha as a list on the simplex, one weight a reference; empty without references."""
    return simplex(config.alpha, len(config.references)) if config.references else []


def active_references(config: DictConfig) -> tuple[list[Reference], list[float]]:
    """The references with a positive weight and their weights; the others are never loaded."""
    pairs = [(r, w) for r, w in zip(config.references, weights(config)) if w > 0]
    return [r for r, _ in pairs], [w for _, w in pairs]


def estimator(config: DictConfig) -> Estimator:
    """The online estimator: as given, else `reward` at sequence level and `exact` at token level."""
    return config.regularizer.estimator or Estimator[usual_estimator(config.regularizer.level.name)]


def usual_estimator(level: str) -> str:
    """The online estimator of a level where none is named."""
    return "reward" if level == Level.sequence.name else "exact"


def reads_samples(config: DictConfig) -> bool:
    """Whether a run trains on stored samples of its references."""
    regularized = config.algorithm.name == "grpo" and config.beta > 0
    return regularized and config.regularizer.states == States.reference


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as JSON-ready dictionaries, lists and numbers."""
    return OmegaConf.to_container(config, resolve=True, enum_to_str=True)  # type: ignore[return-value]


def config_hash(config: DictConfig, *, without_seed: bool = False) -> str:
    """sha256 (first 12 digits) of everything that a result depends on; without the seed it names the condition."""
    return plain_hash(plain(config), without_seed=without_seed)


def plain_hash(content: dict[str, Any], *, without_seed: bool = False) -> str:
    """`config_hash` of a config that is already plain dictionaries, lists and numbers."""
    kept = {k: v for k, v in content.items() if k not in _WITHOUT_EFFECT}
    kept["hardware"] = {k: content["hardware"][k] for k in _HARDWARE_WITH_EFFECT}
    if content["references"]:
        kept["alpha"] = simplex(content["alpha"], len(content["references"]))
    if without_seed:
        kept.pop("seed")
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def condition(config: DictConfig) -> str:
    """Readable name of what is compared, without the seed: `dpo-rkl-toy_pair…-a0.5-b1`."""
    if config.regularizer is None or not config.references:
        return f"{config.algorithm.name}-{config.data.name}"
    alphas = weights(config)
    if config.beta == 0:
        return f"{config.algorithm.name}-beta0"
    if max(alphas) == 1.0:
        single = config.references[alphas.index(1.0)].name
        return f"{config.algorithm.name}-{_penalty_name(config)}-single_{single}-b{config.beta:g}"
    mix = "_".join(f"{a:g}" for a in (alphas[:1] if len(alphas) == 2 else alphas))
    return f"{config.algorithm.name}-{_penalty_name(config)}-a{mix}-b{config.beta:g}"


def _penalty_name(config: DictConfig) -> str:
    """The regularizer's name, with the online estimator where it is not the usual one of its level."""
    regularizer = config.regularizer
    given, level = (getattr(value, "name", value) for value in (regularizer.estimator, regularizer.level))
    online = config.algorithm.name == "grpo"
    return f"{regularizer.name}-{given}" if online and given not in (None, usual_estimator(level)) else regularizer.name


def run_name(config: DictConfig) -> str:
    """Name of the run folder: as given, else the condition, the seed and the start of the config hash."""
    return config.run.name or f"{condition(config)}-s{config.seed}-{config_hash(config)[:6]}"


def run_folder(config: DictConfig) -> Path:
    """Folder of the run: `run.dir`, else runs/<name>."""
    return Path(config.run.dir).expanduser() if config.run.dir else Path("runs") / run_name(config)


def cache_folder(config: DictConfig | None = None) -> Path:
    """Where embedded models and stored references live: hardware.cache_dir, $MULTIREF_CACHE, else ~/.cache/multiref."""
    given = config.hardware.cache_dir if config is not None else None
    return Path(given or os.environ.get("MULTIREF_CACHE") or Path.home() / ".cache" / "multiref").expanduser()


def device_name(config: DictConfig) -> str:
    """Name of the torch device of the policy."""
    import torch

    if config.hardware.device != "auto":
        return config.hardware.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_name(config: DictConfig, given: str | None = None) -> str:
    """Parameter type of a model: its own, else hardware.dtype, else bfloat16 on GPU and float32 elsewhere."""
    if given:
        return given
    if config.hardware.dtype != "auto":
        return config.hardware.dtype
    return "bfloat16" if device_name(config).startswith("cuda") else "float32"
