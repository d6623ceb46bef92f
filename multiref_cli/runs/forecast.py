"""What a run would do, without doing it: rows, steps, reference passes, estimates of memory and time."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from multiref_cli.algorithms.base import Job, module_of
from multiref_cli.config.objective import deviations, objective
from multiref_cli.config.schema import Experiment
from multiref_cli.data.chat import completion_mask
from multiref_cli.data.probe import verdict
from multiref_cli.data.template import rendering_of
from multiref_cli.errors import HubUnreachable
from multiref_cli.files import read_json
from multiref_cli.models.known import absent
from multiref_cli.models.load import load_tokenizer
from multiref_cli.references.hidden import not_kept, size_said
from multiref_cli.runs.arrange import Arrangement, arrangement, spread
from multiref_cli.runs.cards import CARDS, Card, here
from multiref_cli.runs.engines import VLLM, chosen, seconds_of_each
from multiref_cli.runs.price import (
    LARGE,
    Cost,
    Look,
    Rows,
    Sizes,
    known_rows,
    look,
    opened,
    price,
    rows_of,
    sizes_of,
    total_steps,
)
from multiref_cli.runs.run import open_job
from multiref_cli.runs.tasks import open_tasks
from multiref_cli.tracking.places import command, holds_something
from multiref_cli.tracking.progress import Silent, duration, memory_text
from multiref_cli.training.checkpoint import write_speed
from multiref_cli.world.worlds import missing


@dataclass
class Forecast:
    """Rows for a table of facts, and one training row with its completion mask."""

    rows: list[list[Any]]
    masks: list[tuple[str, list[tuple[str, bool]]]] = field(default_factory=list)


def forecast(experiment: Experiment) -> Forecast:
    """Describe a run; opens tokenizers and data where they can be reached, loads no weights, makes nothing.

    Raises:
        RequestError: what `train` would refuse too, except models and data of a hub that cannot be reached.
    """
    rows = [
        ["condition", experiment.condition],
        ["config hash", experiment.hash],
        ["run folder", _place(experiment)],
        ["device, precision", f"{experiment.hardware.device_name}, {experiment.precision}"],
    ]
    if experiment.hardware.processes > 1:
        what = "each with its part of the models" if experiment.sharded else "each with whole models"
        rows.append(["processes", f"{experiment.hardware.processes}, {what} and the memory below"])
    unmade = missing(experiment)
    if unmade:
        rows.append(["made first, once per machine", ", ".join(unmade)])
        rows.append(["rows, mask, time, memory", "known once these are made, by the first run"])
        return Forecast(rows)
    away = [one.path for one in opened(experiment) if absent(one)]
    if away:
        return Forecast(rows + _unopened(experiment, list(dict.fromkeys(away))))
    try:
        seen = look(experiment)
        job = open_job(seen.experiment, Silent(), looking=True)
    except HubUnreachable as error:
        rows.append(["not checked", str(error)])
        return Forecast(rows)
    rows += _data_rows(job, seen) + _template_rows(job) + _reference_rows(job, seen) + _task_rows(job)
    rows += _estimates(job, seen)
    return Forecast(rows, _masks(job))


def _place(experiment: Experiment) -> str:
    """The run's folder, and what would keep the run from being written there."""
    folder = experiment.folder
    if not holds_something(folder):
        return str(folder)
    state = (read_json(folder / "status.json") or {}).get("state", "not a run")
    return f"{folder} exists already ({state}): another run.dir, or {command('train', '--resume', folder)}"


def _data_rows(job: Job, seen: Look) -> list[list[Any]]:
    rows = rows_of(job, seen.times)
    steps = total_steps(job.experiment, rows)
    first = "" if seen.times == 1 else f"of the first {seen.experiment.data.max_rows} rows: "
    about = "" if seen.times == 1 else "about "
    return [
        ["data", first + job.data.report.summary()],
        ["training rows, held-out rows", f"{about}{rows.train}, {rows.held_out}"],
        [
            "optimizer steps",
            f"{about}{steps} of {job.experiment.algorithm.batch_size} rows",
        ],
    ]


def _task_rows(job: Job) -> list[list[Any]]:
    """How many documents of each task the policy is asked."""
    return [
        [f"task {task.title}", f"{task.documents} documents ({task.library}), in no time or memory below"]
        for task in open_tasks(job.experiment.evaluation)
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


def _reference_rows(job: Job, seen: Look) -> list[list[Any]]:
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
        ["penalty", f"{penalty.description}{how}, beta {experiment.beta_words}"],
    ]
    for one in experiment.references:
        if one.server is not None:
            text = f"{one.model} at {one.server}, {one.concurrency} questions at once; not asked by a dry run"
            rows.append([f"server of {one.name}", text])
    if experiment.penalized:
        rows.append(["objective at rest", "; ".join([objective(experiment), *deviations(experiment)])])
    if experiment.algorithm.reads_store:
        rows.append(
            ["reference passes", f"{len(active)} x {seen.count(2 * len(job.data.train))} responses, once per machine"]
        )
        rows += _hidden_rows(job, seen)
    return rows


def _hidden_rows(job: Job, seen: Look) -> list[list[Any]]:
    """What keeping the references' hidden states takes on disk."""
    if not job.experiment.hardware.keep_hidden:
        return []
    every, parts = [*job.data.train, *job.data.held_out], module_of(job.experiment).parts
    tokens = round(sum(len(ids) for row in every for _, _, ids in parts(row)) * seen.times)
    about = "" if seen.times == 1 else "about "
    return [
        [f"hidden states of {one.name}", about + size_said(one, tokens) if why is None else f"not kept: {why}"]
        for one in job.references()
        for why in [not_kept(one, job.foreign_tokenizer(one) is not None)]
    ]


