"""What an experiment asks for, opened and checked before anything is written: tokenizers, data, references, rewards."""

import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from multiref_cli.algorithms.base import Job, module_of
from multiref_cli.config.schema import BadRows, Experiment
from multiref_cli.data.probe import verdict
from multiref_cli.data.prompts import Prompt, load_prompts
from multiref_cli.data.rows import Split
from multiref_cli.data.template import reads, rendering_of
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_tokenizer, parameter_count, require_peft
from multiref_cli.models.quantize import require as require_bits
from multiref_cli.references.served import tokenizer_of
from multiref_cli.references.tokens import check_compatible, first_difference
from multiref_cli.rewards.combine import build_reward, probe
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.factory import check_engine
from multiref_cli.runs.fit import (
    Reader,
    check_heads,
    check_models,
    evaluation_problem,
    fitting,
    shortest_limit,
    training_problem,
)
from multiref_cli.runs.judge import check_scorer
from multiref_cli.runs.processes import threads_of
from multiref_cli.runs.scorer_file import lineups_of
from multiref_cli.runs.tasks import open_tasks
from multiref_cli.tracking.places import check_place, holds_something
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Tokenizer

# The latest data sets that were loaded, by what they were made of: a sweep of two jobs reads this many.
_LOADED: OrderedDict[str, Split] = OrderedDict()
_KEPT = 4


def prepare(asked: Experiment, local: Experiment, progress: Progress) -> Job:
    """Open tokenizers and data and check that they fit each other; loads no model.

    Args:
        asked: the experiment as the user gave it.
        local: the same with local folders in place of `toy:` names.
        progress: told how far the data are.

    Raises:
        RequestError: data, tokenizers or references that do not fit; nothing was written.
    """
    check_models(local)
    rendering = rendering_of(local.data)
    tokenizer = load_tokenizer(local.policy, rendering)
    _probe(f"policy.path={local.policy.tokenizer or local.policy.path}", tokenizer)
    if local.policy.new is not None:
        parameter_count(local.policy, tokenizer)  # refuses sizes that fit no network
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    tokenizers: dict[str, Tokenizer] = {}
    if local.regularized:
        tokenizers = {r.name: tokenizer_of(r, tokenizer, rendering) for r in local.references}
        vocabulary = check_compatible(tokenizer, tokenizers, local.penalty.level)
    _refuse_unread_arguments(local, [tokenizer, *tokenizers.values()])
    readers = [Reader(name, one) for name, one in tokenizers.items() if first_difference(tokenizer, one) is not None]
    foreign = {reader.name for reader in readers}
    for reader in readers:
        _probe(f"reference {reader.name}", reader.tokenizer)
    check_heads(local, vocabulary, foreign)
    limit = shortest_limit(local, foreign)
    problem, what = training_problem(local, limit, readers), f"data.path={local.data.path or local.data.name}"
    data = fitting(load_data(local, tokenizer, progress), problem, local.data.bad_rows, what)
    if not data.train:
        raise RequestError(f"{what} has no usable training row: {data.report.summary()}.")
    _check_routes(local, data)
    job = Job(asked, local, tokenizer, data, vocabulary)
    job = replace(job, prompts=_evaluation_prompts(job, limit, readers, progress))
    check_scorer(job)
    lineups_of(job)
    _try_reward(job)
    return job


def _probe(name: str, tokenizer: Tokenizer) -> None:
    """Try a chat template on a conversation.

    Raises:
        RequestError: it does not write what is said, or raises something; naming the model.
    """
    try:
        verdict(tokenizer)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error


def _evaluation_prompts(
    job: Job, limit: tuple[int, str] | None, readers: list[Reader], progress: Progress
) -> list[Prompt]:
    """Prompts of the evaluation: those of the data's held-out (or training) rows, repeated prompts once.

    Raises:
        RequestError: there are none, or the reward that scores them cannot.
    """
    experiment, settings = job.experiment, job.experiment.evaluation
    if settings.prompts == 0 or not experiment.algorithm.writes:
        return []
    split, rows = job.data, getattr(job.data, settings.split)
    if not rows:
        raise RequestError(f"evaluation.split={settings.split} has no rows; set data.held_out or evaluation.prompts=0.")
    if not isinstance(rows[0], Prompt):
        split = load_data(experiment, job.tokenizer, progress, as_prompts=True)
    if settings.scorer is not None:
        reader = Reader("the scorer", load_tokenizer(settings.scorer, rendering_of(experiment.data)))
        _probe(f"evaluation.scorer.path={settings.scorer.path}", reader.tokenizer)
        readers = [*readers, reader]
    split = fitting(split, evaluation_problem(experiment, limit, readers), BadRows.drop, "the evaluation")
    found: Sequence[Prompt] = getattr(split, settings.split)
    if not found:
        raise RequestError(
            f"evaluation.split={settings.split} has no rows that can be used: {split.report.summary()}; set "
            "data.held_out or evaluation.prompts=0."
        )
    return list(found[: settings.prompts])


