"""What a run takes, in time and memory, counted from sizes alone: of what is on this machine, or of what is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multiref_cli.algorithms.base import Job, module_of
from multiref_cli.config.algorithms import UntrainedSettings
from multiref_cli.config.schema import Experiment, Level, Model, Policy, torch_name
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.evaluate import RESIDENT
from multiref_cli.models.inspect import text_config
from multiref_cli.models.known import absent, known_config, remote_parameters
from multiref_cli.models.load import halves, parameter_count
from multiref_cli.models.precision import Precision, parameter_type
from multiref_cli.models.quantize import BYTES
from multiref_cli.runs.cards import Card
from multiref_cli.runs.engines import FORWARD, USE, chosen, decoding, rollout_bytes, seconds_of_each
from multiref_cli.runs.memory import (
    CAST,
    HEAP,
    LIBRARIES,
    Shape,
    activation_bytes,
    gathered_bytes,
    head_bytes,
    shape_of,
)
from multiref_cli.runs.passes import layout

# Operations a parameter and token, beside FORWARD: forward and backward; the same with a frozen base, whose weights get
# no gradient; the forward pass that gradient checkpointing repeats.
TRAIN, TRAIN_ADAPTER, AGAIN = 6, 4, 2
# Rows of a file that a forecast reads whole, and how many of the first it reads of a larger one.
_WHOLE, _SOME = 6_000, 2_000
# Runs of smaller policies are not priced on the cards of others.
LARGE = 1e8


@dataclass(frozen=True)
class Rows:
    """Of a data set: usable rows in training and held out, mean tokens of a prompt and of what is learned from a row.

    Attributes:
        train: training rows.
        held_out: held-out rows.
        prompt: tokens of a prompt.
        row: tokens of a training row with all its responses, as its algorithm lays it out.
        known: where the numbers are from, when the data are not on this machine.
        passed: tokens of the largest pass, padding included; 0 where rows are not at hand.
        width: of the longest row whose responses share their prompt, 0 where none do.
    """

    train: int
    held_out: int
    prompt: float
    row: float
    known: str = ""
    passed: int = 0
    width: int = 0


@dataclass(frozen=True)
class Known:
    """What is known of a Hub data set: rows, those of a held-out split of its own, mean tokens in Qwen2.5's tokenizer.

    Attributes:
        prompts: limit of a prompt in tokens (None: chosen from the data) -> share of rows that fit, their mean prompt.
        responses: tokens of both responses of a pair, or of a demonstration.
    """

    train: int
    held_out: int
    prompts: dict[int | None, tuple[float, float]]
    responses: float


# Means of a sample of 1,200 rows of UltraFeedback, and of all of GSM8K.
DATA = {
    "trl-lib/ultrafeedback_binarized": Known(62_135, 0, {None: (0.995, 187.0), 512: (0.925, 143.0)}, 508.0),
    "openai/gsm8k": Known(7_473, 1_319, {None: (1.0, 109.0)}, 122.0),
}


@dataclass(frozen=True)
class Sizes:
    """Parameters of the models that a run opens, and the shape of its policy where the config says it."""

    policy: int
    active: tuple[int, ...]
    everyone: tuple[int, ...]
    scorer: int
    shape: Shape | None
    vocabulary: int


@dataclass(frozen=True)
class Cost:
    """What a run takes, counted: rough, for orders of magnitude.

    Attributes:
        training: seconds of optimizer steps, with rollouts and live references.
        evaluation: seconds of sampling, scoring and measuring at the end.
        references: seconds of the passes that fill the reference store, once per machine.
        memory: bytes of weights, gradients and optimizer state, live references and what vLLM holds included; no
            activations.
        activations: bytes that one training pass keeps for its backward pass; None where nothing is trained, or the
            policy's config does not say its sizes.
        tokens: of that pass.
        rollout: bytes that sampling for training takes while it lasts.
        measuring: bytes of the evaluation's models at its peak.
        checkpoint: bytes of one checkpoint on disk.
        process: bytes of Python and its libraries, where they share the device's memory.
    """

    training: float
    evaluation: float
    references: float
    memory: float
    activations: float | None
    tokens: int
    rollout: float = 0.0
    measuring: float = 0.0
    checkpoint: float = 0.0
    process: float = 0.0

    @property
    def total(self) -> float:
        """Bytes at the peak, of activations as far as they are known."""
        return self.process + max(self.memory + max(self.activations or 0.0, self.rollout), self.measuring)


def opened(experiment: Experiment) -> list[Model]:
    """The models that a run opens: policy, references (but for those that a server answers for), scorer."""
    scorer = experiment.evaluation.scorer
    references = experiment.references if experiment.regularized else []
    return [
        experiment.policy,
        *(one for one in references if one.server is None),
        *([] if scorer is None else [scorer]),
    ]


def sizes_of(experiment: Experiment, job: Job | None = None) -> Sizes | None:
    """Sizes of an experiment's models; None where one of them is out of reach.

    Args:
        experiment: with local folders in place of `toy:` names.
        job: gives a new model its vocabulary; None where models are not on this machine.
    """
    scorer = experiment.evaluation.scorer
    active = experiment.active_references if experiment.penalized else []
    everyone = experiment.references if experiment.regularized else []
    found: dict[int, int] = {}
    for model in [*opened(experiment), *(one for one in active if one.server is None)]:
        count = _parameters(model, job)
        if count is None:
            return None
        found[id(model)] = count
    policy = experiment.policy
    return Sizes(
        policy=found[id(policy)],
        active=tuple(found.get(id(one), 0) for one in active),
        everyone=tuple(found.get(id(one), 0) for one in everyone),
        scorer=0 if scorer is None else found[id(scorer)],
        shape=shape_of(_config(policy)),
        vocabulary=job.vocabulary if job is not None else int(_config(policy).get("vocab_size", 0)),
    )


def _config(policy: Policy) -> dict[str, Any]:
    """What is known of the policy's network."""
    return policy.new or known_config(policy) or ({} if absent(policy) else text_config(policy))


