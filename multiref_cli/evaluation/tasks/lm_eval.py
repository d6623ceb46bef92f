"""Tasks of EleutherAI's lm-evaluation-harness, answered by a model that is in memory already."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from multiref_cli.config.sentences import nearest
from multiref_cli.data.template import render
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.tasks.base import Answers, Asking, Row, Subject, Task, numeric_only, sha256_of

# The library's own switch for tasks that run what a model wrote.
_CODE = "HF_ALLOW_CODE_EVAL"
# Settings of a task that say where its files lie, not what it asks.
_PLACES = ("dataset_kwargs", "metadata")


def open_task(given: str, name: str, settings: Asking) -> Task:
    """Find a task, a group or a tag by its name or its YAML file; see `LibraryModule`."""
    if _is_file(name) and not Path(name).is_file():
        raise RequestError(f"evaluation.tasks={given}: there is no file {name}; give a task's YAML file, or its name.")
    with _quiet():
        manager = _manager(_is_file(name))
        if not _is_file(name) and name not in manager.all_tasks:
            raise RequestError(
                f"evaluation.tasks={given}: lm-eval {version('lm_eval')} has no task {name!r}"
                f"{nearest(name, manager.all_tasks)}; `lm-eval ls tasks` lists all."
            )
        content = manager.load([name])
    parts, groups = content["tasks"], content.get("groups") or {}
    unsafe = [one for one, part in parts.items() if getattr(part, "UNSAFE_CODE", False)]
    if unsafe and os.environ.get(_CODE) != "1":
        raise RequestError(f"evaluation.tasks={given} runs the code that a model writes; set {_CODE}=1 to allow that.")
    for part in parts.values():
        _set_fewshot(part, settings)
    documents = {one: _documents(part, settings.limit) for one, part in parts.items()}
    described = {one: _described(part) for one, part in parts.items()}
    own = next(iter(parts)) if len(parts) == 1 else next(iter(groups), Path(name).stem)
    versions = {str((described[one].get("metadata") or {}).get("version", "")) for one in parts}
    return Task(
        given=given,
        title=f"lm_eval/{own if _is_file(name) else name}",
        library=f"lm_eval {version('lm_eval')}",
        version=versions.pop() if len(versions) == 1 else "",
        sha256=sha256_of(
            [{k: v for k, v in described[one].items() if k not in _PLACES} | {"asked": documents[one]} for one in parts]
        ),
        documents=sum(map(len, documents.values())),
        content=content,
    )


def answer(task: Task, subject: Subject, settings: Asking) -> Answers:
    """Have a model answer all documents; see `LibraryModule`."""
    from lm_eval.evaluator import evaluate
    from lm_eval.utils import set_torch_seed

    chat = bool(subject.tokenizer.chat_template) if settings.chat_template is None else settings.chat_template
    with _quiet():
        set_torch_seed(settings.seed)  # of tasks that sample
        found: Any = evaluate(
            lm=_model(subject, settings),
            task_dict=task.content,
            limit=settings.limit,
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=os.environ.get(_CODE) == "1",
        )
    return _answers(found["samples"], task)


def _answers(samples: Mapping[str, Sequence[Mapping[str, Any]]], task: Task) -> Answers:
    """Rows out of the library's log: one a document, with the metrics of all filters."""
    rows: list[Row] = []
    higher: dict[str, bool] = {}
    parts = task.content["tasks"]
    for part, logged in samples.items():
        filters = {one["filter"] for one in logged}
        better, means = parts[part].higher_is_better(), _means(parts[part])
        found: dict[str, Row] = defaultdict(dict)
        for one in logged:
            place = f"{part}/" if len(samples) > 1 else ""
            row = found[f"{place}{one['doc_id']}:{one['doc_hash'][:12]}"]
            row |= {"prompt": str(one["arguments"][0][0]), "target": _plain(one["target"])}
            row |= {"response": _plain(one["resps"])}
            for metric in one["metrics"]:
                name = metric if len(filters) == 1 else f"{metric}/{one['filter']}"
                higher.setdefault(name, bool(better.get(metric, True)))
                row[name] = float(one[metric]) if metric in means and _is_number(one[metric]) else None
        rows += [{"document": document, **row} for document, row in found.items()]
    names, notes = numeric_only(rows, list(higher), task.title)
    kept = ("document", "prompt", "target", "response", *names)
    return Answers([{key: row[key] for key in kept} for row in rows], names, [n for n in names if higher[n]], notes)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or getattr(value, "shape", None) == ()


def _means(part: Any) -> set[str]:
    """The metrics of a task that are means over documents; others, such as BLEU, have no value of one document."""
    return {name for name, one in part.aggregation().items() if getattr(one, "__name__", "") in ("mean", "nanmean")}


def _plain(value: Any) -> Any:
    """A response or target as JSON holds it; of one text in lists the text."""
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


@lru_cache(maxsize=2)
def _manager(bare: bool) -> Any:
    """What knows tasks; the index of all that the library ships takes seconds, and a file does not need it."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=not bare)


def _set_fewshot(part: Any, settings: Asking) -> None:
    """As the library's own command does: a task that says 0 keeps it, one that says nothing has none."""
    said = part.get_config("num_fewshot")
    if said != 0 and (settings.fewshot is not None or said is None):
        part.set_config(key="num_fewshot", value=settings.fewshot or 0)
    part.set_fewshot_seed(seed=settings.seed)


def _documents(part: Any, limit: int | None) -> list[Any]:
    every = part.eval_docs
    return [every[i] for i in range(len(every) if limit is None else min(limit, len(every)))]


def _described(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = part.dump_config()
    return found


def _model(subject: Subject, settings: Asking) -> Any:
    """The library's view of a transformers model: its prompts are written as those of training."""
    from lm_eval.models.huggingface import HFLM

    class Ours(HFLM):  # type: ignore[misc]
        """A model in memory, quiet, with this evaluation's longest response where a task names none."""

        @property
        def max_gen_toks(self) -> int:
            """Longest response in tokens."""
            return settings.max_new_tokens

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            """A conversation as training writes it; one whose last turn goes on, as the library writes it."""
            if not add_generation_prompt:
                return str(super().apply_chat_template(chat_history, add_generation_prompt))
            return render(subject.tokenizer, chat_history, generation_prompt=True)

    kind = next(subject.model.parameters()).device.type
    products = "bfloat16" if torch.is_autocast_enabled(kind) else None
    return Ours(
        pretrained=subject.model,
        tokenizer=subject.tokenizer,
        batch_size=settings.batch_size,
        mixed_precision_dtype=products,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and remarks: progress is told by ours."""
    from lm_eval.api.task import tqdm

    said, bars = logging.getLogger("lm_eval").level, tqdm.__init__

    def hidden(bar: Any, *values: Any, **named: Any) -> None:
        bars(bar, *values, **{**named, "disable": True})

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tqdm.__init__ = hidden  # type: ignore[method-assign]
    try:
        yield
    finally:
        logging.getLogger("lm_eval").setLevel(said)
        tqdm.__init__ = bars  # type: ignore[method-assign]