def _try_reward(job: Job) -> None:
    """Call the functions of the reward once, on a row that it will judge.

    Raises:
        RequestError: one cannot work; see `rewards.combine.probe`.
    """
    experiment = job.experiment
    used = experiment.algorithm.rewarded or (experiment.evaluation.gold and job.prompts)
    rows: Sequence[Any] = job.data.train if experiment.algorithm.rewarded else job.prompts
    if experiment.reward is not None and used and rows and isinstance(rows[0], Prompt):
        row = rows[0]
        told = (row.answer, row.extra, True, row.row)
        probe(experiment.reward, Sample(row.messages, "", *told, conversational=row.conversational))


def _refuse_unread_arguments(experiment: Experiment, tokenizers: list[Tokenizer]) -> None:
    for name in experiment.data.chat_template_kwargs:
        if not any(reads(tokenizer, name) for tokenizer in tokenizers):
            raise RequestError(
                f"data.chat_template_kwargs.{name} is read by no chat template of the policy or its references: remove "
                "it or correct its name."
            )


def _check_routes(experiment: Experiment, data: Split) -> None:
    """Refuse rows whose value of alpha.by has no weights."""
    routes = experiment.routes if experiment.regularized else None
    if routes is None:
        return
    values = Counter(routes.value_of(row.extra) for rows in (data.train, data.held_out) for row in rows)
    unknown = [value for value, _ in values.most_common() if value not in routes.weights]
    if unknown:
        shown = ", ".join("none" if value is None else f"{value} ({values[value]} rows)" for value in unknown[:8])
        raise RequestError(
            f"alpha.by={routes.column}: no weights for {shown}; alpha.weights has {', '.join(routes.weights)}."
        )


def check_parts(experiment: Experiment) -> None:
    """Find what an experiment names besides models and data: its engine's options, reward functions, peft, tasks.

    Raises:
        RequestError: something is not there, or does not take what it is given.
    """
    if experiment.algorithm.online:
        check_engine(experiment.rollout)
    if experiment.reward is not None:
        build_reward(experiment.reward)
    if experiment.policy.lora is not None or experiment.policy.adapter:
        require_peft()
    for reference in experiment.references if experiment.regularized else []:
        if reference.quantization is not None:
            require_bits(reference.quantization)
    open_tasks(experiment.evaluation)


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
    count = torch.cuda.device_count()
    if hardware.device_name == "cuda" and hardware.processes > count:
        raise RequestError(
            f"hardware.processes is {hardware.processes}, a GPU for each, and this machine has {count}; give a smaller "
            "number, or hardware.device=cpu."
        )


def check_cache(experiment: Experiment) -> None:
    """Say that stored results of references cannot be kept, before a run that needs some is begun.

    Raises:
        RequestError: the store holds nothing and cannot be written.
    """
    store = experiment.hardware.cache_folder / "store"
    if (experiment.reads_store or experiment.compares_samples) and not holds_something(store):
        check_place(store, "hardware.cache_dir's store")


def load_data(experiment: Experiment, tokenizer: Tokenizer, progress: Progress, as_prompts: bool = False) -> Split:
    """The experiment's rows, kept for the next point of a sweep, which mostly wants the same.

    Args:
        experiment: with local folders in place of `toy:` names.
        tokenizer: of the policy.
        progress: told how far it is.
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
        _LOADED[key] = load(data, tokenizer, progress)
    _LOADED.move_to_end(key)
    while len(_LOADED) > _KEPT:
        _LOADED.popitem(last=False)
    return _LOADED[key]


def set_up_torch(experiment: Experiment) -> None:
    """Threads and determinism of this process, as the experiment asks."""
    threads = threads_of(experiment.hardware)
    if threads:
        torch.set_num_threads(threads)
    if experiment.hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    # warn_only: a kernel without a deterministic twin (some CUDA scatters) warns and runs, it does not end the run.
    torch.use_deterministic_algorithms(experiment.hardware.deterministic, warn_only=True)
    # A debugging aid that costs time at every allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
