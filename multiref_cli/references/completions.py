"""The protocol of OpenAI-compatible completions servers as vLLM speaks it: token ids out, log-probabilities back."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiref_cli.rollouts.engine import Sampling

COMPLETIONS = "/v1/completions"
# How vLLM writes a token whose id was asked for.
_ID = "token_id:"
# What vLLM writes for a log-probability that JSON cannot hold: minus infinity.
_LEAST = -9999.0


def question(model: str, ids: Sequence[int], new_tokens: int) -> dict[str, Any]:
    """Asks for the log-probabilities of all of these ids but the first, at temperature 1 over all ids of the model.

    Args:
        model: its name on the server.
        ids: at least one.
        new_tokens: that are drawn besides: 0, or 1 where a server wants to draw something.
    """
    return {
        "model": model,
        "prompt": [int(one) for one in ids],
        "max_tokens": new_tokens,
        "temperature": 1.0,
        "echo": True,
        "logprobs": 1,  # SGLang takes 0 for no
        "return_tokens_as_token_ids": True,
    }


def drawing(model: str, prompt: Sequence[int], sampling: "Sampling", seed: int) -> dict[str, Any]:
    """Asks for one response to a prompt with the ids and log-probabilities that were drawn.

    Args:
        model: its name on the server.
        prompt: token ids.
        sampling: how to draw.
        seed: of this response, as large as the server takes it.
    """
    return {
        "model": model,
        "prompt": [int(one) for one in prompt],
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,  # left out, a server may take what the model's folder recommends
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "seed": seed,
        "stop_token_ids": list(sampling.end_ids),
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
    }


def drawn_tokens(choice: dict[str, Any]) -> tuple[list[int], list[float]] | None:
    """Ids that were drawn and their log-probabilities; None where the server does not say ids.

    Raises:
        ValueError: there are not as many of one as of the other.
    """
    found = choice.get("logprobs") or {}
    tokens, logps = found.get("tokens") or [], found.get("token_logprobs") or []
    if not tokens or not all(str(one).startswith(_ID) for one in tokens):
        return None
    if len(tokens) != len(logps):
        raise ValueError(f"{len(logps)} log-probabilities for {len(tokens)} tokens")
    return [int(str(one).removeprefix(_ID)) for one in tokens], [float(one) for one in logps]


def choice_of(answer: dict[str, Any]) -> dict[str, Any]:
    """The only choice of an answer to one prompt.

    Raises:
        ValueError: there are none, or several.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError("an answer without its one choice")
    return choices[0]


def reader(ids: Sequence[int]) -> Callable[[dict[str, Any]], list[float]]:
    """Reads the log-probabilities of some ids out of an answer, the first one nan: nothing comes before it."""

    def read(answer: dict[str, Any]) -> list[float]:
        """N numbers.

        Raises:
            ValueError: there are fewer, or they are about other tokens.
        """
        found = choice_of(answer).get("logprobs") or {}
        values, tokens = found.get("token_logprobs") or [], found.get("tokens") or []
        if len(values) not in (len(ids), len(ids) + 1):  # one more where a token was drawn too
            raise ValueError(f"{len(values)} log-probabilities for {len(ids)} tokens")
        for token, one in zip(tokens, ids):
            if str(token).startswith(_ID) and str(token) != f"{_ID}{int(one)}":
                raise ValueError(f"a log-probability of {token} where {int(one)} was asked for")
        values = values[1 : len(ids)]
        if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in values):
            raise ValueError("log-probabilities that are no numbers")
        return [math.nan, *(-math.inf if one <= _LEAST else float(one) for one in values)]

    return read
