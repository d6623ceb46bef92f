"""Rollouts from a vLLM engine in the same process; the policy's weights are copied into it before every generation.

Tried with vLLM 0.32: `LLM.generate` with token prompts, `SamplingParams`, `LLM.collective_rpc("reload_weights")` (its
own way to new weights, on every backend), `LLM.reset_prefix_cache`, `LLM.sleep`, `LLM.wake_up`. The engine lives in the
trainer's process (vLLM's own multiprocessing switched off), so that weights move on the device and nothing is
serialized. It seeds the generators of the process that it lives in: they are put back. It opens a folder that is
written from the policy (see `handoff`), and every update of its weights is checked by a probe.

Seeds make a generation repeatable for a given batch, but vLLM's numbers depend on its scheduling: common random numbers
across sweep points hold in tendency, not to the bit as with the transformers engine.
"""

import gc
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multiref_cli.config.check import VLLM_MISSING
from multiref_cli.errors import RequestError
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.rollouts.handoff import Handoff, new_folder, refuse_far

_SEED_LIMIT = 2**63


class VllmEngine:
    """Samples from vLLM, one request a response, weights synchronized in place."""

    # vLLM's kernels round differently from the trainer's, so log-probs that matter are computed again.
    exact_logps = False

    def __init__(
        self, policy: Handoff, place: Path, batch_size: int = 256, sleep: bool = False, **options: Any
    ) -> None:
        """Starts vLLM beside the policy.

        Args:
            policy: in training, whose weights are copied before every generation.
            place: where the folder that vLLM opens is written.
            batch_size: most sequences decoded at once.
            sleep: hand vLLM's memory back between generations.
            options: of `vllm.LLM`, such as gpu_memory_utilization and max_model_len.

        Raises:
            RequestError: vLLM is not installed, or does not start.
        """
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise RequestError(f"{VLLM_MISSING}.") from error
        self.policy, self.sleep = policy, sleep
        folder = new_folder(place)
        try:
            policy.write_shell(folder)
            with _apart():
                self.llm: Any = LLM(
                    model=str(folder),
                    dtype=str(policy.kind).removeprefix("torch."),
                    max_num_seqs=batch_size,
                    enable_sleep_mode=sleep,
                    # Temperature first, so that what comes back is the policy that is sampled.
                    logprobs_mode="processed_logprobs",
                    # Weights come before every generation; what they did not reach would stay noise.
                    load_format="dummy",
                    skip_tokenizer_init=policy.tokenizer is None,
                    **options,
                )
        except (ValueError, RuntimeError) as error:  # too little memory, settings that do not go together
            text = " ".join(str(error).split())[:400].rstrip(".")
            raise RequestError(f"vLLM does not start: {text}.") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if sleep:
            self.llm.sleep(level=2)

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, seeds: list[int]
    ) -> list[list[Completion]]:
        """Draws `group_size` completions of each prompt; see `Engine.generate`.

        With top-p, top-k or min-p the log-probs are those after truncation; `exact_logps` is false for this engine, so
        the trainer computes its own.
        """
        from vllm import TokensPrompt

        with _apart():
            self._synchronize()
        self._check(prompts)
        requests = [TokensPrompt(prompt_token_ids=list(p)) for p in prompts for _ in range(group_size)]
        params = [self._params(sampling, seed_of(seed, g)) for seed in seeds for g in range(group_size)]
        with _apart():
            outputs = self.llm.generate(requests, params, use_tqdm=False)
        if self.sleep:
            self.llm.sleep(level=2)
        flat = [_completion(output.outputs[0], sampling) for output in outputs]
        return [flat[start : start + group_size] for start in range(0, len(flat), group_size)]

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse to sample from weights that are not the policy's."""
        from vllm import SamplingParams, TokensPrompt

        ids = self.policy.probe(prompts)
        params = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        with _apart():
            (output,) = self.llm.generate([TokensPrompt(prompt_token_ids=ids)], [params], use_tqdm=False)
        logps = [position[token].logprob for position, token in zip(output.prompt_logprobs[1:], ids[1:])]
        refuse_far(self.policy.far(ids, logps), "vLLM")

    def _params(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            stop_token_ids=list(sampling.end_ids),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            logit_bias=self.policy.bias or None,
        )

    def close(self) -> None:
        """Give vLLM's memory back."""
        self.llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _synchronize(self) -> None:
        """Copies the policy's weights into vLLM's model and forgets cached prefixes, which old weights computed."""
        if self.sleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self.policy.weights()})
        if self.sleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.llm.reset_prefix_cache()


def seed_of(seed: int, sample: int) -> int:
    """The seed of a prompt's response number `sample`, from 0 to 2^63 - 1.

    A large odd step keeps the seeds of a group apart without meeting those of another prompt.
    """
    return (seed + sample * 0x9E3779B97F4A7C15) % _SEED_LIMIT


@contextmanager
def _apart() -> Iterator[None]:
    """Global generators as they were, whatever is done in between; and none of the trainer's autocast."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    plain, numbers = random.getstate(), np.random.get_state()
    kind = "cuda" if devices else "cpu"
    with torch.random.fork_rng(devices), torch.autocast(kind, enabled=False):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numbers)


def _completion(output: Any, sampling: Sampling) -> Completion:
    ids = list(output.token_ids)
    logps = [position[token].logprob for position, token in zip(output.logprobs, ids)]
    return Completion(ids, logps, bool(ids) and ids[-1] in sampling.end_ids)
