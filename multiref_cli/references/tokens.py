"""Tokens of references beside those of a policy: do they fit, and how is a text scored under other tokens."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from multiref_cli.config.schema import Level
from multiref_cli.data.chat import conversation_ids, end_ids, shape_of
from multiref_cli.data.template import Message, Response, attached_to, reads
from multiref_cli.errors import RequestError
from multiref_cli.types import Tokenizer


def check_compatible(tokenizer: Tokenizer, references: Mapping[str, Any], level: Level) -> int:
    """Checks that references can score what the policy writes.

    A reference shares the policy's tokenizer if every token of the policy has the same id there; further tokens of its
    own, and a padded output head, do no harm: all models normalize over the policy's ids alone. At sequence level a
    reference with another tokenizer reads the text under its own.

    Args:
        tokenizer: of the policy.
        references: name -> tokenizer of that reference.
        level: where the mean over references is taken.

    Returns:
        Number of ids that policy and references normalize over.

    Raises:
        RequestError: token level with another tokenizer; names the reference and the first differing token.
    """
    for name, other in references.items():
        difference = first_difference(tokenizer, other)
        if difference is not None and level == Level.token:
            raise RequestError(
                f"reference {name} has another tokenizer than the policy: {difference}; "
                "regularizer.level=token needs one vocabulary: use level=sequence or another reference."
            )
    return max(tokenizer.get_vocab().values()) + 1


def first_difference(tokenizer: Tokenizer, other: Tokenizer) -> str | None:
    """The policy's first token, by id, that the other tokenizer does not have under this id; None if there is none."""
    theirs = other.get_vocab()
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            place = f"id {theirs[token]}" if token in theirs else "no token"
            return f"token {token!r} is id {number} for the policy and {place} there"
    return None


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 of the tokenizer's rules; its padding and truncation of the moment do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    return _sha256({key: value for key, value in rules.items() if key not in ("padding", "truncation")})


def template_fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 of the chat template and of what it is told, where that can change what it writes."""
    rendering, template = attached_to(tokenizer).rendering, tokenizer.chat_template
    told = {name: value for name, value in rendering.arguments.items() if reads(tokenizer, name)}
    dated = reads(tokenizer, "strftime_now")
    return _sha256([template, told, rendering.date] if told or dated else template)


def rescored_ids(sequence: Any, policy_tokenizer: Tokenizer, own_tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Prompt and completion of a response under a reference's own tokenizer and chat template.

    A response that was truncated, so that it does not end with an end token, is scored up to the same place of its
    text, without one.

    Args:
        sequence: a `store.Sequence` under the policy's tokens.
        policy_tokenizer: made its ids.
        own_tokenizer: of the reference.
    """
    finished = bool(sequence.completion) and sequence.completion[-1] in end_ids(policy_tokenizer)
    text = sequence.text
    if not finished:
        # What was cut off is known by tokens alone; what the policy's template writes before a response is no text.
        decoded = str(policy_tokenizer.decode(list(sequence.completion), skip_special_tokens=True))
        lead = shape_of(policy_tokenizer).lead
        text = decoded.removeprefix(lead if lead.strip() else "")
    return response_ids(own_tokenizer, sequence.messages, text, finished)


def response_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], response: Response, finished: bool
) -> tuple[list[int], list[int]]:
    """Prompt and completion of a text under a tokenizer and its chat template; no end token unless it is finished."""
    prompt, (completion,) = conversation_ids(tokenizer, messages, [response], finished)
    return prompt, completion


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
