"""Tasks of the UK AI Security Institute's Inspect, answered by a model that is in memory already."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from multiref_cli.config.sentences import nearest
from multiref_cli.data.chat import end_ids, prompt_ids
from multiref_cli.errors import RequestError, RunError
from multiref_cli.evaluation.tasks.base import Answers, Asking, Row, Subject, Task, numeric_only, sha256_of
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.seeding import derive

# What the library's grades count: correct, incorrect, partly correct, no answer.
_GRADES = {"c": 1.0, "i": 0.0, "p": 0.5, "n": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}
# How long a question waits for others that are answered in the same batch, in seconds.
_GATHER = 0.02


def open_task(given: str, name: str, settings: Asking) -> Task:
    """Find one task by FILE.py@TASK, FILE.py, or its name in an installed package; see `LibraryModule`."""
    task = _load(given, name)
    samples = [task.dataset[i] for i in range(len(task.dataset))][: settings.limit]
    source = Path(name.partition("@")[0])
    code = source.read_text(encoding="utf-8") if source.is_file() else ""
    return Task(
        given=given,
        title=f"inspect/{task.name.rpartition('/')[2]}",
        library=f"inspect_ai {version('inspect_ai')}",
        version=str(task.version),
        sha256=sha256_of([code, [_asked(sample) for sample in samples]]),
        documents=len(samples),
        content=name,
    )


def answer(task: Task, subject: Subject, settings: Asking) -> Answers:
    """Have a model answer all samples; see `LibraryModule`."""
    from inspect_ai import eval as evaluate
    from inspect_ai.model import get_model

    _register()
    answerer = Answerer(subject, settings)
    model = get_model("multiref/policy", memoize=False, answerer=answerer)
    with TemporaryDirectory() as logs:  # of which the samples are read as late as they are asked for
        (log,) = evaluate(
            _load(task.given, task.content),
            model=model,
            limit=settings.limit,
            display="none",
            log_dir=logs,
            log_realtime=False,
            score_display=False,
            max_samples=settings.batch_size,
            max_connections=settings.batch_size,
        )
        if log.status == "cancelled":
            raise KeyboardInterrupt
        if log.status != "success":
            raise RunError(f"{task.given}: {log.error.message if log.error else log.status}")
        return _answers(list(log.samples or []), task)


def _answers(samples: Sequence[Any], task: Task) -> Answers:
    """Rows out of the library's log: one a sample, its scores the means over epochs."""
    rows: dict[str, Row] = {}
    values: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        document = f"{sample.id}:{sha256_of(_asked(sample))[:12]}"
        text = sample.input if isinstance(sample.input, str) else "\n".join(one.text for one in sample.input)
        rows.setdefault(document, {"prompt": text, "target": sample.target, "response": sample.output.completion})
        for scorer, score in (sample.scores or {}).items():
            parts = score.value if isinstance(score.value, Mapping) else {"": score.value}
            for part, value in parts.items():
                values[document][f"{scorer}/{part}".rstrip("/")].append(_number(value))
    names = list(dict.fromkeys(name for one in values.values() for name in one))
    for document, row in rows.items():
        for name in names:
            found = values[document].get(name) or [None]
            row[name] = None if None in found else float(np.mean(np.array(found, dtype=float)))
    found_rows = [{"document": document, **row} for document, row in rows.items()]
    known, notes = numeric_only(found_rows, names, task.title)
    kept = ("document", "prompt", "target", "response", *known)
    return Answers([{key: row[key] for key in kept} for row in found_rows], known, known, notes)


def _number(value: Any) -> float | None:
    """A score as the library's own metrics take it; None of a text that is no grade."""
    if isinstance(value, (bool, int, float)):
        return float(value)
    return _GRADES.get(value.lower()) if isinstance(value, str) else None


def _asked(sample: Any) -> Any:
    """What identifies a sample besides its number: input, choices and target."""
    text = sample.input if isinstance(sample.input, str) else [[one.role, one.text] for one in sample.input]
    return [text, sample.choices, sample.target]


def _load(given: str, name: str) -> Any:
    """One task, made anew: what a task keeps between two evaluations is its own affair."""
    from inspect_ai._eval.loader import load_tasks

    path, _, chosen = name.partition("@")
    if path.endswith(".py"):
        return _of_file(given, Path(path).absolute(), chosen)
    try:
        return load_tasks([name])[0]
    except LookupError as error:
        raise RequestError(_unknown(given, name)) from error


