"""Demonstrations for supervised fine-tuning: a prompt and the response to learn, or a text that is learned whole."""

import re
from dataclasses import dataclass, field
from typing import Any

from multiref_cli.config.schema import Data
from multiref_cli.data.chat import end_ids, text_ids
from multiref_cli.data.encode import bounded_conversation, load_encoded, plain_response, truncate, unicode_text
from multiref_cli.data.made import BadRow
from multiref_cli.data.messages import column, conversation, prompt_column, prompt_messages, response_of, with_tools
from multiref_cli.data.messages import plain_response as without_fields
from multiref_cli.data.preferences import parse_pair
from multiref_cli.data.prompts import question
from multiref_cli.data.rows import Split
from multiref_cli.data.template import Message, Response
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Tokenizer

COMPLETIONS = ("completion", "response", "output", "answer")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True)
class Demonstration:
    """One demonstration.

    Args:
        prompt: ids up to where the assistant begins; the first id of a text that is learned whole.
        completion: ids of the response, or of the rest of the text, with its end token unless it was truncated.
        messages: the prompt as messages, system prompt included; of a text one message with the role `text`.
        text: the response, a turn where it has reasoning or tool calls.
        row: number of the row in its source, from 1.
        extra: the other columns of the row.
        truncated: 1 if the response was truncated, else 0.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    messages: list[Message]
    text: Response
    row: int
    extra: dict[str, Any] = field(default_factory=dict)
    truncated: int = 0


def load_demonstrations(data: Data, tokenizer: Tokenizer, progress: Progress | None = None) -> Split[Demonstration]:
    """Load demonstrations: prompt and completion, question and answer, conversation, chosen side of pairs, or a text.

    Args:
        data: the data part of the config; `options.calculator_marks: false` drops GSM8K's `<<48/2=24>>`.
        tokenizer: of the policy.
        progress: told how far it is.

    Returns:
        Training and held-out demonstrations, and the account of the rows that were dropped. Of a conversation the last
        turn of the assistant is learned, the turns before it are the prompt; of rows of `text` alone every token.

    Raises:
        RequestError: nothing to read, nothing left, or bad rows that the config refuses.
    """
    return load_encoded(data, tokenizer, parse_demonstration, progress)


def parse_demonstration(number: int, row: dict[str, Any], data: Data, tokenizer: Tokenizer) -> Demonstration:
    """Read one row as a demonstration; arguments and errors are those of `parse_pair`."""
    if column(row, data, "chosen") is not None and column(row, data, "rejected") is not None:
        pair = parse_pair(number, row, data, tokenizer)
        cut = int(pair.chosen[-1] not in end_ids(tokenizer))
        return Demonstration(pair.prompt, pair.chosen, pair.messages, pair.chosen_text, number, pair.extra, cut)
    if _is_text(row, data):
        return _whole(number, row, data, tokenizer)
    used, messages, text = _texts(row, data)
    if not data.options.get("calculator_marks", True) and isinstance(text, str):
        text = _CALCULATOR.sub("", text)
    text = plain_response(tokenizer, text, "completion")
    prompt, (completion,), (cut,) = bounded_conversation(tokenizer, messages, [text], data)
    extra = {name: value for name, value in row.items() if name not in used}
    return Demonstration(prompt, completion, messages, text, number, extra, cut)


def _is_text(row: dict[str, Any], data: Data) -> bool:
    """Whether a row is a text without prompt and response, for language modeling."""
    if "text" in data.columns:
        return True
    parts = [column(row, data, "messages"), prompt_column(row, data)[1], *(row.get(name) for name in COMPLETIONS)]
    return row.get("text") is not None and all(part is None for part in parts)


def _whole(number: int, row: dict[str, Any], data: Data, tokenizer: Tokenizer) -> Demonstration:
    """A text as it is, control tokens read as what they are, and the end token unless it brings that along."""
    name, text = data.columns.get("text", "text"), column(row, data, "text")
    if not isinstance(text, str):
        raise BadRow(f"{name} has the wrong type: {type(text).__name__}")
    ids, ends = text_ids(tokenizer, unicode_text(text, name)) if text.strip() else [], end_ids(tokenizer)
    if not ids:
        raise BadRow(f"empty {name}")
    rest = ids[1:] if ids[-1] in ends and len(ids) > 1 else [*ids[1:], ends[0]]
    completion, cut = truncate(rest, data.max_completion_tokens)
    extra = {key: value for key, value in row.items() if key != name}
    return Demonstration((ids[0],), completion, [{"role": "text", "content": text}], text, number, extra, cut)


def _texts(row: dict[str, Any], data: Data) -> tuple[set[str], list[Message], Response]:
    whole = column(row, data, "messages")
    if whole is not None:
        messages = conversation(whole, "messages")
        while messages and messages[-1]["role"] != "assistant":
            messages = messages[:-1]
        if len(messages) < 2:
            raise BadRow("messages hold no response to a prompt")
        name = data.columns.get("messages", "messages")
        prompt = with_tools(prompt_messages(messages[:-1], data, "messages"), row, data)
        return {name}, prompt, without_fields(messages[-1])
    name, messages = question(row, data)
    if "completion" in data.columns:
        return {name, data.columns["completion"]}, messages, response_of(column(row, data, "completion"), "completion")
    other = next((known for known in COMPLETIONS if known in row), "completion")
    return {name, other}, messages, response_of(row.get(other), other)
