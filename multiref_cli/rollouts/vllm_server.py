"""Rollouts from a vLLM server in processes of its own, or on other GPUs: started here, or one that runs already.

Tried with vLLM 0.32 on a CPU. Weights are written to a folder that server and trainer see, and read by vLLM's own
`reload_weights`, which its development endpoint /collective_rpc calls (VLLM_SERVER_DEV_MODE=1). The first weights that
a server gets are the negative of the policy's: whatever an update does not reach is then far from the policy at the
first probe. Another probe after every generation finds a server that was started anew in between.
"""

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from multiref_cli.config.schema import Rollout
from multiref_cli.errors import RequestError, RunError
from multiref_cli.references.client import Client, Refused
from multiref_cli.references.completions import COMPLETIONS, choice_of, drawing, drawn_tokens, question, reader
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.rollouts.handoff import Handoff, new_folder, refuse_far
from multiref_cli.rollouts.own_server import OwnServer
from multiref_cli.rollouts.vllm_engine import seed_of

_RPC = "/collective_rpc"
# Seconds between two looks at a server that is being started, or that is waited for.
_POLL_SECONDS = 0.5
# How far from 0 the log-probability of a token may be that is sampled for certain.
_CERTAIN = 1e-3


class VllmServer:
    """Samples from a vLLM server, one question a response; see `rollouts.engine.Engine`."""

    # Its kernels round differently from the trainer's.
    exact_logps = False

    def __init__(self, policy: Handoff, rollout: Rollout, place: Path) -> None:
        """Takes note; nothing is started or asked before the first generation.

        Args:
            policy: in training.
            rollout: with a `server`: `start`, or a URL.
            place: where weights are written; a server on another machine must see it too.
        """
        self.policy, self.rollout, self.place = policy, rollout, place
        self.sleep = rollout.starts_server and bool(rollout.options.get("sleep"))
        self._own: OwnServer | None = None
        self._client: Client | None = None
        self._model, self._folder, self._written = "", Path(), 0

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, seeds: list[int]
    ) -> list[list[Completion]]:
        """Draws `group_size` completions of each prompt; see `Engine.generate` and `VllmEngine.generate`.

        Raises:
            RequestError: the first time, where no server answers, or it is none that takes weights.
            RunError: the server is gone, hangs or refuses, or has other weights than the policy.
        """
        ids = self.policy.probe(prompts)
        client = self._client or self._opened()
        self._synchronize(client)
        self._check(client, ids)
        bodies = [
            self._question(prompt, sampling, seed_of(seed, g))
            for prompt, seed in zip(prompts, seeds, strict=True)
            for g in range(group_size)
        ]
        flat = self._answers(client, bodies, sampling)
        self._check(client, ids)
        if self.sleep:
            client.post("/sleep?level=2", {}, dict)
        return [flat[start : start + group_size] for start in range(0, len(flat), group_size)]

    def close(self) -> None:
        """End a server that was started here, and delete what was written for it."""
        if self._client is not None:
            self._client.close()
        if self._own is not None:
            self._own.close()
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)
        self._client, self._own, self._folder = None, None, Path()

    def _opened(self) -> Client:
        """A server that answers, with weights that are not the policy's.

        Raises:
            RequestError: there is none, or none that takes weights.
        """
        self._folder = new_folder(self.place)
        first = self._folder / "first"
        self.policy.write_shell(first)
        self.policy.write_weights(first, sign=-1.0)
        url, rollout = self.rollout.server or "", self.rollout
        if rollout.starts_server:
            self._own = OwnServer(rollout, first, str(self.policy.kind).removeprefix("torch."), self._folder)
            url = self._own.url
        client = Client(url, None, rollout.batch_size, rollout.timeout_seconds)
        try:
            if self._own is not None:
                self._own.wait(client)
            self._model = str(client.get("/v1/models")["data"][0]["id"])
            if self._own is None:
                self._reload(client, first)
            self._check_kind_of_logps(client)
        except (RunError, LookupError, TypeError) as error:
            text = str(error) if isinstance(error, RunError) else f"{url} does not say what it serves."
            raise RequestError(f"rollout.server={rollout.server}: {text}") from error
        shutil.rmtree(first, ignore_errors=True)
        if self.sleep:
            client.post("/sleep?level=2", {}, dict)
        self._client = client
        return client

    def _check_kind_of_logps(self, client: Client) -> None:
        """Refuse a server whose log-probabilities are not of what it samples from, temperature and truncation included.

        Raises:
            RequestError: a token with a bias of 100 has another probability than 1.
        """
        body = self._question([1, 1], Sampling(max_new_tokens=1), 0) | {"logit_bias": {"1": 100.0}}
        (logp,) = client.post(COMPLETIONS, body, lambda answer: self._drawn(answer, ())).logps
        if abs(logp) > _CERTAIN:
            raise RequestError(
                f"rollout.server={self.rollout.server} says log-probabilities of another policy than it samples from: "
                "start it with --logprobs-mode processed_logprobs."
            )

    def _synchronize(self, client: Client) -> None:
        """Write the weights, have them read, and cached prefixes forgotten, which old weights computed."""
        if self.sleep:
            client.post("/wake_up?tags=weights", {}, dict)
        self._written += 1
        folder = self._folder / f"weights-{self._written}"  # a new place each time: nothing of it can be cached
        self.policy.write_weights(folder)
        self._reload(client, folder)
        shutil.rmtree(folder, ignore_errors=True)
        if self.sleep:
            client.post("/wake_up?tags=kv_cache", {}, dict)

    def _reload(self, client: Client, folder: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            client.post(_RPC, body, dict)
            client.post("/reset_prefix_cache", {}, _forgotten)
        except Refused as error:
            if error.status in (404, 405):
                raise RunError(
                    f"{client.url} takes no weights (status {error.status}): start it with VLLM_SERVER_DEV_MODE=1."
                ) from error
            raise

    def _check(self, client: Client, ids: list[int]) -> None:
        """Refuse samples of weights that are not the policy's."""
        logps = client.post(COMPLETIONS, question(self._model, ids, 1), reader(ids))[1:]
        refuse_far(self.policy.far(ids, logps), f"the vLLM server at {client.url}")

    def _question(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        return drawing(self._model, prompt, sampling, seed) | {
            "ignore_eos": True,
            "logit_bias": {str(one): bias for one, bias in self.policy.bias.items()} or None,
        }

    def _drawn(self, answer: dict[str, Any], end_ids: Sequence[int]) -> Completion:
        """One response.

        Raises:
            ValueError: without the ids that were drawn.
        """
        found = drawn_tokens(choice_of(answer))
        if found is None:
            raise ValueError("an answer without the ids that were drawn")
        ids, logps = found
        return Completion(ids, logps, ids[-1] in end_ids)

    def _answers(self, client: Client, bodies: list[dict[str, Any]], sampling: Sampling) -> list[Completion]:
        """All responses in the order of their questions.

        Raises:
            RunError: the server is gone, or nothing came for `timeout_seconds`.
        """
        asked: list[Future[Completion]] = [
            client.submit(COMPLETIONS, body, lambda answer: self._drawn(answer, sampling.end_ids)) for body in bodies
        ]
        try:
            waiting, latest = set(asked), time.monotonic()
            while waiting:
                done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
                for one in done:
                    one.result()  # raises what went wrong
                now = time.monotonic()
                latest = now if done else latest
                if self._own is not None:
                    self._own.refuse_dead()
                if now - latest > self.rollout.timeout_seconds:
                    raise RunError(
                        f"the vLLM server at {client.url} has answered nothing for {self.rollout.timeout_seconds:g} s."
                    )
        except BaseException:
            client.close()
            raise
        return [one.result() for one in asked]


def _forgotten(answer: dict[str, Any]) -> None:
    """Reads whether cached prefixes are gone.

    Raises:
        ValueError: they are not, for now.
    """
    if answer.get("success") is False:
        raise ValueError("cached prefixes are still in use")
