"""What a run would do, without doing it: rows, steps, reference passes, estimates of memory and time."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from multiref_cli.config import build
from multiref_cli.data.chat import completion_mask
from multiref_cli.errors import RequestError
from multiref_cli.models.load import parameter_count
from multiref_cli.tracking.progress import Silent
from multiref_cli.training.embedded import localized
from multiref_cli.training.job import Job, prepare

# Floating-point operations per second assumed by the estimate of time: one CPU core, one current GPU.
_SPEED = {"cpu": 2e10, "cuda": 1.5e14}


@dataclass
class Plan:
    """Rows for a table of facts, and one training row with its completion mask."""

    rows: list[list[Any]]
    masks: list[tuple[str, list[tuple[str, bool]]]] = field(default_factory=list)


def plan(config: DictConfig) -> Plan:
    """Describe a run; opens tokenizers and data where they can be reached, loads no weights.

    Raises:
        RequestError: what `train` would refuse too, except models and data of a hub that cannot be reached.
    """
    rows = [
        ["condition", build.condition(config)],
        ["config hash", build.config_hash(config)],
        ["run folder", str(build.run_folder(config))],
        ["device, dtype", f"{build.device_name(config)}, {build.dtype_name(config)}"],
    ]
    try:
        job = prepare(localized(config, Silent()), config)
    except RequestError as error:
        if not _hub_is_missing(config, error):
            raise
        rows.append(["not checked", str(error)])
        return Plan(rows)
    rows += _data_rows(job) + _reference_rows(job) + _estimates(job)
    return Plan(rows, _masks(job))


def _hub_is_missing(config: DictConfig, error: RequestError) -> bool:
    paths = [config.policy.path, config.data.path, *[r.path for r in config.references]]
    return "reach" in str(error) and any(p.count("/") == 1 and not p.startswith((".", "/", "~")) for p in paths)


def _data_rows(job: Job) -> list[list[Any]]:
    return [
        ["data", job.data.report.summary()],
        ["training rows, held-out rows", f"{len(job.data.train)}, {len(job.data.held_out)}"],
        ["optimizer steps", f"{job.total_steps} of {job.batch_size} rows"],
    ]


def _reference_rows(job: Job) -> list[list[Any]]:
    config = job.config
    if not config.references or config.regularizer is None:
        return []
    active, weights = build.active_references(config)
    mixed = ", ".join(f"{w:g} {r.name}" for r, w in zip(active, weights))
    r = config.regularizer
    rows = [
        ["mixed reference", f"order {r.mean_order:g} at level {r.level.name}: {mixed}"],
        ["penalty", f"score order {r.score_order:g}, estimator {build.estimator(config).name}, beta {config.beta:g}"],
    ]
    if config.algorithm.name == "dpo":
        rows.append(["reference passes", f"{len(active)} x {2 * len(job.data.train)} responses, once per machine"])
    return rows


def _estimates(job: Job) -> list[list[Any]]:
    config = job.config
    parameters = parameter_count(config.policy, job.tokenizer)
    if parameters is None:
        return []
    trained = 0.02 if config.policy.lora else 1.0
    bytes_each = 2 if build.dtype_name(config) == "bfloat16" else 4
    memory = parameters * (bytes_each + trained * 3 * bytes_each)
    tokens = job.total_steps * job.batch_size * _mean_tokens(job)
    kind = "cuda" if build.device_name(config).startswith("cuda") else "cpu"
    # A forward pass takes 2 operations a parameter and token, a backward pass 4.
    seconds = 6 * parameters * tokens / _SPEED[kind]
    return [
        ["policy", f"{parameters / 1e6:.2f} M parameters"],
        ["memory, without activations", f"{memory / 2**30:.2f} GiB"],
        ["training time, roughly", f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"],
    ]


def _mean_tokens(job: Job) -> float:
    rows = job.data.train[:200]
    if job.config.algorithm.name == "grpo":
        length = sum(len(r.ids) for r in rows) / len(rows) + job.config.rollout.max_new_tokens
        return job.config.rollout.group_size * length
    if job.config.algorithm.name == "sft":
        return sum(len(r.prompt) + len(r.completion) for r in rows) / len(rows)
    return sum(2 * len(r.prompt) + len(r.chosen) + len(r.rejected) for r in rows) / len(rows)


def _masks(job: Job) -> list[tuple[str, list[tuple[str, bool]]]]:
    row = job.data.train[0]
    if job.config.algorithm.name == "grpo":
        return [("first prompt", completion_mask(job.tokenizer, row.ids, ()))]
    if job.config.algorithm.name == "sft":
        return [("first row", completion_mask(job.tokenizer, row.prompt, row.completion))]
    return [
        ("first row, chosen", completion_mask(job.tokenizer, row.prompt, row.chosen)),
        ("first row, rejected", completion_mask(job.tokenizer, row.prompt, row.rejected)),
    ]