def _parameters(model: Model, job: Job | None) -> int | None:
    if absent(model):
        return remote_parameters(model)
    return None if job is None else parameter_count(model, job.tokenizer)


@dataclass(frozen=True)
class Look:
    """What a forecast opens of an experiment: the first rows of a large file, which has `times` as many."""

    experiment: Experiment
    times: float = 1.0

    def count(self, rows: int) -> str:
        """A number of rows, said to be an estimate where it is one."""
        return str(rows) if self.times == 1 else f"about {round(rows * self.times)}"


def look(experiment: Experiment) -> Look:
    """The whole of small data; of a .jsonl file of more than `_WHOLE` rows the first ones alone become tokens."""
    path = Path(experiment.data.path or "")
    if experiment.data.max_rows is not None or path.suffix != ".jsonl" or not path.is_file():
        return Look(experiment)
    with path.open("rb") as file:
        lines = sum(1 for _ in file)
    if lines <= _WHOLE:
        return Look(experiment)
    return Look(replace(experiment, data=replace(experiment.data, max_rows=_SOME)), lines / _SOME)


def rows_of(job: Job, times: float = 1.0) -> Rows:
    """Counts of the rows that are on this machine; of the first of them alone, so many `times` as many."""
    some = getattr(job.data, job.experiment.evaluation.split, job.data.train)[:200] or job.data.train[:200]
    prompt = sum(len(getattr(row, "ids", None) or row.prompt) for row in some) / max(1, len(some))
    own = job.experiment.data.held_out_path or job.experiment.data.held_out_split
    held_out = len(job.data.held_out) * (1.0 if own else times)
    rows = Rows(round(len(job.data.train) * times), round(held_out), prompt, module_of(job.experiment).mean_tokens(job))
    shape = shape_of(_config(job.experiment.policy))
    found = layout(job, total_steps(job.experiment, rows), None if shape is None else shape.hidden)
    return rows if found is None else replace(rows, row=found.mean, passed=found.passed, width=found.width)


def known_rows(experiment: Experiment) -> Rows | None:
    """Counts of a data set that is in the table; None of any other."""
    data, settings = experiment.data, experiment.algorithm
    found = DATA.get(data.path or "")
    if found is None:
        return None
    usable, prompt = found.prompts.get(data.max_prompt_tokens, found.prompts[None])
    rows = min(found.train, data.max_rows or found.train) * usable
    out = found.held_out if data.held_out_split else rows * data.held_out
    prompts = 2 if settings.measures_pairs else 1
    responses = min(found.responses, 2 * data.max_completion_tokens)
    if settings.online:
        responses = experiment.rollout.group_size * experiment.rollout.max_new_tokens
    train = int(rows if data.held_out_split else rows - out)
    where = f"{data.path} has {found.train} training rows of {prompt:.0f} tokens a prompt"
    return Rows(train, int(out), prompt, prompts * prompt + responses, where)


