"""Reading one row: plain text, conversations, implicit prompts and the old Human/Assistant dialogues as messages."""

import json
import re
from collections.abc import Mapping
from typing import Any

from multiref_cli.config.schema import Data
from multiref_cli.data.made import BadRow
from multiref_cli.data.template import Message, Response

# Names of one thing: what a model thought before it answered.
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Columns that hold a prompt where data.columns names none, in this order.
QUESTIONS = ("prompt", "question", "problem", "instruction")
# What an `instruction` is about, in another column: Alpaca's and Dolly's.
_MORE = ("input", "context")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?", re.IGNORECASE)


def column(row: Mapping[str, Any], data: Data, name: str) -> Any:
    """The value that data.columns gives the name of, such as `{prompt: question, answer: meta.target}`.

    Args:
        row: one row.
        data: the data part of the config.
        name: our name of the column.

    Returns:
        The value; None if the column is absent. A dot goes into a nested object, unless a column has it in its name.

    Raises:
        BadRow: the column is named in data.columns and the row lacks it.
    """
    wanted = data.columns.get(name, name)
    value: object = row
    if wanted in row:
        return row[wanted]
    for part in wanted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None and name in data.columns:
        raise BadRow(f"missing {wanted}")
    return value


def prompt_column(row: Mapping[str, Any], data: Data) -> tuple[str, Any]:
    """Name and value of the column that holds a row's prompt; the value is None where there is none.

    Raises:
        BadRow: the column is named in data.columns and the row lacks it.
    """
    if "prompt" in data.columns:
        return data.columns["prompt"], turns_or_text(column(row, data, "prompt"))
    name = next((known for known in QUESTIONS if row.get(known) is not None), "prompt")
    value = turns_or_text(row.get(name))
    more = next((row[key] for key in _MORE if isinstance(row.get(key), str) and row[key].strip()), None)
    if name == "instruction" and isinstance(value, str) and more is not None:
        value = f"{value}\n\n{more}"
    return name, value


def turns_or_text(value: object) -> Any:
    """A value of a row with a conversation that was kept as text read back; anything else as it is."""
    return _written_out(value) if isinstance(value, str) else value


def response_of(value: object, name: str) -> Response:
    """A response: a string, or a conversation whose only turn is the assistant's.

    Returns:
        Its text, or the turn where that also has reasoning or tool calls.

    Raises:
        BadRow: it is missing, of another type, or empty.
    """
    if value is None:
        raise BadRow(f"missing {name}")
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"empty {name}")
        return value
    messages = conversation(value, name)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise BadRow(f"{name} is not one assistant turn: {roles}")
    return plain_response(messages[0])


def plain_response(turn: Message) -> Response:
    """A turn of the assistant as its text, if it has nothing else."""
    return turn["content"] if set(turn) == {"role", "content"} else turn


def conversation(value: object, name: str) -> list[Message]:
    """A conversation as messages of role and content; `from`/`value` and lists of text parts are understood.

    Raises:
        BadRow: it is missing, of another type, or empty, or a turn has no content.
    """
    if value is None:
        raise BadRow(f"missing {name}")
    if isinstance(value, str):
        value = _written_out(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"{name} has the wrong type: {type(value).__name__}")
    if not value:
        raise BadRow(f"empty {name}")
    # An empty system turn says nothing, and some data sets write one in every row.
    turns = [turn for turn in value if not (isinstance(turn, dict) and _is_empty_system(turn))]
    if not turns:
        raise BadRow(f"empty {name}")
    return [_message(turn, name) for turn in turns]


def _written_out(text: str) -> Any:
    """A conversation that a table keeps as text, in JSON or as Python prints it; other text as it is."""
    import ast

    if not re.match(r"\s*\[\s*\{", text):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and all(
            isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in found
        ):
            return found
    return text


def _is_empty_system(turn: dict[str, Any]) -> bool:
    content = turn.get("content", turn.get("value"))
    return turn.get("role", turn.get("from")) == "system" and (content is None or content == "" or content == [])


def _message(turn: object, name: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"{name} has the wrong type: a turn is {type(turn).__name__}")
    if turn.get("function_call"):
        raise BadRow(f"{name} has a function_call: write it as tool_calls")
    more = _fields(turn)
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(part.get("text") or "" for part in content)
    if content is None and more.get("tool_calls"):
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRow(f"{name} has the wrong type: a turn needs a role and text")
    if not content.strip() and not more.get("tool_calls"):
        raise BadRow(f"empty {name}")
    return {"role": ROLES.get(role, role), "content": content, **more}


