"""A reference behind an OpenAI-compatible completions server (vLLM, SGLang): it scores token ids, and samples.

What is sent is token ids, so that nothing is tokenized twice; what comes back is one log-probability a token of the
prompt (`echo` with `logprobs`), normalized over all ids of the served model. The server is known by the name of its
model, by its tokens and by what it says of a probe; see `served_identity`.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiref_cli.config import schema
from multiref_cli.data.template import Rendering
from multiref_cli.errors import RequestError, RunError
from multiref_cli.models.load import load_tokenizer
from multiref_cli.models.packing import Packed, sequences_of
from multiref_cli.references.client import Client, Refused
from multiref_cli.references.completions import COMPLETIONS, choice_of, drawing, drawn_tokens, question, reader
from multiref_cli.references.served_identity import Seen, far_from, known_as, probe_text
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.seeding import derive
from multiref_cli.types import Device, Tokenizer

_TOKENIZE = "/tokenize"


@dataclass(frozen=True)
class Serving:
    """What served references need of a run.

    Attributes:
        tokenizer: of the policy, which a reference without a tokenizer of its own has too.
        known: folder in which is kept what servers were known by.
    """

    tokenizer: Tokenizer
    known: Path


def tokenizer_of(spec: schema.ReferenceSpec, policy: Tokenizer, rendering: Rendering | None = None) -> Any:
    """The tokenizer of a reference: of its folder, or the one that it names; a served one that names none has the
    policy's.

    Raises:
        RequestError: see `load_tokenizer`.
    """
    if spec.server is None:
        return load_tokenizer(spec, rendering)
    return load_tokenizer(schema.Model(path=spec.tokenizer), rendering) if spec.tokenizer else policy


class ServedReference:
    """A frozen model that a server answers for; see `references.base.Reference`."""

    # Full-vocabulary work needs more than a number a token.
    model = None
    # The server's own affair.
    dtype = "served"

    def __init__(self, spec: schema.ReferenceSpec, serving: Serving, rendering: Rendering | None = None) -> None:
        """Takes note; the server is asked nothing.

        Args:
            spec: of the config, with a server.
            serving: what it needs of the run.
            rendering: what its chat template is told.
        """
        self.spec, self.name = spec, spec.name
        self._serving, self._rendering, self._seen = serving, rendering, None
        self._waiting: dict[tuple[int, ...], Future[list[float]]] = {}
        self._new_tokens = 0

    @cached_property
    def tokenizer(self) -> Any:
        """The one that the spec names, else the policy's."""
        return tokenizer_of(self.spec, self._serving.tokenizer, self._rendering)

    def fingerprint(self) -> str:
        """What the server is known by: its model's name, and what that says of a probe, up to rounding.

        Raises:
            RequestError: it cannot be reached, serves another model, or has other tokens.
        """
        return self._identity[0]

    def confirm(self) -> None:
        """Ask again who is there, after something was computed.

        Raises:
            RunError: another model than before.
        """
        _, before = self._identity
        try:
            far = far_from(before.logps, self._look().logps)
        except RequestError as error:
            raise RunError(f"{error} What it said since it was last asked is not kept.") from error
        if far is not None:
            raise RunError(
                f"reference {self.name}: {self.spec.server} serves another model than before under the name "
                f"{self.spec.model} ({far}); what it said since it was last asked is not kept: start the first one "
                "again, then run this again."
            )

    def expect(self, rows: Packed) -> None:
        """Ask for what `token_logps` will be asked for, and do not wait."""
        for prompt, completion in sequences_of(rows):
            if completion:
                self._submit((*prompt, *completion))

    def token_logps(self, rows: Packed, temperature: float = 1.0, vocabulary: int | None = None) -> Tensor:
        """(B, T) log-probabilities of the completion tokens, at temperature 1 alone, over all ids of the model.

        Raises:
            RunError: no usable answer after some tries.
        """
        if temperature != 1:
            raise ValueError("a server says log-probabilities at temperature 1 alone")
        sequences, found = sequences_of(rows), torch.zeros(rows.mask.shape)
        self.expect(rows)
        with self._giving_up():
            for row, (prompt, completion) in enumerate(sequences):
                if completion:
                    values = self._submit((*prompt, *completion)).result()[len(prompt) :]
                    found[row, : len(completion)] = torch.tensor(values)
        for prompt, completion in sequences:
            self._waiting.pop((*prompt, *completion), None)
        return found

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        sampling: Sampling,
        seeds: list[int],
        batch_size: int,
        vocabulary: int | None = None,
    ) -> list[list[Completion]]:
        """[P][G] responses. Where the server does not say which ids it drew they are those of its text, and their
        log-probabilities are not known (nan)."""
        waiting = [
            [self._draw(prompt, sampling, derive(seed, "served", number)) for number in range(group_size)]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        with self._giving_up():
            return [[one.result() for one in group] for group in waiting]

    def visiting(self, device: Device) -> AbstractContextManager[None]:
        """It has no device here."""
        return nullcontext()

    def release(self) -> None:
        """Drop whatever was asked for."""
        self._waiting.clear()
        self._client.close()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Where one question has no answer, or nobody waits any more, the others are dropped."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    @cached_property
    def _client(self) -> Client:
        spec, key = self.spec, None
        if spec.api_key_env is not None:
            key = os.environ.get(spec.api_key_env)
            if not key:
                raise RequestError(
                    f"reference {self.name}: the environment variable {spec.api_key_env}, which holds the key of "
                    f"{spec.server}, is empty: set it."
                )
        return Client(spec.server or "", key, spec.concurrency, spec.timeout_seconds)

    @cached_property
    def _identity(self) -> tuple[str, Seen]:
        self._check_tokens()
        seen = self._look()
        return known_as(self._serving.known, seen), seen

    def _check_tokens(self) -> None:
        """Refuse a server whose tokens are others than those that it will be sent."""
        text = probe_text(self.tokenizer)
        body = {"model": self.spec.model, "prompt": text, "add_special_tokens": False}
        own = "tokenizer=PATH" if self.spec.tokenizer is None else f"another tokenizer than {self.spec.tokenizer}"
        try:
            theirs = self._asked(lambda: self._client.post(_TOKENIZE, body, lambda answer: list(answer["tokens"])))
        except Refused as error:
            if self.spec.tokenizer is not None:  # the user says which tokens they are
                return
            raise RequestError(
                f"reference {self.name}: {self.spec.server} does not say how it tokenizes (status {error.status}), so "
                "its tokens cannot be compared with the policy's: give its tokenizer=PATH."
            ) from error
        if theirs != self._ids(text):
            raise RequestError(
                f"reference {self.name}: the tokens of {self.spec.model} at {self.spec.server} are not those of "
                f"{self.spec.tokenizer or 'the policy'}: give {own} (a folder or Hub id)."
            )

    def _look(self) -> Seen:
        """Which model is served now, and what it says of the probe."""
        spec, ids = self.spec, self._ids(probe_text(self.tokenizer))
        try:
            listed = self._asked(lambda: self._client.get("/v1/models"))
            names = [str(one.get("id")) for one in listed.get("data") or ()]
            if spec.model not in names:
                raise RequestError(
                    f"reference {self.name}: {spec.server} serves {', '.join(names) or 'nothing'}, not {spec.model}."
                )
            try:
                logps = self._probe(ids)
            except Refused:  # not every server takes a completion without a token
                self._new_tokens = 1
                logps = self._probe(ids)
        except Refused as error:
            raise RequestError(f"reference {self.name}: {error}") from error
        return Seen(str(spec.model), ids, logps)

    def _probe(self, ids: list[int]) -> list[float]:
        return self._asked(lambda: self._client.post(COMPLETIONS, self._question(ids), reader(ids)))[1:]

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """What a server answers at once.

        Raises:
            RequestError: nothing.
            Refused: it says no.
        """
        try:
            return ask()
        except Refused:
            raise
        except RunError as error:
            raise RequestError(f"reference {self.name}: {error}") from error

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _submit(self, ids: tuple[int, ...]) -> "Future[list[float]]":
        if ids not in self._waiting:
            self._waiting[ids] = self._client.submit(COMPLETIONS, self._question(ids), reader(ids))
        return self._waiting[ids]

    def _question(self, ids: Sequence[int]) -> dict[str, Any]:
        return question(str(self.spec.model), ids, self._new_tokens)

    def _draw(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> "Future[Completion]":
        body = drawing(str(self.spec.model), prompt, sampling, seed % 2**31)
        return self._client.submit(COMPLETIONS, body, lambda answer: self._drawn(answer, sampling))

    def _drawn(self, answer: dict[str, Any], sampling: Sampling) -> Completion:
        choice = choice_of(answer)
        finished, found = choice.get("finish_reason") == "stop", drawn_tokens(choice)
        if found is None:
            ids = self._ids(str(choice["text"]))
            values = [math.nan] * len(ids)
        else:
            ids, values = found
        if finished and sampling.end_ids and (not ids or ids[-1] not in sampling.end_ids):
            ids, values = [*ids, sampling.end_ids[0]], [*values, math.nan]
        return Completion(ids, values, finished)
