"""Prompts for the online job and for evaluation, with gold answers where the data has them."""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from multiref_cli.config.schema import Data
from multiref_cli.data.answers import final_answer, parse_math
from multiref_cli.data.encode import bounded_prompt, load_encoded, prompt_key
from multiref_cli.data.made import BadRow
from multiref_cli.data.messages import column, conversation, prompt_column, prompt_messages, turns_or_text, with_tools
from multiref_cli.data.numbers import parse_number
from multiref_cli.data.preferences import parse_pair
from multiref_cli.data.rows import Split
from multiref_cli.data.shelf import Shelf
from multiref_cli.data.template import Message
from multiref_cli.errors import RequestError
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Tokenizer

ANSWERS = ("auto", "number", "math", "text")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        ids: up to where the assistant begins.
        messages: the same as messages, system prompt included.
        answer: the gold answer, where there is one.
        row: number of the row in its source, from 1.
        extra: the other columns of the row, for reward functions.
        conversational: whether the row has its prompt as a conversation, not as text.
    """

    ids: tuple[int, ...]
    messages: list[Message]
    answer: str | None
    row: int
    extra: dict[str, Any] = field(default_factory=dict)
    conversational: bool = False


def load_prompts(data: Data, tokenizer: Tokenizer, progress: Progress | None = None) -> Split[Prompt]:
    """Load prompts: GSM8K, any rows with a prompt (and an answer), preference pairs, or generated problems.

    Of preference pairs the prompts are taken, each once; the same prompts are held out as by `load_preferences`.

    Args:
        data: the data part of the config. `options.answer` says how a gold answer must read: `number`, `math` (an
            expression that math-verify parses), `text`, or `auto`: a number where the row writes it behind `####`.
        tokenizer: of the policy.
        progress: told how far it is.

    Returns:
        Training and held-out prompts, and the account of the rows that were dropped.

    Raises:
        RequestError: nothing to read, nothing left, or bad rows that the config refuses.
    """
    kind = data.options.get("answer", "auto")
    if kind not in ANSWERS:
        raise RequestError(f"data.options.answer={kind}; allowed: {', '.join(ANSWERS)}.")
    split = load_encoded(data, tokenizer, parse_prompt, progress)
    kept = _once(split.train), _once(split.held_out)
    split.report.duplicates = len(split.train) + len(split.held_out) - sum(map(len, kept))
    split.train, split.held_out = kept
    return split


def parse_prompt(number: int, row: dict[str, Any], data: Data, tokenizer: Tokenizer) -> Prompt:
    """Read one row as a prompt; arguments and errors are those of `parse_pair`."""
    if column(row, data, "chosen") is not None and column(row, data, "rejected") is not None:
        pair = parse_pair(number, row, data, tokenizer)
        talk = isinstance(turns_or_text(column(row, data, "chosen")), list)
        return Prompt(pair.prompt, pair.messages, None, number, pair.extra, talk)
    name, messages = question(row, data)
    raw = column(row, data, "answer")
    answer = gold_answer(raw, data.options.get("answer", "auto"))
    used = {name, "answer"}
    extra = {key: value for key, value in row.items() if key not in used}
    if isinstance(raw, str) and raw.strip() != answer:
        extra["answer"] = raw  # as it stands in the row
    talk = isinstance(turns_or_text(row.get(name)), list)
    return Prompt(bounded_prompt(tokenizer, messages, data), messages, answer, number, extra, talk)


def question(row: dict[str, Any], data: Data) -> tuple[str, list[Message]]:
    """The prompt of a row that has no preferences: (its column, messages).

    Raises:
        BadRow: the row has no prompt, or one that cannot be used.
    """
    name, value = prompt_column(row, data)
    if value is not None or name in row:
        return name, with_tools(prompt_messages(value, data), row, data)
    value = column(row, data, "messages")
    if value is None:
        raise BadRow(f"missing prompt: there is {', '.join(map(str, row)) or 'no column'}")
    messages = conversation(value, "messages")
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise BadRow("missing prompt: messages hold turns of the assistant only")
    name = data.columns.get("messages", "messages")
    return name, with_tools(prompt_messages(messages, data, "messages"), row, data)


def gold_answer(raw: object, kind: str) -> str | None:
    """Read the gold answer of a row.

    Args:
        raw: the column, such as `... #### 72`, `72` or 72.
        kind: of answer, see `load_prompts`.

    Returns:
        The answer as text, a GSM8K answer without its solution; None if the row has none and `kind` is `auto`.

    Raises:
        BadRow: the answer is missing though `kind` asks for one, or cannot be parsed.
    """
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        if kind == "auto" and raw is None:
            return None
        raise BadRow("missing answer" if raw is None else "empty answer")
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise BadRow(f"answer has the wrong type: {type(raw).__name__}")
    text = str(raw).strip()
    marked = "####" in text and kind in ("auto", "number")
    if marked:
        text = final_answer(text, ("hash",)) or ""
    if (marked or kind == "number") and parse_number(text) is None:
        raise BadRow(f"the gold answer is no number: {str(raw)[-40:]!r}")
    if kind == "math" and not parse_math(text):
        raise BadRow(f"the gold answer does not parse: {text[-40:]!r}")
    return text


def _once(prompts: Shelf[Prompt]) -> Shelf[Prompt]:
    # Only pairs repeat a prompt by nature; two rows with one prompt and different answers are different problems.
    seen: dict[bytes, int] = {}
    for number, prompt in enumerate(prompts):
        seen.setdefault(sha256(repr((prompt_key(prompt), prompt.answer)).encode()).digest(), number)
    return prompts.chosen(seen.values())
