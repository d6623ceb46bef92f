"""Demonstrations for supervised fine-tuning: a prompt and the response to learn."""

import re
from dataclasses import dataclass, field
from typing import Any

from multiref_cli.config.schema import Data
from multiref_cli.data.chat import end_ids
from multiref_cli.data.encode import bounded_conversation, load_encoded, plain_response
from multiref_cli.data.messages import column, conversation, prompt_messages, response_of, with_tools
from multiref_cli.data.messages import plain_response as without_fields
from multiref_cli.data.preferences import parse_pair
from multiref_cli.data.prompts import question
from multiref_cli.data.rows import BadRow, Split
from multiref_cli.data.template import Message, Response
from multiref_cli.types import Tokenizer

COMPLETIONS = ("completion", "response", "output", "answer")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True)
class Demonstration:
    """One demonstration.

    Args:
        prompt: ids up to where the assistant begins.
        completion: ids of the response, with its end token unless it was truncated.
        messages: the prompt as messages, system prompt included.
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


def load_demonstrations(data: Data, tokenizer: Tokenizer) -> Split[Demonstration]:
    """Load demonstrations: prompt and completion, question and answer, a conversation, or the chosen side of pairs.

    Args:
        data: the data part of the config; `options.calculator_marks: false` drops GSM8K's `<<48/2=24>>`.
        tokenizer: of the policy.

    Returns:
        Training and held-out demonstrations, and the account of the rows that were dropped. Of a conversation the last
        turn of the assistant is learned, the turns before it are the prompt.

    Raises:
        RequestError: nothing to read, nothing left, or bad rows that the config refuses.
    """
    return load_encoded(data, tokenizer, parse_demonstration)


def parse_demonstration(number: int, row: dict[str, Any], data: Data, tokenizer: Tokenizer) -> Demonstration:
    """Read one row as a demonstration; arguments and errors are those of `parse_pair`."""
    if column(row, data, "chosen") is not None and column(row, data, "rejected") is not None:
        pair = parse_pair(number, row, data, tokenizer)
        cut = int(pair.chosen[-1] not in end_ids(tokenizer))
        return Demonstration(pair.prompt, pair.chosen, pair.messages, pair.chosen_text, number, pair.extra, cut)
    used, messages, text = _texts(row, data)
    if not data.options.get("calculator_marks", True) and isinstance(text, str):
        text = _CALCULATOR.sub("", text)
    text = plain_response(tokenizer, text, "completion")
    prompt, (completion,), (cut,) = bounded_conversation(tokenizer, messages, [text], data)
    extra = {name: value for name, value in row.items() if name not in used}
    return Demonstration(prompt, completion, messages, text, number, extra, cut)


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
