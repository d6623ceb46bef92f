"""Reference models beside a policy: do their tokens fit, how is a text scored under other tokens, who shares memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from multiref_cli.config.schema import Level
from multiref_cli.data.chat import completion_ids, end_ids, prompt_ids
from multiref_cli.errors import RequestError
from multiref_cli.models.decoder import Adapted
from multiref_cli.models.load import load_causal_lm, require_peft, resolve


def check_compatible(tokenizer: Any, references: Mapping[str, Any], level: Level) -> int:
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


def first_difference(tokenizer: Any, other: Any) -> str | None:
    """The policy's first token, by id, that the other tokenizer does not have under this id; None if there is none."""
    theirs = other.get_vocab()
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            place = f"id {theirs[token]}" if token in theirs else "no token"
            return f"token {token!r} is id {number} for the policy and {place} there"
    return None


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of the tokenizer's rules; its padding and truncation of the moment do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    return _sha256({key: value for key, value in rules.items() if key not in ("padding", "truncation")})


def template_fingerprint(tokenizer: Any) -> str:
    """sha256 of the chat template."""
    return _sha256(tokenizer.chat_template)


def rescored_ids(sequence: Any, policy_tokenizer: Any, own_tokenizer: Any) -> tuple[list[int], list[int]]:
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
        text = policy_tokenizer.decode(list(sequence.completion), skip_special_tokens=True)
    return response_ids(own_tokenizer, sequence.messages, text, finished)


def response_ids(tokenizer: Any, messages: Any, text: str, finished: bool) -> tuple[list[int], list[int]]:
    """Prompt and completion of a text under a tokenizer and its chat template; no end token unless it is finished."""
    completion = completion_ids(tokenizer, text)
    return prompt_ids(tokenizer, messages), completion if finished else completion[:-1]


def load_references(references: Sequence[Any], device: Any = "cpu", dtype: str | None = None) -> list[Any]:
    """Opens K frozen references that stay resident together; adapters of one base share its memory.

    Args:
        references: schema.Reference each.
        device: torch device of all.
        dtype: parameter type of those that name none.

    Returns:
        K models, in the same order, for `token_logps`, `token_divergence` and `normalizers`.

    Raises:
        RequestError: see `load_causal_lm`.
    """
    bases: dict[tuple[Any, ...], list[int]] = {}
    for index, reference in enumerate(references):
        key = (reference.path, reference.revision, reference.dtype or dtype, reference.trust_remote_code)
        bases.setdefault(key, []).append(index)
    models: list[Any] = [None] * len(references)
    for (*_, kind, _), members in bases.items():
        adapters = {references[i].adapter for i in members if references[i].adapter}
        if len(members) == 1 or not adapters:
            model = load_causal_lm(references[members[0]], device, kind)
            opened = [model] * len(members)
        else:
            opened = _share_base([references[i] for i in members], device, kind)
        for index, model in zip(members, opened):
            models[index] = model
    return models


def _share_base(references: Sequence[Any], device: Any, dtype: str | None) -> list[Adapted]:
    from types import SimpleNamespace

    peft = require_peft()
    bare = SimpleNamespace(**{k: getattr(references[0], k) for k in ("path", "revision", "dtype", "trust_remote_code")})
    bare.adapter = None
    model: Any = load_causal_lm(bare, device, dtype)
    names: dict[str, str] = {}
    for reference in references:
        if reference.adapter and reference.adapter not in names:
            names[reference.adapter] = f"adapter_{len(names)}"
            folder, name = str(resolve(reference.adapter)), names[reference.adapter]
            if len(names) == 1:
                model = peft.PeftModel.from_pretrained(model, folder, adapter_name=name)
            else:
                model.load_adapter(folder, adapter_name=name)
    model = model.to(device).eval().requires_grad_(False)
    return [Adapted(model, names.get(reference.adapter)) for reference in references]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
