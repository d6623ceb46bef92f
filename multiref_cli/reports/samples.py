"""The same prompts answered by the start, by each reference alone and by mixes, side by side with score and KL."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from multiref_cli.files import each_line
from multiref_cli.reports.collect import Condition, Run
from multiref_cli.reports.metrics import heading, ranking_metric, scorers
from multiref_cli.reports.page import Page
from multiref_cli.reports.parts import Verbatim
from multiref_cli.reports.verdicts import series

# Prompts and arms that are shown, and characters of a response.
PROMPTS, ARMS, LONGEST = 6, 8, 600
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """One response to a prompt: name -> score, reference -> log-ratio of the response in nats."""

    who: str
    text: str
    scores: Mapping[str, float]
    distances: Mapping[str, float]


def add_samples(page: Page, found: Sequence[Condition], name: str, level: int) -> None:
    """Add a section of the first prompts of the evaluation; nothing where no run kept responses.

    Args:
        page: to add to.
        found: conditions of one job; of one run, that run and its start.
        name: what the tables' names begin with.
        level: of the section.
    """
    arms = answering(found)
    read = {condition.label: _answers(condition.first) for condition in arms}
    first = next((rows for rows in read.values() if rows), None)
    if first is None:
        return
    names, references = scorers(found), found[0].first.references
    page.section("Samples", level)
    page.text(
        f"The first {len(first)} prompts of the evaluation, in its order, by the runs of the lowest seed. KL: "
        "log-ratio of the very response to each reference, in nats; of one response it may be negative."
    )
    for number, row in enumerate(first):
        answers = [*_of_references(row)]
        for label, rows in read.items():
            if number < len(rows) and rows[number].get("prompt") == row.get("prompt"):
                answers.append(_answer(label, rows[number]))
        headers = ["", "response", *map(heading, names), *(f"KL to {one}" for one in references)]
        cells = [
            [one.who, Verbatim(_cut(one.text)), *_numbers(one.scores, names), *_numbers(one.distances, references)]
            for one in answers
        ]
        solution = f", answer {row['answer']}" if row.get("answer") is not None else ""
        page.table(headers, cells, Verbatim(f"Prompt {number + 1}{solution}: {_cut(str(row.get('prompt')))}"), name)


def answering(found: Sequence[Condition]) -> list[Condition]:
    """Whose answers are shown: of every line over alpha the condition with the highest score, then of every reference
    alone, then without a penalty; those that are no arm of such a job all."""
    metric = ranking_metric(found)

    def best(group: Sequence[Condition]) -> Condition:
        return max(group, key=lambda one: _mean(one, metric))

    lines = [best(line.conditions) for line in series(found)]
    alone: dict[str, list[Condition]] = {}
    for condition in found:
        if condition.role == "single" and condition.alone:
            alone.setdefault(condition.alone, []).append(condition)
    others = [condition for condition in found if condition.role == "beta0"]
    chosen = [*[best(group) for group in alone.values()], *others, *lines]
    return (chosen or list(found))[:ARMS]


def _mean(condition: Condition, metric: str | None) -> float:
    interval = condition.interval(metric) if metric is not None else None
    return -math.inf if interval is None else interval.mean


def _answers(run: Run) -> list[dict[str, Any]]:
    """The first prompts of a run with their first responses; of runs without answers.jsonl, means over responses."""
    rows = list(islice(each_line(run.folder / ANSWERS), PROMPTS))
    return rows or [_without_answers(row, run) for row in islice(each_line(run.folder / "evaluation.jsonl"), PROMPTS)]


def _without_answers(row: Mapping[str, Any], run: Run) -> dict[str, Any]:
    distances = {name: [row[f"kl/{name}"]] for name in run.references if f"kl/{name}" in row}
    scores = {name: [value] for name, value in row.items() if isinstance(value, float)}
    return {**row, "scores": scores, "kl": distances}


def _of_references(row: Mapping[str, Any]) -> list[Answer]:
    """The untrained models' own answers, as far as the run kept them; a model is at no distance from itself."""
    found = row.get("references")
    if not isinstance(found, dict):
        return []
    return [
        Answer(f"{name}, untrained", str(next(iter(own["responses"]), "")), _firsts(own.get("scores")), {name: 0.0})
        for name, own in found.items()
        if isinstance(own, dict) and isinstance(own.get("responses"), list)
    ]


def _answer(who: str, row: Mapping[str, Any]) -> Answer:
    responses = row.get("responses")
    text = str(responses[0]) if isinstance(responses, list) and responses else ""
    return Answer(who, text, _firsts(row.get("scores")), _firsts(row.get("kl")))


def _firsts(values: object) -> dict[str, float]:
    """Name -> the number of the first response."""
    found = values if isinstance(values, dict) else {}
    return {name: float(own[0]) for name, own in found.items() if isinstance(own, list) and own}


def _numbers(values: Mapping[str, float], names: Sequence[str]) -> list[float | None]:
    return [values.get(name) for name in names]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
