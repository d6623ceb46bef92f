"""What a chat template writes: of a conversation, of a date that stands still, of arguments that a run gives it.

Two things of a row are no turns and stand in its first message, where templates do not look: `tools` and
`chat_template_kwargs`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from multiref_cli.config.schema import Data
from multiref_cli.errors import RequestError
from multiref_cli.types import Tokenizer

Message = dict[str, Any]
# A response: its text, or a turn of the assistant that also has reasoning_content or tool_calls.
Response: TypeAlias = str | Message

_CLOCK = "strftime_now"
OF_THE_ROW = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Rendering:
    """What chat templates are told besides a conversation, the same for every model of a run.

    Attributes:
        date: what a template takes for today, ISO format; the clock would make another run of the same config each day.
        arguments: further variables of templates, such as `enable_thinking`.
    """

    date: str = "2024-07-26"
    arguments: dict[str, Any] = field(default_factory=dict)


def rendering_of(data: Data) -> Rendering:
    """What a data set's conversations are rendered with."""
    return Rendering(data.date, dict(data.chat_template_kwargs))


@dataclass(frozen=True)
class Attached:
    """What is known of a tokenizer besides itself.

    Attributes:
        rendering: what its chat template is told.
        ends: further ids that its model stops at.
    """

    rendering: Rendering = Rendering()
    ends: tuple[int, ...] = ()


_attached: "WeakKeyDictionary[Tokenizer, Attached]" = WeakKeyDictionary()


def attach(tokenizer: Tokenizer, rendering: Rendering, ends: Sequence[int] = ()) -> None:
    """Note what a tokenizer's template is told, and which further ids its model stops at."""
    _attached[tokenizer] = Attached(rendering, tuple(ends))


def attached_to(tokenizer: Tokenizer) -> Attached:
    """What was noted of a tokenizer; the default where nothing was."""
    return _attached.get(tokenizer, Attached())


def reads(tokenizer: Tokenizer, name: str) -> bool:
    """Whether the chat template mentions a variable."""
    return re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)) is not None


def render(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool) -> str:
    """The text that the chat template makes of a conversation.

    Args:
        tokenizer: with a chat template.
        messages: turns of role, content, and what else templates know (tool_calls, reasoning_content, ...).
        generation_prompt: whether the assistant's turn is opened at the end.

    Raises:
        RequestError: the template refuses the conversation, such as a system message where it knows none.
    """
    rendering, first = attached_to(tokenizer).rendering, messages[0] if messages else {}
    turns = [{key: value for key, value in message.items() if key not in OF_THE_ROW} for message in messages]
    arguments = rendering.arguments | first.get("chat_template_kwargs", {})
    try:
        return str(
            tokenizer.apply_chat_template(
                turns,
                tools=first.get("tools"),
                chat_template=_dated(tokenizer.get_chat_template(tools=first.get("tools")), rendering.date),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **arguments,
            )
        )
    except Exception as error:  # a template is a program: it raises anything
        roles = ", ".join(str(message["role"]) for message in messages)
        raise RequestError(f"The chat template refuses a conversation of {roles}: {error}.") from error


@lru_cache(maxsize=64)
def _dated(template: str, day: str) -> str:
    """The template with a clock that stands still: its `strftime_now` writes the given day."""
    if _CLOCK not in template:
        return template
    formats = dict.fromkeys(re.findall(_CLOCK + r"\(\s*(?:format\s*=\s*)?[\"']([^\"']*)[\"']", template))
    written = {one: date.fromisoformat(day).strftime(one) for one in formats}
    said = f"{{{{ {json.dumps(written)}.get(format, {day!r}) }}}}"
    return f"{{%- macro {_CLOCK}(format) -%}}{said}{{%- endmacro -%}}{template}"


def left_out(messages: Sequence[Message], text: str) -> str | None:
    """Which turn or tool of a prompt a rendered text lacks, as words for a sentence; None if it has all.

    Of an earlier turn of the assistant what stands before `</think>` may go: templates drop old thinking.
    """
    whole = squeezed(text)
    for message in messages:
        content = str(message["content"]).rpartition("</think>")[2]
        written = (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
        if not any(squeezed(one) in whole for one in written):
            return f"a turn of {message['role']}"
        for call in message.get("tool_calls") or ():
            if str(call.get("function", call).get("name")) not in text:
                return "tool_calls"
    for tool in messages[0].get("tools") or ():
        if str(tool.get("function", tool).get("name")) not in text:
            return "tools"
    return None


def squeezed(text: str) -> str:
    """A text without its blank space."""
    return "".join(text.split())
