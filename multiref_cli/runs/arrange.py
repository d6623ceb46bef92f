"""How a run fits a device: the least change that makes it smaller, or how many devices hold it together."""

from dataclasses import dataclass, replace

from multiref_cli.config.schema import Estimator, Experiment, Level
from multiref_cli.runs.cards import Card
from multiref_cli.runs.price import Cost, Rows, Sizes, price

_SHARDED = "hardware.sharding=full"
# Devices of one machine.
_COUNTS = (2, 4, 8)


@dataclass(frozen=True)
class Arrangement:
    """How a run fits a device: overrides that make it smaller, what it then takes, whether that is enough; on how many
    of them."""

    overrides: tuple[str, ...]
    cost: Cost
    fits: bool
    processes: int = 1


def arrangement(experiment: Experiment, sizes: Sizes, rows: Rows, card: Card) -> Arrangement:
    """The least change with which a run fits a device, by memory counted with a tenth to spare.

    In this order: passes of fewer tokens, references that visit the device one at a time where the estimator lets them,
    models divided among the processes where there are several, gradient checkpointing, a float32 copy of bfloat16
    parameters. What offline runs store takes no memory in training.
    """
    if card.gpu and not experiment.hardware.device_name.startswith("cuda"):
        experiment = replace(experiment, hardware=replace(experiment.hardware, device="cuda", reference_device=None))
    tried: list[tuple[str, ...]] = [()]
    tokens = experiment.algorithm.pass_tokens
    shorter = [f"algorithm.micro_tokens={size}" for size in (tokens // 2, tokens // 4) if size >= 1024]
    checkpointed = "policy.gradient_checkpointing=true"
    tried += [(one,) for one in shorter]
    extra: list[tuple[str, ...]] = [(checkpointed,), (*shorter[:1], checkpointed)]
    if may_visit(experiment) and card.gpu:
        visiting = "hardware.reference_device=cpu"
        tried += [(visiting,), *[(one, visiting) for one in shorter[:1]]]
        extra += [(visiting, checkpointed), (*shorter[:1], visiting, checkpointed)]
    if experiment.hardware.processes > 1 and not experiment.sharded and experiment.algorithm.trains:
        tried += [(_SHARDED,), *[(one, _SHARDED) for one in shorter[:1]]]
        extra = [(*one, _SHARDED) for one in extra]
    if experiment.precision == "bf16_mixed" and not experiment.policy.adapted:
        extra += [(*one, "hardware.precision=bf16_master") for one in extra]
    count = experiment.hardware.processes
    for overrides in (*tried, *extra):
        cost = price(_with(experiment, overrides), sizes, rows, card)
        if cost.total <= 0.9 * card.memory:
            return Arrangement(overrides, cost, True, count)
    return Arrangement((), price(experiment, sizes, rows, card), False, count)


def spread(experiment: Experiment, sizes: Sizes, rows: Rows, card: Card) -> Arrangement | None:
    """The fewest devices of a kind that a run fits with its models divided among them; None where none of them do."""
    vllm = experiment.algorithm.online and experiment.rollout.engine == "vllm"
    if not card.gpu or vllm or not experiment.algorithm.trains or experiment.precision == "bf16_kahan":
        return None
    for count in _COUNTS:
        several = (f"hardware.processes={count}", _SHARDED)
        found = arrangement(_with(experiment, several), sizes, rows, card)
        if count > experiment.hardware.processes and found.fits:
            return replace(found, overrides=(*several, *found.overrides))
    return None


def may_visit(experiment: Experiment) -> bool:
    """Whether references may wait in main memory: not where they are mixed, or compared, at every token."""
    live = experiment.algorithm.online and experiment.penalized and not experiment.reads_samples
    return live and experiment.estimator is not Estimator.exact and experiment.penalty.level is not Level.token


def _with(experiment: Experiment, overrides: tuple[str, ...]) -> Experiment:
    for override in overrides:
        key, _, value = override.partition("=")
        group, name = key.split(".")
        given = int(value) if value.isdigit() else value == "true" if value in ("true", "false") else value
        experiment = replace(experiment, **{group: replace(getattr(experiment, group), **{name: given})})
    return experiment
