"""Tasks of evaluation libraries: what is known of one before anybody answers it, and what came of the answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

from multiref_cli.config.schema import Evaluation
from multiref_cli.config.tasks import LIBRARIES, library_and_task
from multiref_cli.errors import RequestError
from multiref_cli.files import sentence_of
from multiref_cli.types import LanguageModel, Tokenizer

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A task that was found and opened.

    Attributes:
        given: LIBRARY:TASK, as in the config.
        title: what its metrics are called after: `lm_eval/gsm8k`, also where it was given as a file.
        library: the library with its version.
        version: of the task, as its author counts; empty where nobody does.
        sha256: of its settings and documents, wherever its files lie.
        documents: how many are asked.
        content: what the library made of it.
    """

    given: str
    title: str
    library: str
    version: str
    sha256: str
    documents: int
    content: Any = field(repr=False, compare=False)

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        names = ("library", "version", "sha256", "documents")
        return {"task": self.given, "title": self.title, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Subject:
    """A model that answers: on its device, with the tokenizer of its ids; `vocabulary`: ids that it may sample."""

    model: LanguageModel
    tokenizer: Tokenizer
    vocabulary: int | None


@dataclass(frozen=True)
class Answers:
    """What a model answered to a task.

    Attributes:
        rows: one a document: `document`, what it is known by in every run; prompt, target, response; metric -> value.
        metrics: their names without the task's, in the order of the task.
        higher: those of which a higher value is a better one.
        notes: sentences for the report.
    """

    rows: list[Row]
    metrics: list[str]
    higher: list[str]
    notes: list[str] = field(default_factory=list)


class LibraryModule(Protocol):
    """What the module of an evaluation library holds; its row in config.tasks names it."""

    def open_task(self, given: str, name: str, settings: "Asking") -> Task:
        """Find a task and read its documents; opens no model. Raises RequestError where it is not known."""

    def answer(self, task: Task, subject: Subject, settings: "Asking") -> Answers:
        """Have a model answer a task, and score it."""


@dataclass(frozen=True)
class Asking:
    """How tasks are asked: the part of the config that their answers depend on, besides `batch_size`."""

    limit: int | None
    fewshot: int | None
    chat_template: bool | None
    max_new_tokens: int
    seed: int
    batch_size: int

    @classmethod
    def of(cls, settings: Evaluation) -> "Asking":
        """That of an evaluation."""
        return cls(
            settings.task_limit,
            settings.task_fewshot,
            settings.task_chat_template,
            settings.max_new_tokens,
            settings.seed,
            settings.batch_size,
        )


@lru_cache(maxsize=16)
def open_task(given: str, settings: Asking) -> Task:
    """Find a task of an evaluation; the latest ones are kept, as a sweep's points all ask the same.

    Raises:
        RequestError: no such task, or one that cannot be loaded.
    """
    library, name = library_and_task(given)
    try:
        return module_of(library).open_task(given, name, settings)
    except RequestError:
        raise
    except Exception as error:  # a library's loaders and a task's own code raise anything
        why = sentence_of(error).strip().splitlines()[0].rstrip(".")
        raise RequestError(f"evaluation.tasks={given} cannot be loaded ({why}); mend it, or drop the task.") from error


def answer(task: Task, subject: Subject, settings: Asking) -> Answers:
    """Have a model answer a task."""
    return module_of(library_and_task(task.given)[0]).answer(task, subject, settings)


def module_of(library: str) -> LibraryModule:
    """The module that speaks to a library."""
    module: Any = import_module(LIBRARIES[library].module)
    return module


def sha256_of(content: object) -> str:
    """sha256 of plain values; of what JSON does not hold, of its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def numeric_only(rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> tuple[list[str], list[str]]:
    """Of some metrics those that have a number in every row, and a sentence on the others."""
    known = [name for name in names if all(isinstance(row.get(name), float) for row in rows)]
    lost = [name for name in names if name not in known]
    notes = [f"{title}: {', '.join(lost)} left out, no number for every document"] if lost else []
    return known, notes
