"""Preference pairs: a prompt, a response that was preferred and one that was not, as token ids."""

from dataclasses import dataclass, field
from typing import Any

from multiref_cli.config.schema import Data
from multiref_cli.data.chat import Message, completion_ids
from multiref_cli.data.encode import bounded_prompt, load_encoded, plain_text, truncate
from multiref_cli.data.messages import (
    column,
    conversation,
    dialogue,
    prompt_messages,
    split_pair,
    text_of,
    turns_or_text,
)
from multiref_cli.data.rows import BadRow, Split
from multiref_cli.types import Tokenizer


@dataclass(frozen=True)
class Pair:
    """One preference pair.

    Args:
        prompt: ids of the prompt, up to where the assistant begins.
        chosen: ids of the preferred response, with its end token unless it was truncated.
        rejected: ids of the other response.
        messages: the prompt as messages, system prompt included.
        chosen_text: the preferred response.
        rejected_text: the other response.
        row: number of the row in its source, from 1.
        extra: the other columns of the row.
        truncated: how many of the two responses were truncated.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    messages: list[Message]
    chosen_text: str
    rejected_text: str
    row: int
    extra: dict[str, Any] = field(default_factory=dict)
    truncated: int = 0


def load_preferences(data: Data, tokenizer: Tokenizer) -> Split[Pair]:
    """Load preference pairs in any of the forms that TRL users have.

    A row has `prompt`, `chosen` and `rejected` as text or as conversations; or `chosen` and `rejected` alone as full
    conversations (also in HH's Human/Assistant format) that share their beginning, which is then the prompt.

    Args:
        data: the data part of the config.
        tokenizer: of the policy.

    Returns:
        Training and held-out pairs, and the account of the rows that were dropped.

    Raises:
        RequestError: nothing to read, nothing left, or bad rows that the config refuses.
    """
    return load_encoded(data, tokenizer, parse_pair)


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
    messages, chosen_text, rejected_text = _texts(row, data)
    chosen_text = plain_text(tokenizer, chosen_text, "chosen")
    rejected_text = plain_text(tokenizer, rejected_text, "rejected")
    if chosen_text.strip() == rejected_text.strip():
        raise BadRow("chosen equals rejected")
    prompt = bounded_prompt(tokenizer, messages, data)
    chosen, first_cut = truncate(completion_ids(tokenizer, chosen_text), data.max_completion_tokens)
    rejected, second_cut = truncate(completion_ids(tokenizer, rejected_text), data.max_completion_tokens)
    if chosen == rejected:
        raise BadRow("chosen equals rejected in its first max_completion_tokens")
    used = {data.columns.get(name, name) for name in ("prompt", "chosen", "rejected")}
    extra = {name: value for name, value in row.items() if name not in used}
    return Pair(prompt, chosen, rejected, messages, chosen_text, rejected_text, number, extra, first_cut + second_cut)


def _texts(row: dict[str, Any], data: Data) -> tuple[list[Message], str, str]:
    prompt, chosen, rejected = (turns_or_text(column(row, data, name)) for name in ("prompt", "chosen", "rejected"))
    for value, name in ((chosen, "chosen"), (rejected, "rejected")):
        if value is None:
            raise BadRow(f"missing {name}")
    if isinstance(chosen, str) and isinstance(rejected, str):
        full = dialogue(chosen) is not None and dialogue(rejected) is not None
    else:
        full = isinstance(chosen, list) and isinstance(rejected, list) and len(conversation(chosen, "chosen")) > 1
    if prompt is None or full:
        # Full conversations carry their prompt, so a prompt column beside them is a copy of their first turn.
        prompt, chosen, rejected = split_pair(chosen, rejected)
    return prompt_messages(prompt, data), text_of(chosen, "chosen"), text_of(rejected, "rejected")