def total_steps(experiment: Experiment, rows: Rows) -> int:
    """Optimizer steps of a run."""
    if not experiment.algorithm.trains:
        return 0
    if experiment.steps is not None:
        return experiment.steps
    return max(1, -int(-(experiment.epochs or 1) * -(-rows.train // experiment.algorithm.batch_size) // 1))


def price(experiment: Experiment, sizes: Sizes, rows: Rows, card: Card) -> Cost:
    """Count what a run takes on a device.

    Args:
        experiment: what is run.
        sizes: of its models.
        rows: of its data.
        card: each of `hardware.processes` processes has one.
    """
    policy, settings = experiment.policy, experiment.algorithm
    precision, speed = Precision(experiment.precision), USE * card.operations * experiment.hardware.processes
    steps = total_steps(experiment, rows)
    tokens = steps * settings.batch_size * rows.row
    each = TRAIN_ADAPTER if policy.adapted else TRAIN
    each += AGAIN if policy.gradient_checkpointing else 0
    training, stored = each * sizes.policy * tokens / speed, 0.0
    if settings.online:
        sampling = seconds_of_each(experiment, sizes.policy, sizes.shape, steps, card)
        training += FORWARD * sum(sizes.active) * tokens / speed + sampling[chosen(experiment)]
    if settings.reads_store:
        stored = FORWARD * sum(sizes.active) * (rows.train + rows.held_out) * rows.row / speed
    base, _ = precision.bytes_of(adapted=policy.adapted)
    weights, checkpoint = _training_bytes(experiment, sizes, precision)
    if experiment.sharded and settings.trains:
        weights /= experiment.hardware.processes
        weights += gathered_bytes(sizes.shape, sizes.policy, base, trained=not policy.adapted)
    live = _live_bytes(experiment, sizes) if settings.online and experiment.penalized else 0.0
    passed = min(settings.pass_tokens, rows.passed or int(settings.batch_size * rows.row))
    half = experiment.precision != "float32"
    kept = None
    if sizes.shape is not None and settings.trains:
        kept = activation_bytes(sizes.shape, passed, half, policy.gradient_checkpointing, min(rows.width, passed))
        kept *= 1.0 if card.gpu else HEAP
        kept += head_bytes(card.gpu, passed, sizes.vocabulary) + 4 * passed * sizes.shape.hidden
        if experiment.precision == "bf16_mixed" and not (policy.adapted or experiment.sharded):
            kept += CAST * sizes.policy
    held, rollout = rollout_bytes(experiment, sizes.shape, rows.prompt, card)
    if experiment.sharded and settings.online:
        rollout += sizes.policy * base  # samples are drawn from the whole policy
    return Cost(
        training=training,
        evaluation=_evaluation(experiment, sizes, rows, card),
        references=stored,
        memory=weights + live + held,
        activations=kept,
        tokens=passed,
        rollout=rollout,
        measuring=_measuring_bytes(experiment, sizes, base),
        checkpoint=checkpoint,
        process=0.0 if card.gpu else LIBRARIES,
    )


def _training_bytes(experiment: Experiment, sizes: Sizes, precision: Precision) -> tuple[float, float]:
    """Bytes of the policy with its gradient and what the optimizer keeps, and of a checkpoint of what is trained.

    Muon has one moment of a hidden matrix where AdamW has two. An adapter's parameters are float32.
    """
    adapted = experiment.policy.adapted
    base, added = precision.bytes_of(adapted)
    trained = sizes.policy * (adapter_share(experiment, sizes) if adapted else 1.0)
    if not experiment.algorithm.trains:
        return sizes.policy * base, 0.0
    moment, saved = 2.0 if precision.name == "bf16" and not adapted else 4.0, 0.0
    if experiment.optimizer.name == "muon":
        matrices = 0 if sizes.shape is None else sizes.shape.layers * sizes.shape.parameters
        saved = moment * (trained if adapted else min(matrices, trained))
    kept = {"masters": 4, "remainders": 2}.get(precision.kept, 0)
    own = 4 if adapted else base
    memory = sizes.policy * base + trained * (added + (own if adapted else 0)) - saved
    return memory, trained * (2 * moment + kept + own) - saved


def adapter_share(experiment: Experiment, sizes: Sizes) -> float:
    """Parameters of a LoRA adapter over those of its base, all linear maps of every layer taken."""
    lora, shape = experiment.policy.lora, sizes.shape
    if lora is None or shape is None:
        return 0.02
    maps = shape.maps
    if not isinstance(lora.target_modules, str):
        maps = maps[: len(list(lora.target_modules))]
    return shape.layers * lora.rank * sum(a + b for a, b in maps) / sizes.policy


def _frozen_bytes(experiment: Experiment, models: Sequence[Model], sizes: Sequence[int]) -> list[float]:
    """Bytes of some frozen models, each of its own type; of quantized ones a tenth, embedding and head, stays."""
    types = [one.dtype or experiment.reference_type for one in models]
    each = [
        4.0 if parameter_type(kind) == "float32" and not _halved(one, kind) else 2.0 for one, kind in zip(models, types)
    ]
    bits = [getattr(one, "quantization", None) for one in models]
    return [
        size * (whole if kind is None else 0.9 * BYTES[kind] + 0.1 * whole)
        for size, whole, kind in zip(sizes, each, bits)
    ]


def _halved(model: Model, kind: str) -> bool:
    """Whether a model that computes in bf16_mixed is held in bfloat16; most published ones are; out of reach: yes."""
    try:
        return kind == "bf16_mixed" and halves(model)
    except RequestError:
        return True


def _live_bytes(experiment: Experiment, sizes: Sizes) -> float:
    """Of the references beside the policy: all on its device, or the largest of those that visit it."""
    place = experiment.hardware.reference_device
    each = _frozen_bytes(experiment, experiment.active_references, sizes.active)
    each = _parts(experiment, experiment.active_references, each, sizes)
    if place is None or torch_name(place) == torch_name(experiment.hardware.device_name):
        return sum(each)
    return max(each, default=0.0) if place.startswith("cpu") else 0.0


def _parts(experiment: Experiment, models: Sequence[Model], each: list[float], sizes: Sizes) -> list[float]:
    """Bytes of live references as one process holds them: a part of those that are divided, and what a pass gathers.

    The share that a pass gathers is the policy's: of the references' shapes nothing is known.
    """
    if not experiment.sharded:
        return each
    share = (
        gathered_bytes(sizes.shape, sizes.policy, 1 / sizes.policy, trained=False) + 1 / experiment.hardware.processes
    )
    kept = ("update", "server", "quantization", "adapter")
    apart = [any(getattr(model, name, None) for name in kept) for model in models]
    return [size if whole else min(1.0, share) * size for size, whole in zip(each, apart)]


def _measuring_bytes(experiment: Experiment, sizes: Sizes, base: float) -> float:
    """The evaluation has policy and references at once, then the scorer alone beside the policy."""
    scorer = experiment.evaluation.scorer
    if not experiment.evaluation.prompts or not experiment.algorithm.writes:
        return 0.0
    each = _frozen_bytes(experiment, experiment.references, sizes.everyone)
    each = _parts(experiment, experiment.references, each, sizes)
    together = len(each) <= RESIDENT or (experiment.regularized and experiment.penalty.level is Level.token)
    references = sum(each) if together else max(each, default=0.0)
    scoring = sum(_frozen_bytes(experiment, [scorer], [sizes.scorer])) if scorer is not None else 0.0
    parts = 1 / experiment.hardware.processes if experiment.sharded else 0.0  # beside the whole, which samples take
    return sizes.policy * base * (1 + parts) + max(references, scoring)


def _evaluation(experiment: Experiment, sizes: Sizes, rows: Rows, card: Card) -> float:
    """Seconds of sampling held-out prompts, scoring and measuring them; every response as long as it may be."""
    settings, speed = experiment.evaluation, USE * card.operations * experiment.hardware.processes
    prompts = min(settings.prompts, rows.held_out if settings.split == "held_out" else rows.train)
    if not prompts or not experiment.algorithm.writes:
        return 0.0
    sequences = prompts * settings.samples_per_prompt
    each, half = sequences / experiment.hardware.processes, experiment.precision != "float32"
    sampled = decoding(sizes.policy, sizes.shape, each, settings.batch_size, card, half) * settings.max_new_tokens
    tokens = sequences * (rows.prompt + settings.max_new_tokens)
    scored = FORWARD * (2 * sizes.policy + sum(sizes.everyone) + sizes.scorer) * tokens / speed
    untrained = experiment.algorithm
    if isinstance(untrained, UntrainedSettings):
        drawn_by = sum(sizes.active) if untrained.sampler == "mixed" else sizes.policy
        scored += FORWARD * drawn_by * (untrained.best_of - 1) * tokens / speed
    return sampled + scored
