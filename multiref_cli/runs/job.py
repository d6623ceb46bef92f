"""What an experiment asks for, opened and checked before anything is written: tokenizers, data, references, rewards."""

from collections import OrderedDict
from pathlib import Path

import torch

from multiref_cli.algorithms.base import Job, module_of
from multiref_cli.config.schema import Experiment
from multiref_cli.data.prompts import load_prompts
from multiref_cli.data.rows import Split
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_tokenizer, parameter_count, require_peft
from multiref_cli.references.tokens import check_compatible
from multiref_cli.rewards.combine import build_reward
from multiref_cli.rollouts.factory import check_engine
from multiref_cli.tracking.places import check_place, holds_something
from multiref_cli.types import Tokenizer

# The latest data sets that were loaded, by what they were made of: a sweep of two jobs reads this many.
_LOADED: OrderedDict[str, Split] = OrderedDict()
_KEPT = 4


def prepare(asked: Experiment, local: Experiment) -> Job:
    """Open tokenizers and data and check that they fit each other; loads no model.

    Args:
        asked: the experiment as the user gave it.
        local: the same with local folders in place of `toy:` names.

    Raises:
        RequestError: data, tokenizers or references that do not fit; nothing was written.
    """
    tokenizer = load_tokenizer(local.policy)
    data = load_data(local, tokenizer)
    if not data.train:
        raise RequestError(f"{local.data.path or local.data.name} has no usable training row: {data.report.summary()}.")
    if local.policy.new is not None:
        parameter_count(local.policy, tokenizer)  # refuses sizes that fit no network
    vocabulary = len(tokenizer)
    if local.regularized:
        tokenizers = {r.name: load_tokenizer(r) for r in local.references}
        vocabulary = check_compatible(tokenizer, tokenizers, local.penalty.level)
    return Job(asked, local, tokenizer, data, vocabulary)


def check_parts(experiment: Experiment) -> None:
    """Find what an experiment names besides models and data: its engine's options, its reward functions, peft.

    Raises:
        RequestError: something is not there, or does not take what it is given.
    """
    if experiment.algorithm.online:
        check_engine(experiment.rollout)
    if experiment.reward is not None:
        build_reward(experiment.reward)
    if experiment.policy.lora is not None or experiment.policy.adapter:
        require_peft()


def check_devices(experiment: Experiment) -> None:
    """Find the devices that an experiment names on this machine.

    Raises:
        RequestError: one is not there.
    """
    hardware = experiment.hardware
    for key, name in (("device", hardware.device_name), ("reference_device", hardware.reference_device)):
        try:
            torch.empty(0, device=name or "cpu")
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            raise RequestError(
                f"hardware.{key} is {name!r}, which this machine does not have; give cpu or auto."
            ) from error


def check_cache(experiment: Experiment) -> None:
    """Say that stored results of references cannot be kept, before a run that needs some is begun.

    Raises:
        RequestError: the store holds nothing and cannot be written.
    """
    store = experiment.hardware.cache_folder / "store"
    if (experiment.reads_store or experiment.compares_samples) and not holds_something(store):
        check_place(store, "hardware.cache_dir's store")


def load_data(experiment: Experiment, tokenizer: Tokenizer, as_prompts: bool = False) -> Split:
    """The experiment's rows, kept for the next point of a sweep, which mostly wants the same.

    Args:
        experiment: with local folders in place of `toy:` names.
        tokenizer: of the policy.
        as_prompts: as every evaluation reads them; else as its algorithm does.

    Raises:
        RequestError: nothing to read, or rows that the experiment refuses.
    """
    load = load_prompts if as_prompts else module_of(experiment).load
    data, policy = experiment.data, experiment.policy
    files = [Path(path) for path in (data.path, data.held_out_path) if path and Path(path).exists()]
    stamps = [(str(path), path.stat().st_mtime_ns) for path in files]
    key = f"{load.__module__}.{load.__name__} {data} {policy.path} {policy.tokenizer} {stamps}"
    if key not in _LOADED:
        _LOADED[key] = load(data, tokenizer)
    _LOADED.move_to_end(key)
    while len(_LOADED) > _KEPT:
        _LOADED.popitem(last=False)
    return _LOADED[key]


def set_up_torch(experiment: Experiment) -> None:
    """Threads and determinism of this process, as the experiment asks."""
    if experiment.hardware.threads:
        torch.set_num_threads(experiment.hardware.threads)
    # warn_only: a kernel without a deterministic twin (some CUDA scatters) warns and runs, it does not end the run.
    torch.use_deterministic_algorithms(experiment.hardware.deterministic, warn_only=True)
    # A debugging aid that costs time at every allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
