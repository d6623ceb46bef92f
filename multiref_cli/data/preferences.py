"""Preference pairs: a prompt, a response that was preferred and one that was not, as token ids."""

from dataclasses import dataclass, field
from typing import Any

from multiref_cli.config.schema import Data
from multiref_cli.data.encode import bounded_conversation, load_encoded, plain_response
from multiref_cli.data.made import BadRow
from multiref_cli.data.messages import (
    column,
    conversation,
    dialogue,
    prompt_column,
    prompt_messages,
    response_of,
    split_pair,
    turns_or_text,
    with_tools,
)
from multiref_cli.data.rows import Split
from multiref_cli.data.template import Message, Response
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Tokenizer

# Columns in which data sets keep the scores of both responses.
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)


@dataclass(frozen=True)
class Pair:
    """One preference pair.

    Args:
        prompt: ids of the prompt, up to where the assistant begins.
        chosen: ids of the preferred response, with its end token unless it was truncated.
        rejected: ids of the other response.
        messages: the prompt as messages, system prompt included.
        chosen_text: the preferred response, a turn where it has reasoning or tool calls.
        rejected_text: the other response.
        row: number of the row in its source, from 1.
        extra: the other columns of the row.
        truncated: how many of the two responses were truncated.
        margin: score of the preferred response minus that of the other, where the row has scores.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    messages: list[Message]
    chosen_text: Response
    rejected_text: Response
    row: int
    extra: dict[str, Any] = field(default_factory=dict)
    truncated: int = 0
    margin: float | None = None


def load_preferences(data: Data, tokenizer: Tokenizer, progress: Progress | None = None) -> Split[Pair]:
    """Load preference pairs in any of the forms that TRL users have.

    A row has `prompt`, `chosen` and `rejected` as text or as conversations; or `chosen` and `rejected` alone as full
    conversations (also in HH's Human/Assistant format) that share their beginning, which is then the prompt.

    Args:
        data: the data part of the config; `options.ties: drop` drops pairs with equal scores, which else are counted.
        tokenizer: of the policy.
        progress: told how far it is.

    Returns:
        Training and held-out pairs, and the account of the rows that were dropped.

    Raises:
        RequestError: nothing to read, nothing left, or bad rows that the config refuses.
    """
    return load_encoded(data, tokenizer, parse_pair, progress)


def parse_pair(number: int, row: dict[str, Any], data: Data, tokenizer: Tokenizer) -> Pair:
    """Read one row as a preference pair.

    Args:
        number: of the row in its source.
        row: the columns of the row.
        data: the data part of the config.
        tokenizer: of the policy.

    Returns:
        The pair.

    Raises:
        BadRow: with the reason, if the row cannot be used.
    """
    prompt_name, messages, *texts = _texts(row, data)
    both = [plain_response(tokenizer, text, name) for text, name in zip(texts, ("chosen", "rejected"))]
    if both[0] == both[1] or _text(both[0]) == _text(both[1]):
        raise BadRow("chosen equals rejected")
    prompt, (chosen, rejected), cut = bounded_conversation(tokenizer, messages, both, data)
    if chosen == rejected:
        raise BadRow("chosen equals rejected in its first max_completion_tokens")
    margin = _margin(row)
    if margin == 0 and data.options.get("ties", "keep") == "drop":
        raise BadRow("equal scores")
    used = {prompt_name, *(data.columns.get(name, name) for name in ("chosen", "rejected"))}
    extra = {name: value for name, value in row.items() if name not in used}
    return Pair(prompt, chosen, rejected, messages, both[0], both[1], number, extra, sum(cut), margin)


def _texts(row: dict[str, Any], data: Data) -> tuple[str, list[Message], Response, Response]:
    """Name of the prompt's column, the prompt, and both responses."""
    name, prompt = prompt_column(row, data)
    chosen, rejected = (turns_or_text(column(row, data, side)) for side in ("chosen", "rejected"))
    for value, side in ((chosen, "chosen"), (rejected, "rejected")):
        if value is None:
            raise BadRow(f"{side} is null" if data.columns.get(side, side) in row else f"missing {side}")
    if isinstance(chosen, str) and isinstance(rejected, str):
        full = dialogue(chosen) is not None and dialogue(rejected) is not None
    else:
        full = isinstance(chosen, list) and isinstance(rejected, list) and len(conversation(chosen, "chosen")) > 1
    if prompt is None or full:
        # Full conversations carry their prompt, so a prompt column beside them is a copy of their first turn; only a
        # system turn may stand in the copy alone.
        copy, (prompt, chosen, rejected) = prompt, split_pair(chosen, rejected)
        if isinstance(copy, list) and prompt[0]["role"] != "system":
            prompt = [turn for turn in conversation(copy, "prompt")[:1] if turn["role"] == "system"] + prompt
    else:
        chosen, rejected = response_of(chosen, "chosen"), response_of(rejected, "rejected")
    return name, with_tools(prompt_messages(prompt, data), row, data), chosen, rejected


def _margin(row: dict[str, Any]) -> float | None:
    for names in _SCORES:
        first, second = (row.get(name) for name in names)
        if isinstance(first, (int, float)) and isinstance(second, (int, float)):
            return float(first) - float(second)
    return None


def _text(response: Response) -> Response:
    return response.strip() if isinstance(response, str) else response
