"""From a data set to rows of token ids: what pairs, prompts and demonstrations share."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from multiref_cli.config.schema import Data
from multiref_cli.data.chat import Message, prompt_ids
from multiref_cli.data.rows import BadRow, Split, load_split, plain_data

T = TypeVar("T")


def load_encoded(
    data: Data,
    tokenizer: Any,
    parse: Callable[[int, dict[str, Any], Data, Any], T],
) -> Split[T]:
    """Load rows that hold a prompt as ids; the one way from a data set to tokens.

    Args:
        data: the data part of the config.
        tokenizer: of the policy.
        parse: (row number, row, data, tokenizer) -> encoded row, as `parse_pair` does.

    Returns:
        The split; its report counts the truncated responses.

    Raises:
        RequestError: see `load_split`.
    """
    data = plain_data(data)
    split = load_split(data, lambda number, row: parse(number, row, data, tokenizer), prompt_key)
    split.report.truncated = sum(getattr(row, "truncated", 0) for row in (*split.train, *split.held_out))
    return split


def bounded_prompt(tokenizer: Any, messages: Sequence[Message], data: Data) -> tuple[int, ...]:
    """Encode a prompt that must fit into data.max_prompt_tokens.

    Raises:
        BadRow: it is longer; a prompt is never shortened, since that would ask another question.
    """
    ids = tuple(prompt_ids(tokenizer, messages))
    if len(ids) > data.max_prompt_tokens:
        raise BadRow(f"prompt over {data.max_prompt_tokens} tokens: {len(ids)}")
    if not ids:
        raise BadRow("empty prompt")
    return ids


def truncate(ids: Sequence[int], limit: int) -> tuple[tuple[int, ...], int]:
    """Cut a completion to its first `limit` ids, and with them its end token: a cut response has not ended.

    Returns:
        (ids, 1 if it was cut else 0).
    """
    return tuple(ids[:limit]), int(len(ids) > limit)


def prompt_key(row: Any) -> str:
    """The text that identifies the prompt of a usable row, the same for every tokenizer."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in row.messages)
