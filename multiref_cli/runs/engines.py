"""What rollouts take by each engine, in time and memory, counted from sizes alone."""

from multiref_cli.config.algorithms import OnlineSettings
from multiref_cli.config.schema import Experiment
from multiref_cli.runs.cards import Card
from multiref_cli.runs.memory import Shape, cache_bytes

# Operations a parameter and token of a forward pass, and the share of a matrix product's speed that a whole pass
# reaches (tests/bench/trial_forecast.py measures it on a CPU).
FORWARD, USE = 2, 0.4
# Seconds that a GPU takes to start one operation, and operations of a layer in a decoding step.
_LAUNCH, _OPERATIONS = 5e-6, 38
TRANSFORMERS, GRAPHS, VLLM = "rollout=transformers", "rollout.options.cuda_graphs=true", "rollout=vllm"


def chosen(experiment: Experiment) -> str:
    """The engine of a config, as `seconds_of_each` names it."""
    if experiment.rollout.engine == "vllm":
        return VLLM
    return GRAPHS if experiment.rollout.options.get("cuda_graphs") else TRANSFORMERS


def seconds_of_each(
    experiment: Experiment, parameters: int, shape: Shape | None, steps: int, card: Card
) -> dict[str, float]:
    """Seconds of all rollouts of a run, every response as long as it may be, by each engine that a device has.

    On a GPU the built-in engine starts every operation of every token anew; CUDA graphs and vLLM do not.

    Args:
        experiment: of an online algorithm.
        parameters: of the policy.
        shape: of the policy, where it is known.
        steps: optimizer steps of the run.
        card: each of its processes has one.
    """
    settings, rollout = experiment.algorithm, experiment.rollout
    inner = settings.inner_iterations if isinstance(settings, OnlineSettings) else 1
    rows = settings.batch_size * rollout.group_size / (experiment.hardware.processes if rollout.server is None else 1)
    half = experiment.precision != "float32"
    tokens = -(-steps // inner) * rollout.max_new_tokens

    def taken(launched: bool) -> float:
        """With or without the time of starting operations."""
        return tokens * decoding(parameters, shape, rows, rollout.batch_size, card, half, launched)

    if not card.gpu:  # vLLM is not made for these
        return {chosen(experiment): taken(False)}
    return {TRANSFORMERS: taken(True), GRAPHS: taken(False), VLLM: taken(False)}


def decoding(
    parameters: int, shape: Shape | None, rows: float, batch: int, card: Card, half: bool, launched: bool = True
) -> float:
    """Seconds in which each of some rows gets one more token: weights are read once a batch, operations launched."""
    batches, together = max(1.0, rows / batch), min(rows, batch)
    read = parameters * (2 if half else 4) / card.bandwidth
    starts = _LAUNCH * _OPERATIONS * (shape.layers if shape else 24) if card.gpu and launched else 0.0
    return batches * (max(read, starts) + FORWARD * parameters * together / (USE * card.operations))


def rollout_bytes(experiment: Experiment, shape: Shape | None, prompt: float, card: Card) -> tuple[float, float]:
    """Bytes on the policy's device that an engine holds throughout, and those of a generation alone.

    Args:
        experiment: of any algorithm.
        shape: of the policy, where it is known.
        prompt: mean tokens of a prompt.
        card: the policy's device.
    """
    rollout, settings = experiment.rollout, experiment.algorithm
    if not settings.online:
        return 0.0, 0.0
    if rollout.engine == "vllm":
        away = rollout.server is not None and (not rollout.starts_server or rollout.devices is not None)
        held = 0.0 if away or not card.gpu else float(rollout.options.get("gpu_memory_utilization", 0.9)) * card.memory
        return (0.0, held) if rollout.options.get("sleep") else (held, 0.0)
    together = min(rollout.batch_size, settings.batch_size * rollout.group_size)
    half, length = experiment.precision != "float32", prompt + rollout.max_new_tokens
    return 0.0, cache_bytes(shape, together * length, half) if shape else 0.0
