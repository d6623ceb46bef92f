"""Reading one row: plain text, conversations, implicit prompts and the old Human/Assistant dialogues as messages."""

import re
from collections.abc import Mapping
from typing import Any

from multiref_cli.config.schema import Data
from multiref_cli.data.chat import Message
from multiref_cli.data.rows import BadRow

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


def turns_or_text(value: object) -> Any:
    """A value of a row with a conversation that was kept as text read back; anything else as it is."""
    return _written_out(value) if isinstance(value, str) else value


def text_of(value: object, name: str) -> str:
    """A response as text: a string, or a conversation whose only turn is the assistant's.

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
    return messages[0]["content"]


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
    import json

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
    if turn.get("tool_calls") or turn.get("function_call"):
        raise BadRow(f"{name} calls a tool, which is not supported")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(part.get("text") or "" for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRow(f"{name} has the wrong type: a turn needs a role and text")
    if not content.strip():
        raise BadRow(f"empty {name}")
    return {"role": ROLES.get(role, role), "content": content}


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


def split_pair(chosen: object, rejected: object) -> tuple[Any, str, str]:
    """Split two full conversations into the prompt they share and the last turn of each.

    Args:
        chosen: a conversation, a Human/Assistant dialogue, or plain text.
        rejected: the same kind.

    Returns:
        (prompt as messages or text, chosen text, rejected text). For plain text the prompt is the shared beginning up
        to the last whitespace.

    Raises:
        BadRow: one is missing, they share no beginning, or they part before their last turn.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        first, second = dialogue(chosen), dialogue(rejected)
        if first is None or second is None:
            return _split_text(chosen, rejected)
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
    return first[:shared], tails[0][0]["content"], tails[1][0]["content"]


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    for text, name in ((chosen, "chosen"), (rejected, "rejected")):
        if not text.strip():
            raise BadRow(f"empty {name}")
    if chosen.strip() == rejected.strip():
        raise BadRow("chosen equals rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    if not chosen[:shared].strip():
        raise BadRow("missing prompt: chosen and rejected share no beginning")
    return chosen[:shared], chosen[shared:], rejected[shared:]
