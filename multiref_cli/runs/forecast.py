"""What a run would do, without doing it: rows, steps, reference passes, estimates of memory and time."""

from dataclasses import dataclass, field
from typing import Any

from multiref_cli.algorithms.base import Job, module_of
from multiref_cli.config.algorithms import UntrainedSettings
from multiref_cli.config.objective import deviations, objective
from multiref_cli.config.schema import Experiment
from multiref_cli.data.chat import completion_mask
from multiref_cli.data.probe import verdict
from multiref_cli.data.template import rendering_of
from multiref_cli.errors import HubUnreachable
from multiref_cli.models.inspect import text_config
from multiref_cli.models.load import load_tokenizer, parameter_count
from multiref_cli.models.precision import parameter_type
from multiref_cli.runs.memory import activation_bytes, shape_of
from multiref_cli.runs.run import open_job
from multiref_cli.tracking.progress import Silent, duration
from multiref_cli.world.worlds import missing

# Floating-point operations per second assumed by the estimate of time: one CPU core, one current GPU.
_SPEED = {"cpu": 2e10, "cuda": 1.5e14}
# Operations a parameter and token: a forward pass; a forward and a backward pass.
_FORWARD, _TRAIN = 2, 6


@dataclass
class Forecast:
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
        activations: bytes that one training pass keeps for its backward pass; None where the policy's config does not
            say its sizes.
        tokens: of that pass.
    """

    training: float
    evaluation: float
    references: float
    memory: float
    activations: float | None
    tokens: int

    @property
    def total(self) -> float:
        """Bytes in all, of activations as far as they are known."""
        return self.memory + (self.activations or 0.0)

    @property
    def said(self) -> str:
        """Memory as people read it."""
        if self.activations is None:
            return f"{memory_text(self.memory)}, without activations"
        part = f"{memory_text(self.activations)} of it activations of a pass of {self.tokens} tokens"
        return f"{memory_text(self.total)}, {part}"


def forecast(experiment: Experiment) -> Forecast:
    """Describe a run; opens tokenizers and data where they can be reached, loads no weights, makes nothing.

    Raises:
        RequestError: what `train` would refuse too, except models and data of a hub that cannot be reached.
    """
    rows = [
        ["condition", experiment.condition],
        ["config hash", experiment.hash],
        ["run folder", str(experiment.folder)],
        ["device, precision", f"{experiment.hardware.device_name}, {experiment.precision}"],
    ]
    if experiment.hardware.processes > 1:
        rows.append(["processes", f"{experiment.hardware.processes}, each with the memory below"])
    unmade = missing(experiment)
    if unmade:
        rows.append(["made first, once per machine", ", ".join(unmade)])
        rows.append(["rows, mask, time, memory", "known once these are made, by the first run"])
        return Forecast(rows)
    try:
        job = open_job(experiment, Silent(), looking=True)
    except HubUnreachable as error:
        rows.append(["not checked", str(error)])
        return Forecast(rows)
    rows += _data_rows(job) + _template_rows(job) + _reference_rows(job) + _estimates(job)
    return Forecast(rows, _masks(job))


def _data_rows(job: Job) -> list[list[Any]]:
    return [
        ["data", job.data.report.summary()],
        ["training rows, held-out rows", f"{len(job.data.train)}, {len(job.data.held_out)}"],
        ["optimizer steps", f"{job.total_steps} of {job.experiment.algorithm.batch_size} rows"],
    ]


def _template_rows(job: Job) -> list[list[Any]]:
    """What the chat templates of the policy, of references with tokens of their own and of the scorer do."""
    rows = [["chat template", verdict(job.tokenizer)]]
    references = job.references(active=False) if job.experiment.regularized else []
    for reference in references:
        tokenizer = job.foreign_tokenizer(reference)
        if tokenizer is not None:
            rows.append([f"chat template of {reference.name}", verdict(tokenizer)])
    scorer = job.experiment.evaluation.scorer
    if scorer is not None:
        tokenizer = load_tokenizer(scorer, rendering_of(job.experiment.data))
        rows.append(["chat template of the scorer", verdict(tokenizer)])
    return rows


def _reference_rows(job: Job) -> list[list[Any]]:
    experiment = job.experiment
    if not experiment.regularized:
        return []
    active, penalty = experiment.active_references, experiment.penalty
    mixed = ", ".join(f"{w:g} {r.name}" for r, w in zip(active, experiment.active_weights))
    if experiment.routes is not None:
        mixed = f"{', '.join(r.name for r in active)}, weights by {experiment.routes.title}"
    # Offline the penalty is the loss itself: nothing of it is estimated.
    how = f", estimator {experiment.estimator_name}" if experiment.estimator else ""
    rows = [
        ["references", f"{mixed}, at level {penalty.level.name}"],
        ["penalty", f"{penalty.description}{how}, beta {experiment.beta:g}"],
    ]
    if experiment.penalized:
        rows.append(["objective at rest", "; ".join([objective(experiment), *deviations(experiment)])])
    if experiment.algorithm.reads_store:
        rows.append(["reference passes", f"{len(active)} x {2 * len(job.data.train)} responses, once per machine"])
    return rows


def _estimates(job: Job) -> list[list[Any]]:
    parameters, found = parameter_count(job.experiment.policy, job.tokenizer), cost(job)
    if parameters is None or found is None:
        return []
    rows = [
        ["policy", f"{parameters / 1e6:.2f} M parameters"],
        ["memory", found.said],
        ["training time, roughly", duration(found.training)],
    ]
    if found.evaluation:
        rows.append(["evaluation time, roughly", duration(found.evaluation)])
    if found.references:
        rows.append(["time of reference passes, roughly", duration(found.references)])
    return rows


def cost(job: Job) -> Cost | None:
    """Estimate what a run takes; None where a model's size is out of reach."""
    experiment, device = job.experiment, job.device
    scorer = [] if experiment.evaluation.scorer is None else [experiment.evaluation.scorer]
    active = experiment.active_references if experiment.penalized else []
    everyone = experiment.references if experiment.regularized else []
    sizes: dict[int, int] = {}
    for model in (experiment.policy, *everyone, *active, *scorer):
        count = parameter_count(model, job.tokenizer)
        if count is None:
            return None
        sizes[id(model)] = count
    policy, references = sizes[id(experiment.policy)], sum(sizes[id(one)] for one in active)
    speed = _SPEED["cuda" if device.startswith("cuda") else "cpu"]
    each = module_of(experiment).mean_tokens(job)
    tokens = job.total_steps * experiment.algorithm.batch_size * each
    training, stored = _TRAIN * policy * tokens, 0.0
    if experiment.algorithm.online:
        training += _FORWARD * (policy + references) * tokens
    if experiment.algorithm.reads_store:
        stored = _FORWARD * references * (len(job.data.train) + len(job.data.held_out)) * each
    measured = sum(sizes[id(one)] for one in (*everyone, *scorer))
    evaluation = _FORWARD * (2 * policy + measured) * _evaluated_tokens(job)
    if isinstance(experiment.algorithm, UntrainedSettings):
        drawn_by = sum(sizes[id(one)] for one in active) if experiment.algorithm.sampler == "mixed" else policy
        evaluation += _FORWARD * drawn_by * (experiment.algorithm.best_of - 1) * _evaluated_tokens(job)
    trained = 0.02 if experiment.policy.lora else 1.0
    resident = max(references if experiment.algorithm.online else 0, measured)
    frozen = 4 if parameter_type(experiment.reference_type) == "float32" else 2
    base, each_trained = job.precision.bytes_of(adapted=bool(experiment.policy.lora))
    memory = policy * (base + each_trained * trained) + frozen * resident
    together = speed * experiment.hardware.processes
    tokens = int(min(experiment.algorithm.pass_tokens, experiment.algorithm.batch_size * each))
    kept = _activations(experiment, tokens)
    return Cost(training / together, evaluation / together, stored / speed, memory, kept, tokens)


def _activations(experiment: Experiment, tokens: int) -> float | None:
    policy = experiment.policy
    shape = shape_of(policy.new if policy.new is not None else text_config(policy))
    if shape is None:
        return None
    return activation_bytes(shape, tokens, experiment.precision != "float32", policy.gradient_checkpointing)


def memory_text(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _evaluated_tokens(job: Job) -> float:
    """Tokens of all evaluated responses with their prompts, taking every response for as long as allowed."""
    settings = job.experiment.evaluation
    rows = getattr(job.data, settings.split)[:200]
    if not rows:
        return 0.0
    prompt = sum(len(getattr(row, "ids", None) or row.prompt) for row in rows) / len(rows)
    return settings.prompts * settings.samples_per_prompt * (prompt + settings.max_new_tokens)


def _masks(job: Job) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The first training row, token by token: (title, [(text, whether it is scored)])."""
    found = module_of(job.experiment).parts(job.data.train[0])
    return [(title, completion_mask(job.tokenizer, prompt, scored)) for title, prompt, scored in found]
