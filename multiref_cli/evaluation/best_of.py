"""How well a reward model tells right responses from wrong ones, on rows of one right response among several.

The rules are those of RewardBench (arXiv 2403.13787), rows of a chosen and a rejected text, and of RewardBench 2
(arXiv 2506.01937), rows of lists: their columns are prompt, chosen, rejected, subset and id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiref_cli.config.schema import Data
from multiref_cli.data.made import BadRow
from multiref_cli.data.messages import prompt_messages, response_of
from multiref_cli.data.rows import read_rows
from multiref_cli.data.template import Message, Response
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.statistics import wilson_interval

# The subset whose rows have several right responses, and a score of its own.
TIES = "ties"
# Conversations -> scores.
Judge = Callable[[Sequence[tuple[list[Message], Response, bool]]], list[float]]


@dataclass(frozen=True)
class Lineup:
    """A row: a prompt with its right and wrong responses; `pair`: it was written as two texts, not as lists."""

    row: int
    id: str
    subset: str
    messages: list[Message]
    right: tuple[Response, ...]
    wrong: tuple[Response, ...]
    pair: bool


@dataclass(frozen=True)
class Lineups:
    """The rows of a file, the sha256 of its content, and how many rows cannot be used."""

    rows: list[Lineup]
    sha256: str
    unusable: int


def read_lineups(path: str) -> Lineups:
    """Read a file of such rows (.jsonl, .parquet, .json).

    Raises:
        RequestError: no such file, another format, or no usable row; what is wrong with the first one.
    """
    try:
        source = read_rows(path, "test")
    except RequestError as error:
        raise RequestError(str(error).replace("data.path=", "evaluation.scorer_file=")) from error
    found, problems = list[Lineup](), [reason for _, reason in source.problems]
    for number, row in source:
        try:
            found.append(_lineup(number, row))
        except BadRow as bad:
            problems.append(f"row {number}: {bad}")
    if not found:
        reason = f" ({problems[0]})" if problems else ""
        raise RequestError(
            f"evaluation.scorer_file={path} has no usable row{reason}; give rows of prompt, chosen and rejected, as "
            "RewardBench has them: two texts, or lists of texts."
        )
    return Lineups(found, source.sha256, len(problems))


def _lineup(number: int, row: dict[str, Any]) -> Lineup:
    right, wrong = (_responses(row.get(name), name) for name in ("chosen", "rejected"))
    pair = not any(isinstance(row[name], list) for name in ("chosen", "rejected"))
    messages = prompt_messages(row.get("prompt"), Data())
    return Lineup(number, str(row.get("id", number)), str(row.get("subset") or "all"), messages, right, wrong, pair)


def _responses(value: object, name: str) -> tuple[Response, ...]:
    several = value if isinstance(value, list) else [value]
    if not several:
        raise BadRow(f"empty {name}")
    return tuple(response_of(one, name) for one in several)


def judge(lineups: Sequence[Lineup], score: Judge) -> list[np.ndarray]:
    """Scores of all responses of every row, the right ones first."""
    conversations = [(one.messages, text, True) for one in lineups for text in (*one.right, *one.wrong)]
    scores = np.array(score(conversations), dtype=np.float64)
    ends = np.cumsum([len(one.right) + len(one.wrong) for one in lineups])
    return np.split(scores, ends[:-1])


def result(lineup: Lineup, scores: np.ndarray) -> float:
    """How right a row was judged, by the rules of its benchmark.

    Of one right response among several: 1 over the number of highest scores where it has one of them, else 0. Of a
    pair: 1 where it is above the other, 0 at a tie. With several right responses, and in the subset Ties: 1 where all
    of them are above all wrong ones, else 0.

    Args:
        lineup: the row.
        scores: of its responses, the right ones first.
    """
    right, wrong = scores[: len(lineup.right)], scores[len(lineup.right) :]
    if lineup.pair or len(right) > 1 or lineup.subset.lower() == TIES:
        return float(right.min() > wrong.max())
    return 1 / int((scores == scores.max()).sum()) if right[0] == scores.max() else 0.0


def ties_score(lineups: Sequence[Lineup], scores: Sequence[np.ndarray]) -> float | None:
    """The weighted score of the subset Ties; None where its rows do not come as ref:N and tied:N of common prompts.

    Equation: .3 a_tied + .3 a_ref + .2 P(m > s) + .2 P(min(m, m_ref) > s) + .01 E tanh(min(m, m_ref) / s - 1), where a
    is the accuracy, m the margin between the worst right and the best wrong response of a tied row, m_ref that of its
    reference row, s the spread of the tied row's right responses; 0 / 0 counts as 0 (RewardBench 2's own program).

    Args:
        lineups: rows of the subset.
        scores: of their responses, the right ones first.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}
    for lineup, values in zip(lineups, scores):
        kind, _, number = lineup.id.partition(":")
        if kind not in found or not number:
            return None
        right, wrong = values[: len(lineup.right)], values[len(lineup.right) :]
        found[kind][number] = (float(right.min() - wrong.max()), float(right.max() - right.min()))
    both = sorted(set(found["ref"]) & set(found["tied"]))
    if not both:
        return None
    accuracy = {kind: np.mean([margin > 0 for margin, _ in rows.values()]) for kind, rows in found.items()}
    margin, spread = np.array([found["tied"][number] for number in both]).T
    least = np.minimum(margin, [found["ref"][number][0] for number in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        surplus = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0)
    parts = (accuracy["tied"], accuracy["ref"], (margin > spread).mean(), (least > spread).mean(), surplus.mean())
    return float(np.dot((0.3, 0.3, 0.2, 0.2, 0.01), parts))


def summarized(lineups: Sequence[Lineup], scores: Sequence[np.ndarray], results: Sequence[float]) -> dict[str, Any]:
    """Accuracy with its Wilson interval of every subset and of all rows, and the mean over subsets.

    Returns:
        {subsets: name -> {mean, ci_low, ci_high, n}, with `score` for Ties; all: the same of all rows; average: mean
        over subsets, of Ties its score, which is what the leaderboard of RewardBench 2 ranks}.
    """
    subsets: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(one.subset for one in lineups):
        own = [index for index, one in enumerate(lineups) if one.subset == name]
        subsets[name] = accuracy_of([results[index] for index in own])
        if name.lower() == TIES:
            score = ties_score([lineups[index] for index in own], [scores[index] for index in own])
            subsets[name] |= {} if score is None else {"score": score}
    average = float(np.mean([one.get("score", one["mean"]) for one in subsets.values()]))
    return {"subsets": subsets, "all": accuracy_of(results), "average": average}


def accuracy_of(results: Sequence[float]) -> dict[str, float]:
    """Mean and Wilson's 95 % interval."""
    found = wilson_interval(float(np.mean(results)), len(results))
    return {"mean": found.mean, "ci_low": found.low, "ci_high": found.high, "n": found.n}