def _of_file(given: str, path: Path, chosen: str) -> Any:
    """The chosen task of a file, or its only one."""
    from inspect_ai._eval.list import parse_tasks
    from inspect_ai._eval.loader import create_file_tasks, load_file_tasks

    if not path.is_file():
        raise RequestError(f"evaluation.tasks={given}: there is no file {path}; give inspect:FILE.py@TASK.")
    there = [one.name for one in parse_tasks(path, path.parent, True)]
    if not there:
        raise RequestError(f"evaluation.tasks={given}: {path.name} has no function under @task; give another file.")
    if chosen and chosen not in there:
        raise RequestError(f"evaluation.tasks={given}: {path.name} has no task {chosen!r}{nearest(chosen, there)}.")
    if not chosen and len(there) > 1:
        raise RequestError(
            f"evaluation.tasks={given}: {path.name} has {', '.join(there)}; give one of them as {given}@{there[0]}."
        )
    load_file_tasks(path)
    return create_file_tasks(path, [chosen or there[0]])[0]


def _unknown(given: str, name: str) -> str:
    """The refusal of a task that no installed package has."""
    from inspect_ai._util.registry import registry_find, registry_info

    there = [registry_info(one).name for one in registry_find(lambda info: info.type == "task")]
    return (
        f"evaluation.tasks={given}: Inspect knows no task {name!r}{nearest(name, there) if there else ''}; give a file "
        "as inspect:FILE.py@TASK, or pip install the package that has it, such as inspect-evals."
    )


@dataclass
class Question:
    """A conversation that waits for its answer."""

    ids: list[int]
    seed: int
    group: int
    sampling: Sampling
    answered: list[Completion] = field(default_factory=list)


class Answerer:
    """Answers conversations by the model itself; those that are asked at about the same time in one batch.

    What a conversation is answered does not depend on what else is in the batch, float rounding aside.
    """

    def __init__(self, subject: Subject, settings: Asking) -> None:
        """Keep the model; see `Subject` and `Asking`."""
        self.subject, self.settings = subject, settings
        self.engine = TransformersEngine(subject.model, 0, settings.batch_size, subject.vocabulary)
        self.ends = tuple(end_ids(subject.tokenizer))
        self.waiting: list[Question] = []
        self.asked: Counter[tuple[int, ...]] = Counter()

    async def ask(self, messages: list[dict[str, Any]], config: Any) -> list[Completion]:
        """Completions of a conversation, as many as the task wants choices; none where the model has no room.

        A task that names no temperature is answered without sampling; one that names none for its length gets
        evaluation.max_new_tokens.
        """
        ids = prompt_ids(self.subject.tokenizer, messages)
        longest = config.max_tokens or self.settings.max_new_tokens
        limit = getattr(self.subject.model.config, "max_position_embeddings", None)
        longest = min(longest, limit - len(ids)) if limit else longest
        if longest < 1:
            return []
        number = self.asked[tuple(ids)]
        self.asked[tuple(ids)] += 1
        seed = config.seed if config.seed is not None else derive(self.settings.seed, "tasks", *ids)
        sampling = Sampling(
            temperature=config.temperature or 0.0,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k or 0,
            max_new_tokens=longest,
            end_ids=self.ends,
        )
        question = Question(ids, derive(seed, "tasks", number), config.num_choices or 1, sampling)
        self.waiting.append(question)
        await asyncio.sleep(_GATHER)
        if not question.answered:
            self._answer()
        return question.answered

    def _answer(self) -> None:
        """Answer everything that waits, questions of one kind together."""
        waiting, self.waiting = self.waiting, []
        kinds: dict[tuple[Sampling, int], list[Question]] = defaultdict(list)
        for question in waiting:
            kinds[question.sampling, question.group].append(question)
        for (sampling, group), questions in kinds.items():
            seeds = [question.seed for question in questions]
            found = self.engine.generate([question.ids for question in questions], group, sampling, seeds)
            for question, completions in zip(questions, found):
                question.answered = completions


@cache
def _register() -> None:
    """Make the provider `multiref` known to the library."""
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        modelapi,
    )

    @modelapi(name="multiref")
    class Ours(ModelAPI):  # type: ignore[misc]
        """The provider of a model in memory."""

        def __init__(
            self, model_name: str, answerer: Answerer, config: GenerateConfig | None = None, **more: Any
        ) -> None:
            super().__init__(model_name, config=config or GenerateConfig())
            self.answerer = answerer

        async def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any) -> Any:
            """One answer, or as many as the task wants choices."""
            if tools:
                raise RunError("the task gives tools, and the policy calls none")
            messages = [{"role": one.role, "content": one.text} for one in input]
            found = await self.answerer.ask(messages, config)
            if not found:
                return ModelOutput.from_content(self.model_name, "", stop_reason="model_length")
            choices = []
            for one in found:
                text, stopped = _text(one, self.answerer, config.stop_seqs or ())
                message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
                choices.append(ChatCompletionChoice(message=message, stop_reason="stop" if stopped else "max_tokens"))
            return ModelOutput(model=self.model_name, choices=choices)


def _text(one: Completion, answerer: Answerer, stops: Sequence[str]) -> tuple[str, bool]:
    """The text of a completion before its end token or stop text, and whether it ended there."""
    ids = one.ids[:-1] if one.finished else one.ids
    text = str(answerer.subject.tokenizer.decode(ids, skip_special_tokens=True))
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, one.finished)
