"""From a conversation to token ids: the one rule that policy, references, scorers, fine-tuning and evaluation share.

The chat template renders the conversation whole, its last turn the response. Prompt ids and completion ids together are
the ids of that text up to the token that ends the turn, so thinking blocks, leading spaces and end tokens are those of
the template. The two meet where the generation prompt ends, or before, where the template goes on otherwise than its
own generation prompt. What it writes behind the end of the turn (ChatML a newline) is never scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

from multiref_cli.data.template import Attached, Message, Response, attached_to, render, squeezed
from multiref_cli.errors import RequestError
from multiref_cli.types import Tokenizer

_PROBE = "multirefprobe"
_shapes: "WeakKeyDictionary[Tokenizer, tuple[Any, Attached, Shape]]" = WeakKeyDictionary()


def prompt_text(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Write a conversation as the text that a model continues.

    Args:
        tokenizer: a transformers tokenizer, with or without a chat template.
        messages: role and content of each turn, the last one not of the assistant.

    Returns:
        The chat template with its generation prompt; without a template the contents, one to a line.

    Raises:
        RequestError: the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        return "\n".join(message["content"] for message in messages)
    return render(tokenizer, messages, generation_prompt=True)


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Encode a conversation up to the point where a model goes on.

    Args:
        tokenizer: a transformers tokenizer, with or without a chat template.
        messages: role and content of each turn.

    Returns:
        Token ids. Without a chat template the tokenizer adds its own opening token, if it has one, and no closing one.
    """
    return text_ids(tokenizer, prompt_text(tokenizer, messages))


def conversation_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    responses: Sequence[Response],
    finished: bool = True,
    opened: tuple[str, list[int]] | None = None,
) -> tuple[list[int], list[list[int]]]:
    """Encode a prompt and the responses to it.

    Args:
        tokenizer: a transformers tokenizer.
        messages: role and content of each turn of the prompt.
        responses: one or more; they share the ids of the prompt, which end where the first of them departs.
        finished: whether the responses ended; else they have no end token.
        opened: the prompt as `prompt_text` writes it, and its ids, where they are known.

    Returns:
        (prompt ids, completion ids of each response): together the ids of the rendered conversation up to the end of
        the turn. Without a template a response follows its prompt directly; where the two would share a token the
        response is encoded alone, since that is where a model would go on.

    Raises:
        RequestError: the template refuses the conversation, or leaves out a part of the response.
    """
    text = prompt_text(tokenizer, messages) if opened is None else opened[0]
    prompt, end = text_ids(tokenizer, text) if opened is None else opened[1], end_ids(tokenizer)[0]
    if not tokenizer.chat_template:
        completions = [_continued(tokenizer, prompt, text, said(response)) for response in responses]
        return prompt, [[*ids, end] if finished else ids for ids in completions]
    turns = [written_turn(tokenizer, messages, response, text) for response in responses]
    shortest = min((turn.before for turn in turns), key=len)
    if shortest != text:
        prompt = text_ids(tokenizer, shortest)
    written = [turn.before + turn.said + (turn.end if finished else "") for turn in turns]
    wholes: list[list[int]] = tokenizer(written, add_special_tokens=False)["input_ids"]
    while any(whole[: len(prompt)] != prompt for whole in wholes):
        prompt = prompt[:-1]
    closing = [[] if turn.end or not finished else [end] for turn in turns]
    return prompt, [whole[len(prompt) :] + more for whole, more in zip(wholes, closing)]


@dataclass(frozen=True)
class Shape:
    """What a chat template writes around a response, learned from one.

    Attributes:
        opening: what the generation prompt writes of the response itself, such as `<think>` and a newline.
        lead: what stands between the generation prompt, without its opening, and the response.
        end: from the response to the token that ends the turn, that token included; empty where none is written.
        after: what is written behind that token.
        ends: the ids that end a completion, that of the template first.
    """

    opening: str = ""
    lead: str = ""
    end: str = ""
    after: str = ""
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class WrittenTurn:
    """A response as the chat template writes it: text up to where the completion begins, the completion, its end."""

    before: str
    said: str
    end: str