def _fields(turn: dict[str, Any]) -> Message:
    """What a turn has besides role and content that templates know; a table's empty cells are nothing."""
    found: Message = {key: turn[key] for key in ("name", "tool_call_id") if turn.get(key)}
    reasoning = next((turn[key] for key in _REASONING if turn.get(key)), None)
    if isinstance(reasoning, str) and reasoning.strip():
        found["reasoning_content"] = reasoning
    calls = _filled(_read(turn.get("tool_calls")))
    if calls:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise BadRow("tool_calls have the wrong type: a list of objects is needed")
        found["tool_calls"] = [_call(call) for call in calls]
    return found


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object, which templates write as JSON; OpenAI's form has them as text."""
    function = dict(call["function"]) if isinstance(call.get("function"), dict) else dict(call)
    if not isinstance(function.get("name"), str):
        raise BadRow("tool_calls have the wrong type: a call needs the name of a function")
    arguments = _read(function.get("arguments"))
    function["arguments"] = arguments if isinstance(arguments, dict) else function.get("arguments") or {}
    return {"type": "function", **call, "function": function} if "function" in call else {"function": function}


def tools_of(row: Mapping[str, Any], data: Data) -> Message:
    """What a row tells the template besides turns: `tools` and `chat_template_kwargs`, as lists, objects or JSON.

    Raises:
        BadRow: one has the wrong type.
    """
    found: Message = {}
    for name, kind in (("tools", list), ("chat_template_kwargs", dict)):
        value = _filled(_read(column(row, data, name)))
        if value:
            if not isinstance(value, kind) or (kind is list and not all(isinstance(one, dict) for one in value)):
                raise BadRow(f"{name} has the wrong type: {type(value).__name__}")
            found[name] = value
    return found


def _read(value: object) -> Any:
    """What a cell holds that may keep JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def _filled(value: object) -> Any:
    """A value without the empty fields that a table gives every object because some have them."""
    if isinstance(value, dict):
        return {key: _filled(one) for key, one in value.items() if one is not None}
    return [_filled(one) for one in value] if isinstance(value, list) else value


def dialogue(text: str) -> list[Message] | None:
    """Read `\\n\\nHuman: ... \\n\\nAssistant: ...` (the format of HH) as messages.

    Args:
        text: the whole dialogue.

    Returns:
        Messages with stripped contents, an empty last one allowed; None if the text is no such dialogue.
    """
    parts = _TURN.split(text.replace("\r\n", "\n"))
    if len(parts) < 3 or parts[0].strip():
        return None
    turns = zip(parts[1::2], parts[2::2])
    return [{"role": "user" if who.lower() == "human" else "assistant", "content": said.strip()} for who, said in turns]


def prompt_messages(value: object, data: Data, name: str = "prompt") -> list[Message]:
    """The prompt of a row as messages, with the config's system prompt and prompt template applied.

    Args:
        value: text (one user turn, or a Human/Assistant dialogue) or a conversation that ends with the user.
        data: the data part of the config.
        name: of the column, for the reason of a bad row.

    Returns:
        Messages; `{prompt}` in data.prompt_template is replaced by the text of the last user turn.

    Raises:
        BadRow: it is missing, of another type, empty, or ends with a turn of the assistant.
    """
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"empty {name}")
        messages = dialogue(value) or [{"role": "user", "content": value}]
        if messages[-1] == {"role": "assistant", "content": ""}:
            messages = messages[:-1]
        if not all(message["content"] for message in messages):
            raise BadRow(f"empty {name}")
    else:
        messages = conversation(value, name)
    if messages[-1]["role"] == "assistant":
        raise BadRow(f"{name} ends with a turn of the assistant")
    if data.prompt_template is not None:
        filled = data.prompt_template.replace("{prompt}", messages[-1]["content"])
        messages = [*messages[:-1], {**messages[-1], "content": filled}]
    if data.system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": data.system_prompt}, *messages]
    return messages


def with_tools(messages: list[Message], row: Mapping[str, Any], data: Data) -> list[Message]:
    """The prompt with the row's tools in its first message, where `template.render` takes them from."""
    more = tools_of(row, data)
    return [{**messages[0], **more}, *messages[1:]] if more else messages


def split_pair(chosen: object, rejected: object) -> tuple[Any, Response, Response]:
    """Split two full conversations into the prompt they share and the last turn of each.

    Args:
        chosen: a conversation, a Human/Assistant dialogue, or plain text.
        rejected: the same kind.

    Returns:
        (prompt as messages, chosen, rejected).

    Raises:
        BadRow: one is missing, they share no beginning, or they part before their last turn. Two plain texts have no
            prompt: words that they happen to begin with are none.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        first, second = dialogue(chosen), dialogue(rejected)
        if first is None or second is None:
            raise BadRow("missing prompt")
    else:
        first, second = conversation(chosen, "chosen"), conversation(rejected, "rejected")
    if first == second:
        raise BadRow("chosen equals rejected")
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    tails = first[shared:], second[shared:]
    if shared == 0:
        raise BadRow("missing prompt: chosen and rejected share no turn")
    if any([turn["role"] for turn in tail] != ["assistant"] for tail in tails):
        raise BadRow("chosen and rejected part before their last turn")
    return first[:shared], plain_response(tails[0][0]), plain_response(tails[1][0])
