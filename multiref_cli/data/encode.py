"""From a data set to rows of token ids: what pairs, prompts and demonstrations share."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from multiref_cli.config.schema import BadRows, Data
from multiref_cli.data.chat import control_token, conversation_ids, prompt_text, text_ids, without_end
from multiref_cli.data.made import BadRow, Encoder
from multiref_cli.data.rows import Split, load_split
from multiref_cli.data.template import OF_THE_ROW, Message, Response, left_out
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Tokenizer

T = TypeVar("T")
# A limit of prompts that is chosen from the data: the share of them that fits, and its step in tokens.
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHARE, _STEP = 0.995, 64


def load_encoded(
    data: Data,
    tokenizer: Tokenizer,
    parse: Callable[[int, dict[str, Any], Data, Any], T],
    progress: Progress | None = None,
) -> Split[T]:
    """Load rows that hold a prompt as ids; the one way from a data set to tokens.

    Args:
        data: the data part of the config.
        tokenizer: of the policy.
        parse: (row number, row, data, tokenizer) -> encoded row, as `parse_pair` does.
        progress: told how far it is.

    Returns:
        The split; its report counts the truncated responses.

    Raises:
        RequestError: see `load_split`.
    """
    split = load_split(data, Encoder(parse, data, tokenizer), prompt_key, progress)
    return split if data.max_prompt_tokens is not None else _with_limit(split, data)


def _with_limit(split: Split[T], data: Data) -> Split[T]:
    """The rows whose prompt fits in a limit chosen from the training rows; the others are dropped and counted."""
    sides = [np.array([_prompt_length(row) for row in rows]) for rows in (split.train, split.held_out)]
    share = 1.0 if data.bad_rows is BadRows.refuse else _SHARE
    limit = _STEP * math.ceil(np.quantile(sides[0], share, method="inverted_cdf") / _STEP)
    report = split.report
    for rows, lengths in zip((split.train, split.held_out), sides):
        long = np.flatnonzero(lengths > limit).tolist()
        report.problems += [(rows[i].row, f"prompt over {limit} tokens: {lengths[i]}") for i in long]  # type: ignore[attr-defined]
        report.kept -= len(long)
    report.problems.sort()
    report.prompt_limit = limit
    train, held_out = (
        rows.chosen(np.flatnonzero(lengths <= limit).tolist())
        for rows, lengths in zip((split.train, split.held_out), sides)
    )
    return replace(split, train=train, held_out=held_out)


def _prompt_length(row: object) -> int:
    ids: Sequence[int] = getattr(row, "ids", None) or row.prompt  # type: ignore[attr-defined]
    return len(ids)


def bounded_prompt(tokenizer: Tokenizer, messages: Sequence[Message], data: Data) -> tuple[int, ...]:
    """Encode a prompt that must fit into data.max_prompt_tokens.

    Raises:
        BadRow: it is longer; a prompt is never shortened, since that would ask another question. Or it holds a control
            token, no Unicode text, or what the chat template does not write.
    """
    return _bounded(text_ids(tokenizer, _written_prompt(tokenizer, messages)), data)


def _written_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The prompt as its template writes it, where that is all of it and no more."""
    for message in messages:
        plain_text(tokenizer, message["content"], "prompt")
    text = prompt_text(tokenizer, messages)
    lost = left_out(messages, text)
    if lost is not None:
        raise BadRow(f"the chat template leaves out {lost}")
    return text


def bounded_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], responses: Sequence[Response], data: Data
) -> tuple[tuple[int, ...], list[tuple[int, ...]], list[int]]:
    """Encode a prompt, as `bounded_prompt`, and its responses, cut to data.max_completion_tokens.

    Returns:
        (prompt ids, ids of each response, 1 where it was cut else 0).
    """
    text = _written_prompt(tokenizer, messages)
    ids = text_ids(tokenizer, text)
    _bounded(ids, data)
    prompt, completions = conversation_ids(tokenizer, messages, responses, opened=(text, ids))
    cut = [truncate(ids, data.max_completion_tokens) for ids in completions]
    return _bounded(prompt, data), [ids for ids, _ in cut], [number for _, number in cut]


def _bounded(ids: Sequence[int], data: Data) -> tuple[int, ...]:
    if data.max_prompt_tokens is not None and len(ids) > data.max_prompt_tokens:
        raise BadRow(f"prompt over {data.max_prompt_tokens} tokens: {len(ids)}")
    if not ids:
        raise BadRow("empty prompt")
    return tuple(ids)


def plain_response(tokenizer: Tokenizer, response: Response, name: str) -> Response:
    """`plain_text` of a response that may have reasoning and tool calls."""
    if isinstance(response, str):
        return plain_text(tokenizer, response, name)
    plain_text(tokenizer, response.get("reasoning_content", ""), name)
    return {**response, "content": plain_text(tokenizer, response["content"], name)}


def plain_text(tokenizer: Tokenizer, text: str, name: str) -> str:
    """A text that the tokenizer reads as text alone, a response without the end token that it brings along.

    Args:
        tokenizer: of the policy.
        text: content of a turn.
        name: of its column, for the reason.

    Raises:
        BadRow: it holds a control token, which would open or end a turn, or half of a surrogate pair.
    """
    unicode_text(text, name)
    text = text if name == "prompt" else without_end(tokenizer, text)
    token = control_token(tokenizer, text)
    if token is not None:
        raise BadRow(f"control token in {name}: {token}")
    return text


def unicode_text(text: str, name: str) -> str:
    """The text of a column.

    Raises:
        BadRow: it holds half of a surrogate pair.
    """
    if _SURROGATE.search(text):
        raise BadRow(f"{name} is no Unicode text")
    return text


def truncate(ids: Sequence[int], limit: int) -> tuple[tuple[int, ...], int]:
    """Cut a completion to its first `limit` ids, and with them its end token: a cut response has not ended.

    Returns:
        (ids, 1 if it was cut else 0).
    """
    return tuple(ids[:limit]), int(len(ids) > limit)


def prompt_key(row: Any) -> str:
    """The text that identifies the prompt of a usable row, the same for every tokenizer."""
    first = row.messages[0]
    told = [f"{name}: {json.dumps(first[name], sort_keys=True)}" for name in OF_THE_ROW if name in first]
    return "\n".join([*told, *(_turn_key(message) for message in row.messages)])


def _turn_key(message: Message) -> str:
    more = {key: message[key] for key in message if key not in ("role", "content", *OF_THE_ROW)}
    return f"{message['role']}: {message['content']}" + (json.dumps(more, sort_keys=True) if more else "")