def written_turn(tokenizer: Tokenizer, messages: Sequence[Message], response: Response, opened: str) -> WrittenTurn:
    """Where a response lies in the rendered conversation.

    Args:
        tokenizer: with a chat template.
        messages: the prompt.
        response: what answers it.
        opened: the prompt with the generation prompt, from `prompt_text`.

    Raises:
        RequestError: the template refuses the conversation, or leaves out reasoning or tool calls.
    """
    shape, text = shape_of(tokenizer), said(response)
    turn = {"role": "assistant", "content": response} if isinstance(response, str) else response
    whole = render(tokenizer, [*messages, turn], generation_prompt=False)
    header = opened.removesuffix(shape.opening)
    for known in dict.fromkeys((text, text.strip(), text.rstrip(), text.lstrip())):
        if isinstance(response, str) and whole == header + shape.lead + known + shape.end + shape.after:
            return _bordered(opened, header, shape.lead + known, shape.end)
    before = header if whole.startswith(header) else _shared(opened, whole)
    start, stop = _end_token(tokenizer, whole, len(before))
    body = whole[len(before) : start]
    _refuse_lost(turn, body)
    if squeezed(text) not in squeezed(body):
        body = text  # such as a thinking block that the template drops: written as it is, where the turn begins
    return _bordered(opened, before, body, whole[start:stop])


def _bordered(opened: str, before: str, body: str, end: str) -> WrittenTurn:
    """The completion begins behind the generation prompt where the response continues that, else with its turn."""
    border = len(opened) if (before + body).startswith(opened) else len(before)
    return WrittenTurn((before + body)[:border], (before + body)[border:], end)


def said(response: Response) -> str:
    """The text of a response, without reasoning and tool calls."""
    return response if isinstance(response, str) else str(response["content"] or "")


def shape_of(tokenizer: Tokenizer) -> Shape:
    """What the tokenizer's template writes around a response.

    Raises:
        RequestError: a template that does not write what it is given, or no token that ends a turn.
    """
    known, key = _shapes.get(tokenizer), (tokenizer.chat_template, attached_to(tokenizer))
    if known is None or known[:2] != key:
        known = (*key, _learned(tokenizer))
        _shapes[tokenizer] = known
    return known[2]


def _learned(tokenizer: Tokenizer) -> Shape:
    more = (tokenizer.eos_token_id, *attached_to(tokenizer).ends)
    if not tokenizer.chat_template:
        return Shape(ends=_some([], more, tokenizer))
    asked = [{"role": "user", "content": "hello"}]
    opened = prompt_text(tokenizer, asked)
    whole = render(tokenizer, [*asked, {"role": "assistant", "content": _PROBE}], generation_prompt=False)
    before, _, tail = whole.rpartition(_PROBE)
    if "hello" not in before:
        raise RequestError("The chat template does not write what user and assistant say: give another tokenizer.")
    header = _shared(opened, before)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    end = next((i for i in ids if i in special), None)
    token = "" if end is None else str(tokenizer.convert_ids_to_tokens(end))
    stop = tail.find(token) + len(token) if token else 0
    ends = _some([end], more, tokenizer)
    return Shape(opened[len(header) :], before[len(header) :], tail[:stop], tail[stop:], ends)


def _some(first: Sequence[int | None], more: Sequence[int | None], tokenizer: Tokenizer) -> tuple[int, ...]:
    ends = dict.fromkeys(i for i in (*first, *more) if i is not None)
    if ends:
        return tuple(ends)
    if tokenizer.sep_token_id is None:
        raise RequestError("The tokenizer has no eos token and its chat template ends no turn: set its eos_token.")
    # BERT and its kin, a reward model's trunk, have no eos: their separator ends a text.
    return (tokenizer.sep_token_id,)