def _estimates(job: Job, seen: Look) -> list[list[Any]]:
    """What the run takes on this machine's device, counted."""
    sizes = sizes_of(job.experiment, job)
    return [] if sizes is None else _priced(job.experiment, sizes, rows_of(job, seen.times))


def _unopened(experiment: Experiment, names: list[str]) -> list[list[Any]]:
    """Estimates of a run whose models are not on this machine, none of which is fetched."""
    rows: list[list[Any]] = [["not on this machine, fetched by the run", ", ".join(names)]]
    sizes, data = sizes_of(experiment), known_rows(experiment)
    if sizes is None:
        return [*rows, ["time, memory", "known once these are here: the Hub does not say their sizes now"]]
    count = sizes.policy + sum(sizes.everyone) + sizes.scorer
    rows.append(["to fetch, about", memory_text(2.0 * count)])
    if data is None:
        return [*rows, ["time, memory", f"known once {experiment.data.path} is here"]]
    rows.append(["data, as known", f"{data.known}; {data.train} to train on, {data.held_out} held out"])
    return rows + _priced(experiment, sizes, data)


def _priced(experiment: Experiment, sizes: Sizes, rows: Rows) -> list[list[Any]]:
    card = here(experiment.hardware.device_name)
    found = price(experiment, sizes, rows, card)
    said = [
        ["policy", f"{sizes.policy / 1e6:.2f} M parameters"],
        ["memory", memory_said(found)],
        ["training time, roughly", duration(found.training)],
    ]
    if found.evaluation:
        said.append(["evaluation time, roughly", duration(found.evaluation)])
    if found.references:
        said.append(["time of reference passes, roughly", duration(found.references)])
    if experiment.algorithm.online:
        said += _rollout_rows(experiment, sizes, total_steps(experiment, rows), card)
    said.append(["a checkpoint", _checkpoint_said(experiment, found.checkpoint)])
    return said + [[f"on {name}", text] for name, text in fitted(experiment, sizes, rows)]


def _checkpoint_said(experiment: Experiment, size: float) -> str:
    """Its size, how long it takes to write where the run folder will be, how many are kept."""
    speed = write_speed(experiment.folder)
    time = "" if speed is None else f"{duration(size / speed)} each at {memory_text(speed)} a second, "
    return f"{memory_text(size)}, {time}{experiment.hardware.keep_checkpoints} kept"


def _rollout_rows(experiment: Experiment, sizes: Sizes, steps: int, card: Card) -> list[list[Any]]:
    """What each engine would take for the rollouts, and whether vLLM is at hand."""
    each, own = seconds_of_each(experiment, sizes.policy, sizes.shape, steps, card), chosen(experiment)
    said = [
        f"{duration(each.pop(own))} by {own}, as asked",
        *(f"{duration(one)} by {name}" for name, one in each.items()),
    ]
    if VLLM in each:
        said[-1] += " (installed)" if find_spec("vllm") is not None else " (not installed: pip install vllm)"
    rows: list[list[Any]] = [["of which rollouts, roughly", ", ".join(said)]]
    if experiment.rollout.server is not None:
        count = sizes.policy * (4 if experiment.precision == "float32" else 2)
        rows.append(["weights to the server, each rollout", f"{memory_text(count)}, written and read as files"])
    return rows


def fitted(experiment: Experiment, sizes: Sizes, rows: Rows) -> list[tuple[str, str]]:
    """For this machine's device, and of larger policies for usual cards: whether the run fits, what would make it fit,
    and its hours."""
    own = here(experiment.hardware.device_name)
    cards = dict.fromkeys([own, *(CARDS if sizes.policy >= LARGE else ())])
    return [(card.name, _on(card, experiment, sizes, rows)) for card in cards]


def _on(card: Card, experiment: Experiment, sizes: Sizes, rows: Rows) -> str:
    found = arrangement(experiment, sizes, rows, card)
    if found.fits:
        return _fits(found)
    lacking = f"does not fit ({memory_text(found.cost.total)})"
    several = spread(experiment, sizes, rows, card)
    if several is None:
        return f"{lacking}: a smaller policy, policy=lora, or a larger device"
    return f"{lacking}; on {several.processes} of them it {_fits(several)}"


def _fits(found: Arrangement) -> str:
    how = f"fits with {' '.join(found.overrides)}" if found.overrides else "fits"
    each = " each" if found.processes > 1 else ""
    return f"{how}, {memory_text(found.cost.total)}{each}, {duration(found.cost.training + found.cost.evaluation)}"


def memory_said(cost: Cost) -> str:
    """Memory as people read it."""
    if cost.activations is None:
        return f"{memory_text(cost.total)}, without activations"
    libraries = f", {memory_text(cost.process)} of Python and libraries" if cost.process else ""
    return (
        f"{memory_text(cost.total)} at most: {memory_text(cost.memory)} of weights and optimizer, "
        f"{memory_text(cost.activations)} for a pass of {cost.tokens} tokens, "
        f"{memory_text(cost.measuring)} in the evaluation{libraries}"
    )


def _masks(job: Job) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The first training row, token by token: (title, [(text, whether it is scored)])."""
    found = module_of(job.experiment).parts(job.data.train[0])
    return [(title, completion_mask(job.tokenizer, prompt, scored)) for title, prompt, scored in found]
