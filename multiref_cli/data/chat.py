"""From messages to token ids: the one rule that policy, references, scorers and evaluation share.

A prompt is what the chat template writes up to the point where the assistant begins; a completion is the plain tokens
of the text and the token that ends the turn. Whatever the template writes after that token (ChatML leaves a newline)
is never scored, and neither is anything that it writes between the generation prompt and the text.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from multiref_cli.errors import RequestError
from multiref_cli.types import Tokenizer

Message = dict[str, str]

_PROBE = "multirefprobe"
_ends: WeakKeyDictionary = WeakKeyDictionary()


def prompt_text(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Write a conversation as the text that a model continues.

    Args:
        tokenizer: a transformers tokenizer, with or without a chat template.
        messages: role and content of each turn, the last one not of the assistant.

    Returns:
        The chat template with its generation prompt; without a template the contents, one to a line.

    Raises:
        RequestError: the template refuses the conversation, such as a system message where it knows none.
    """
    if not tokenizer.chat_template:
        return "\n".join(message["content"] for message in messages)
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise RequestError(f"The chat template refuses a conversation of {roles}: {error}.") from error


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Encode a conversation up to the point where the assistant begins.

    Args:
        tokenizer: a transformers tokenizer, with or without a chat template.
        messages: role and content of each turn.

    Returns:
        Token ids. Without a chat template the tokenizer adds its own opening token, if it has one, and no closing one.
    """
    text = prompt_text(tokenizer, messages)
    if tokenizer.chat_template:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(text)["input_ids"])
    bare = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    while len(ids) > bare and ids[-1] in closing:
        ids.pop()
    return ids


def completion_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a response: the tokens of its text and the token that ends the turn.

    Args:
        tokenizer: a transformers tokenizer.
        text: the response, without template or special tokens.

    Returns:
        Token ids, the last one `end_ids(tokenizer)[0]`.
    """
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], end_ids(tokenizer)[0]]


def end_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end a completion.

    Args:
        tokenizer: a transformers tokenizer.

    Returns:
        First the token that the chat template writes after a response (eos where it writes none), then eos and those of
        the generation_config.json beside the tokenizer, each once.

    Raises:
        RequestError: the tokenizer has neither.
    """
    known = _ends.get(tokenizer)
    if known is not None and known[0] == tokenizer.chat_template:
        return list(known[1])
    ends = [i for i in (_end_of_turn(tokenizer), tokenizer.eos_token_id, *_generation_ends(tokenizer)) if i is not None]
    if not ends:
        raise RequestError("The tokenizer has no eos token and its chat template ends no turn: set its eos_token.")
    ends = list(dict.fromkeys(ends))
    _ends[tokenizer] = (tokenizer.chat_template, ends)
    return list(ends)


def conversation_ids(tokenizer: Tokenizer, messages: Sequence[Message], text: str) -> list[int]:
    """Encode a prompt and its response as one sequence, as a reward model reads them."""
    return prompt_ids(tokenizer, messages) + completion_ids(tokenizer, text)


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
        for ids, scored in ((list(prompt), False), (list(completion), True))
        for piece in _pieces(tokenizer, ids)
    ]


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    pieces, shown = list[str](), ""
    for i in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[:i], skip_special_tokens=False))
        unfinished = text.endswith("\ufffd") and i < len(ids)
        if text.startswith(shown) and not unfinished:
            pieces.append(text[len(shown) :])
            shown = text
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


def _generation_ends(tokenizer: Tokenizer) -> list[int]:
    """What the model's own generation settings stop at: Llama 3 and Phi-3 name ids there that no template writes."""
    path = Path(str(getattr(tokenizer, "name_or_path", "") or "")) / "generation_config.json"
    if not path.is_file():
        return []
    ends = json.loads(path.read_bytes()).get("eos_token_id")
    return [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)]


def _end_of_turn(tokenizer: Tokenizer) -> int | None:
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _PROBE}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))
    tail = text.rpartition(_PROBE)[2]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((i for i in tokenizer(tail, add_special_tokens=False)["input_ids"] if i in special), None)
