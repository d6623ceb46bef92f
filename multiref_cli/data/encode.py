"""From a data set to rows of token ids: what pairs, prompts and demonstrations share."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from multiref_cli.config.schema import Data
from multiref_cli.data.chat import Message, control_token, prompt_ids, without_end
from multiref_cli.data.rows import BadRow, Split, load_split
from multiref_cli.types import Tokenizer

T = TypeVar("T")


def load_encoded(
    data: Data,
    tokenizer: Tokenizer,
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
    split = load_split(data, lambda number, row: parse(number, row, data, tokenizer), prompt_key)
    split.report.truncated = sum(getattr(row, "truncated", 0) for row in (*split.train, *split.held_out))
    return split


def bounded_prompt(tokenizer: Tokenizer, messages: Sequence[Message], data: Data) -> tuple[int, ...]:
    """Encode a prompt that must fit into data.max_prompt_tokens.

    Raises:
        BadRow: it is longer; a prompt is never shortened, since that would ask another question. Or it holds a control
            token, or no Unicode text.
    """
    for message in messages:
        plain_text(tokenizer, message["content"], "prompt")
    ids = tuple(prompt_ids(tokenizer, messages))
    if len(ids) > data.max_prompt_tokens:
        raise BadRow(f"prompt over {data.max_prompt_tokens} tokens: {len(ids)}")
    if not ids:
        raise BadRow("empty prompt")
    return ids


def plain_text(tokenizer: Tokenizer, text: str, name: str) -> str:
    """A text that the tokenizer reads as text alone, a response without the end token that it brings along.

    Args:
        tokenizer: of the policy.
        text: content of a turn.
        name: of its column, for the reason.

    Raises:
        BadRow: it holds a control token, which would open or end a turn, or half of a surrogate pair.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRow(f"{name} is no Unicode text")
    text = text if name == "prompt" else without_end(tokenizer, text)
    token = control_token(tokenizer, text)
    if token is not None:
        raise BadRow(f"control token in {name}: {token}")
    return text


def truncate(ids: Sequence[int], limit: int) -> tuple[tuple[int, ...], int]:
    """Cut a completion to its first `limit` ids, and with them its end token: a cut response has not ended.

    Returns:
        (ids, 1 if it was cut else 0).
    """
    return tuple(ids[:limit]), int(len(ids) > limit)


def prompt_key(row: Any) -> str:
    """The text that identifies the prompt of a usable row, the same for every tokenizer."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in row.messages)
