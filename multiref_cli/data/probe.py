"""What a chat template does, found out by asking it: said in the dry run, kept in the manifest."""

from typing import Any

from multiref_cli.data.chat import conversation_ids, prompt_ids, prompt_text, shape_of
from multiref_cli.data.template import Message, attached_to, reads, render
from multiref_cli.errors import RequestError
from multiref_cli.types import Tokenizer

_ASKED: list[Message] = [{"role": "user", "content": "multirefquestion"}]
_SYSTEM, _ANSWER = "multirefsystem", "Multirefanswer"


def verdict(tokenizer: Tokenizer) -> str:
    """What a tokenizer makes of conversations, in one line.

    Raises:
        RequestError: its template writes neither what a user nor what an assistant says, or nothing ends a turn.
    """
    shape = shape_of(tokenizer)
    end = tokenizer.convert_ids_to_tokens(list(shape.ends))
    ends = f"a response ends with {end[0]}" + (f" (or {', '.join(end[1:])})" if end[1:] else "")
    if not tokenizer.chat_template:
        return f"no chat template: contents one to a line, the response directly behind them; {ends}"
    found = [_system(tokenizer), _own_text(tokenizer), _dated(tokenizer), _told(tokenizer)]
    if shape.opening:
        found.append(
            f"its generation prompt opens {shape.opening!r}: sampled responses go on from there, responses of the data "
            "that do not begin so are read as the template writes them, without it"
        )
    if shape.lead.strip():
        found.append(f"it writes {shape.lead!r} before a response, which is scored with it")
    found += [_joined(tokenizer), ends]
    return "; ".join(part for part in found if part)


def facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a manifest keeps of a tokenizer's rendering."""
    rendering = attached_to(tokenizer).rendering
    return {"date": rendering.date, "chat_template_kwargs": rendering.arguments, "verdict": verdict(tokenizer)}


def _system(tokenizer: Tokenizer) -> str:
    try:
        text = prompt_text(tokenizer, [{"role": "system", "content": _SYSTEM}, *_ASKED])
    except RequestError:
        return "it refuses a system turn"
    return "" if _SYSTEM in text else "it leaves out a system turn"


def _own_text(tokenizer: Tokenizer) -> str:
    """A system prompt of the template's own, which stands where a conversation brings none."""
    before = prompt_text(tokenizer, _ASKED).partition(_ASKED[0]["content"])[0]
    try:
        given = prompt_text(tokenizer, [{"role": "system", "content": _SYSTEM}, *_ASKED])
    except RequestError:
        return ""
    marks = given.partition(_ASKED[0]["content"])[0].partition(_SYSTEM)
    inside = before.removeprefix(marks[0]).removesuffix(marks[2]).strip()
    if not marks[1] or inside == before.strip() or not any(word.isalpha() for word in inside.split()):
        return ""
    return f"without a system turn it writes {inside!r} (data.system_prompt='' takes that away)"


def _dated(tokenizer: Tokenizer) -> str:
    if not reads(tokenizer, "strftime_now"):
        return ""
    return f"it writes a date, taken to be {attached_to(tokenizer).rendering.date} (data.date)"


def _told(tokenizer: Tokenizer) -> str:
    """Arguments that the template knows, as they are given, and those that it does not know."""
    given = attached_to(tokenizer).rendering.arguments
    unknown = [name for name in given if not reads(tokenizer, name)]
    told = [f"{name}={value}" for name, value in given.items() if reads(tokenizer, name)]
    parts = [f"told {', '.join(told)}"] if told else []
    return "; ".join(parts + ([f"it does not read {', '.join(unknown)}"] if unknown else []))


def _joined(tokenizer: Tokenizer) -> str:
    """Whether prompt and completion are the ids of the whole, and meet where a model would go on."""
    prompt, (completion,) = conversation_ids(tokenizer, _ASKED, [_ANSWER])
    whole = render(tokenizer, [*_ASKED, {"role": "assistant", "content": _ANSWER}], generation_prompt=False)
    ids = list(tokenizer(whole, add_special_tokens=False)["input_ids"])
    if ids[: len(prompt + completion)] != prompt + completion and shape_of(tokenizer).end:
        return "prompt and response are NOT the ids of the rendered conversation"
    if not shape_of(tokenizer).opening and prompt != prompt_ids(tokenizer, _ASKED):
        return "the first token of a response holds the end of the prompt too"
    return "prompt and response are the ids of the rendered conversation"