def after_end_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that the template writes behind the end of the assistant's turn; ChatML: a newline."""
    shape = shape_of(tokenizer)
    return text_ids(tokenizer, shape.end + shape.after)[len(text_ids(tokenizer, shape.end)) :] if shape.after else []


def end_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end a completion.

    Args:
        tokenizer: a transformers tokenizer.

    Returns:
        First the token that the chat template writes after a response (eos where it writes none), then eos and those of
        the model's generation settings (see `template.attach`), each once. Where there is none of these, the separator.

    Raises:
        RequestError: the tokenizer has none of them.
    """
    return list(shape_of(tokenizer).ends)


def completion_mask(tokenizer: Tokenizer, prompt: Sequence[int], completion: Sequence[int]) -> list[tuple[str, bool]]:
    """Show which tokens of a row are scored.

    Args:
        tokenizer: the tokenizer of the ids.
        prompt: ids of the prompt.
        completion: ids of the completion.

    Returns:
        (text of the token, whether it is scored), in order; together they decode to the whole sequence. Tokens that
        form one character only together come as one piece.
    """
    return [
        (piece, scored)
        for ids, scored in ((prompt, False), (completion, True))
        for piece, _ in token_pieces(tokenizer, ids)
    ]


def token_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, int]]:
    """(text, number of tokens) of the pieces that ids decode to; mostly one token each, see `completion_mask`."""
    pieces, shown, first, ids = list[tuple[str, int]](), "", 0, list(ids)
    for i in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[:i], skip_special_tokens=False))
        unfinished = text.endswith("\ufffd") and i < len(ids)
        if text.startswith(shown) and not unfinished:
            pieces.append((text[len(shown) :], i - first))
            shown, first = text, i
    return pieces


def control_token(tokenizer: Tokenizer, text: str) -> str | None:
    """The first special token that is written out in a text, where it would act as one; None if there is none.

    Args:
        tokenizer: a transformers tokenizer.
        text: what somebody wrote, without template.
    """
    return next((token for token in getattr(tokenizer, "all_special_tokens", ()) if token and token in text), None)


def without_end(tokenizer: Tokenizer, text: str) -> str:
    """A response without the end token that some data sets write behind it, and the blank space after that token."""
    if not getattr(tokenizer, "all_special_tokens", ()):
        return text
    for end in tokenizer.convert_ids_to_tokens(end_ids(tokenizer)):
        if end in tokenizer.all_special_tokens and text.rstrip().endswith(end):
            return text.rstrip().removesuffix(end)
    return text


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a rendered text; without a chat template the tokenizer's own opening token comes first."""
    if tokenizer.chat_template:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(text)["input_ids"])
    bare = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    while len(ids) > bare and ids[-1] in closing:
        ids.pop()
    return ids


def _continued(tokenizer: Tokenizer, prompt: list[int], opened: str, text: str) -> list[int]:
    whole = text_ids(tokenizer, opened + text)
    if whole[: len(prompt)] == prompt:
        return whole[len(prompt) :]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _end_token(tokenizer: Tokenizer, whole: str, start: int) -> tuple[int, int]:
    """Where the token that ends the turn begins and stops in a rendered conversation; twice its end without one."""
    for number in end_ids(tokenizer):
        token = str(tokenizer.convert_ids_to_tokens(number) or "")
        place = whole.rfind(token, start) if token else -1
        if place >= 0:
            return place, place + len(token)
    return len(whole), len(whole)


def _shared(first: str, second: str) -> str:
    """What two texts begin with alike."""
    return first[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second)))]


def _refuse_lost(turn: Message, written: str) -> None:
    reasoning = turn.get("reasoning_content")
    if reasoning and squeezed(reasoning) not in squeezed(written):
        raise RequestError("The chat template leaves out the reasoning_content of a response.")
    for call in turn.get("tool_calls") or ():
        if str(call.get("function", call).get("name")) not in written:
            raise RequestError("The chat template leaves out the tool_calls of a response.")
