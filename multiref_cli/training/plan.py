"""What a run would do, without doing it: rows, steps, reference passes, estimates of memory and time."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from multiref_cli.config import build
from multiref_cli.config.check import REGULARIZED
from multiref_cli.data.chat import completion_mask
from multiref_cli.errors import RequestError
from multiref_cli.models.load import parameter_count
from multiref_cli.tracking.progress import Silent, duration
from multiref_cli.training.embedded import localized, missing
from multiref_cli.training.job import Job, prepare

# Floating-point operations per second assumed by the estimate of time: one CPU core, one current GPU.
_SPEED = {"cpu": 2e10, "cuda": 1.5e14}
# Operations a parameter and token: a forward pass; a forward and a backward pass.
_FORWARD, _TRAIN = 2, 6


@dataclass
class Plan:
    """Rows for a table of facts, and one training row with its completion mask."""

    rows: list[list[Any]]
    masks: list[tuple[str, list[tuple[str, bool]]]] = field(default_factory=list)


@dataclass(frozen=True)
class Cost:
    """What a run takes, counted in floating-point operations and parameters: rough, for orders of magnitude.

    Attributes:
        training: seconds of optimizer steps, with rollouts and live references.
        evaluation: seconds of sampling, scoring and measuring at the end.
        references: seconds of the passes that fill the reference store, once per machine.
        memory: bytes of weights, gradients and optimizer state, references included; no activations.
    """

    training: float
    evaluation: float
    references: float
    memory: float


def plan(config: DictConfig) -> Plan:
    """Describe a run; opens tokenizers and data where they can be reached, loads no weights, makes nothing.

    Raises:
        RequestError: what `train` would refuse too, except models and data of a hub that cannot be reached.
    """
    rows = [
        ["condition", build.condition(config)],
        ["config hash", build.config_hash(config)],
        ["run folder", str(build.run_folder(config))],
        ["device, dtype", f"{build.device_name(config)}, {build.dtype_name(config)}"],
    ]
    unmade = missing(config)
    if unmade:
        rows.append(["made first, once per machine", ", ".join(unmade)])
        rows.append(["rows, mask, time, memory", "known once these are made, by the first run"])
        return Plan(rows)
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
    paths = [config.policy.path, config.data.path or "", *[r.path for r in config.references]]
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
    # Offline the penalty is the loss itself: nothing of it is estimated.
    how = f", estimator {build.estimator(config).name}" if config.algorithm.name == "grpo" else ""
    rows = [
        ["mixed reference", f"order {r.mean_order:g} at level {r.level.name}: {mixed}"],
        ["penalty", f"score order {r.score_order:g}{how}, beta {config.beta:g}"],
    ]
    if config.algorithm.name == "dpo":
        rows.append(["reference passes", f"{len(active)} x {2 * len(job.data.train)} responses, once per machine"])
    return rows


def _estimates(job: Job) -> list[list[Any]]:
    parameters, found = parameter_count(job.config.policy, job.tokenizer), cost(job)
    if parameters is None or found is None:
        return []
    rows = [
        ["policy", f"{parameters / 1e6:.2f} M parameters"],
        ["memory, without activations", memory_text(found.memory)],
        ["training time, roughly", duration(found.training)],
    ]
    if found.evaluation:
        rows.append(["evaluation time, roughly", duration(found.evaluation)])
    if found.references:
        rows.append(["time of reference passes, roughly", duration(found.references)])
    return rows


def cost(job: Job) -> Cost | None:
    """Estimate what a run takes; None where a model's size is out of reach."""
    config = job.config
    regularized = config.algorithm.name in REGULARIZED and bool(config.references)
    scorer = [] if config.evaluation.scorer is None else [config.evaluation.scorer]
    active = build.active_references(config)[0] if regularized and config.beta > 0 else []
    everyone = list(config.references) if regularized else []
    sizes = {id(m): parameter_count(m, job.tokenizer) for m in (config.policy, *everyone, *active, *scorer)}
    if None in sizes.values():
        return None
    policy, references = sizes[id(config.policy)], sum(sizes[id(one)] for one in active)
    kind = "cuda" if build.device_name(config).startswith("cuda") else "cpu"
    online = config.algorithm.name == "grpo"
    tokens = job.total_steps * job.batch_size * _mean_tokens(job)
    training = _TRAIN * policy * tokens
    if online:
        training += _FORWARD * (policy + references) * tokens
    stored = 0.0
    if config.algorithm.name == "dpo":
        rows = len(job.data.train) + len(job.data.held_out)
        stored = _FORWARD * references * rows * _mean_tokens(job)
    measured = sum(sizes[id(one)] for one in (*everyone, *scorer))
    evaluation = _FORWARD * (2 * policy + measured) * _evaluated_tokens(job)
    bytes_each = 2 if build.dtype_name(config) == "bfloat16" else 4
    trained = 0.02 if config.policy.lora else 1.0
    resident = max(references if online else 0, measured)
    memory = bytes_each * (policy * (1 + 3 * trained) + resident)
    return Cost(training / _SPEED[kind], evaluation / _SPEED[kind], stored / _SPEED[kind], memory)


def memory_text(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _evaluated_tokens(job: Job) -> float:
    """Tokens of all evaluated responses with their prompts, taking every response for as long as allowed."""
    settings = job.config.evaluation
    rows = getattr(job.data, settings.split)[:200]
    if not rows:
        return 0.0
    prompt = sum(len(getattr(row, "ids", None) or row.prompt) for row in rows) / len(rows)
    return settings.prompts * settings.samples_per_prompt * (prompt + settings.max_new_tokens)


def _mean_tokens(job: Job) -> float:
    rows = job.data.train[:200]
    if job.config.algorithm.name == "grpo":
        # A prompt is computed once for its group; every response is taken for as long as allowed.
        prompt = sum(len(r.ids) for r in rows) / len(rows)
        return prompt + job.config.rollout.group_size * job.config.rollout.max_new_tokens
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
