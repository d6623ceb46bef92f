"""What a config asks for, opened and checked before anything is written: tokenizers, data, references, scorers."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from multiref_cli.config import build
from multiref_cli.config.check import REGULARIZED
from multiref_cli.data.demonstrations import load_demonstrations
from multiref_cli.data.preferences import load_preferences
from multiref_cli.data.prompts import load_prompts
from multiref_cli.data.rows import Split
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_tokenizer, require_peft
from multiref_cli.references.models import check_compatible
from multiref_cli.references.store import ReferenceStore, Scoring
from multiref_cli.rewards.combine import build_reward
from multiref_cli.rollouts.engine import check_engine

_LOADERS: dict[str, Callable[[Any, Any], Split]] = {
    "dpo": load_preferences,
    "reward_model": load_preferences,
    "sft": load_demonstrations,
    "grpo": load_prompts,
}

# The latest data sets that were loaded, by what they were made of: a sweep of two jobs reads this many.
_LOADED: OrderedDict[str, Split] = OrderedDict()
_KEPT = 4


@dataclass
class Job:
    """A config with its data and tokenizers.

    Attributes:
        config: local folders in place of `toy:` names.
        hash: of the config as the user gave it.
        condition: its readable name.
        tokenizer: of the policy.
        data: training and held-out rows.
        vocabulary: number of ids shared by policy and references.
    """

    config: DictConfig
    hash: str
    condition: str
    tokenizer: Any
    data: Split
    vocabulary: int

    @property
    def batch_size(self) -> int:
        """Training rows per optimizer step."""
        algorithm = self.config.algorithm
        return next(algorithm[k] for k in ("batch_pairs", "batch_prompts", "batch_rows") if k in algorithm)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        if self.config.steps is not None:
            return self.config.steps
        return max(1, math.ceil(self.config.epochs * math.ceil(len(self.data.train) / self.batch_size)))

    def open_store(self) -> ReferenceStore:
        """The reference store of this machine, with what decides how this run's references score."""
        config = self.config
        scoring = Scoring(
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            truncation=(config.data.max_prompt_tokens, config.data.max_completion_tokens),
            device=config.hardware.reference_device or build.device_name(config),
            dtype=build.dtype_name(config),
        )
        return ReferenceStore(build.cache_folder(config) / "store", scoring)


def prepare(config: DictConfig, original: DictConfig) -> Job:
    """Open tokenizers and data and check that they fit each other; loads no model.

    Args:
        config: checked, with local folders in place of `toy:` names.
        original: the same config as the user gave it; names and hashes come from it.

    Raises:
        RequestError: data, tokenizers, references, a reward or an engine that do not fit; nothing was written.
    """
    check_parts(config)
    tokenizer = load_tokenizer(config.policy)
    data = load_data(config, tokenizer, config.algorithm.name)
    if not data.train:
        raise RequestError(
            f"{config.data.path or config.data.name} has no usable training row: {data.report.summary()}."
        )
    vocabulary = len(tokenizer)
    if config.algorithm.name in REGULARIZED:
        tokenizers = {r.name: load_tokenizer(r) for r in config.references}
        vocabulary = check_compatible(tokenizer, tokenizers, config.regularizer.level)
    return Job(config, build.config_hash(original), build.condition(original), tokenizer, data, vocabulary)


def check_parts(config: DictConfig) -> None:
    """Find what a config names besides models and data: its engine's options, its reward functions, peft.

    Raises:
        RequestError: something is not there, or does not take what it is given.
    """
    if config.algorithm.name == "grpo":
        check_engine(config.rollout)
    if config.reward is not None:
        build_reward(config.reward)
    if config.policy.lora is not None or config.policy.adapter:
        require_peft()


def load_data(config: DictConfig, tokenizer: Any, algorithm: str) -> Split:
    """The config's rows as an algorithm reads them, kept for the next point of a sweep, which mostly wants the same.

    Args:
        config: with local folders in place of `toy:` names.
        tokenizer: of the policy.
        algorithm: dpo and reward_model read pairs, sft demonstrations, grpo (and every evaluation) prompts.

    Raises:
        RequestError: nothing to read, or rows that the config refuses.
    """
    files = [Path(path) for path in (config.data.path, config.data.held_out_path) if path and Path(path).exists()]
    stamps = [(str(path), path.stat().st_mtime_ns) for path in files]
    key = f"{_LOADERS[algorithm].__name__} {config.data} {config.policy.path} {config.policy.tokenizer} {stamps}"
    if key not in _LOADED:
        _LOADED[key] = _LOADERS[algorithm](config.data, tokenizer)
    _LOADED.move_to_end(key)
    while len(_LOADED) > _KEPT:
        _LOADED.popitem(last=False)
    return _LOADED[key]
