"""Rollouts from a vLLM engine in the same process; the policy's weights are copied into it before every generation.

Tried with vLLM 0.32: `LLM.generate` with token prompts, `SamplingParams`, `LLM.collective_rpc("reload_weights")` (its
own way to new weights, on every backend), `LLM.reset_prefix_cache`, `LLM.sleep`, `LLM.wake_up`. The engine lives in the
trainer's process (vLLM's own multiprocessing switched off), so that weights move on the device and nothing is
serialized. It seeds the generators of the process that it lives in: they are put back.

Seeds make a generation repeatable for a given batch, but vLLM's numbers depend on its scheduling: common random numbers
across sweep points hold in tendency, not to the bit as with the transformers engine.
"""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiref_cli.config.check import VLLM_MISSING
from multiref_cli.errors import RequestError
from multiref_cli.models.decoder import unwrap
from multiref_cli.models.lora import merged
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.types import LanguageModel

_SEED_LIMIT = 2**63


class VllmEngine:
    """Samples from vLLM, one request a response, weights synchronized in place."""

    # vLLM's kernels round differently from the trainer's, so log-probs that matter are computed again.
    exact_logps = False

    def __init__(
        self,
        model: LanguageModel,
        policy_path: str,
        batch_size: int = 256,
        vocabulary: int | None = None,
        sleep: bool = False,
        **options: Any,
    ):
        """Starts vLLM beside the policy.

        Args:
            model: the policy in training, whose weights are copied before every generation.
            policy_path: folder or Hub id with the same architecture and tokenizer.
            batch_size: most sequences decoded at once.
            vocabulary: ids of the tokenizer, where the head is padded beyond them; the rest is never sampled.
            sleep: hand vLLM's memory back between generations.
            options: of `vllm.LLM`, such as gpu_memory_utilization and max_model_len.

        Raises:
            RequestError: vLLM is not installed.
        """
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise RequestError(f"{VLLM_MISSING}.") from error
        self.model, self.sleep = model, sleep
        head = model.get_output_embeddings().weight.shape[0]
        # The largest negative bias that vLLM takes: e^-100 of the probability is left to the padding of the head.
        self.bias = {i: -100.0 for i in range(vocabulary or head, head)}
        with _own_generators():
            self.llm = LLM(
                model=policy_path,
                dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
                max_num_seqs=batch_size,
                enable_sleep_mode=sleep,
                # Temperature first, so that what comes back is the policy that is sampled.
                logprobs_mode="processed_logprobs",
                **options,
            )
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

        with _own_generators():
            self._synchronize()
        requests = [TokensPrompt(prompt_token_ids=list(p)) for p in prompts for _ in range(group_size)]
        params = [self._params(sampling, seed, g) for seed in seeds for g in range(group_size)]
        with _own_generators():
            outputs = self.llm.generate(requests, params, use_tqdm=False)
        if self.sleep:
            self.llm.sleep(level=2)
        flat = [_completion(output.outputs[0], sampling) for output in outputs]
        return [flat[start : start + group_size] for start in range(0, len(flat), group_size)]

    def _params(self, sampling: Sampling, seed: int, sample: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens,
            # A large odd step keeps the seeds of a group apart without meeting those of another prompt.
            seed=(seed + sample * 0x9E3779B97F4A7C15) % _SEED_LIMIT,
            stop_token_ids=list(sampling.end_ids),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            logit_bias=self.bias or None,
        )

    def _synchronize(self) -> None:
        """Copies the policy's weights into vLLM's model and forgets cached prefixes, which old weights computed."""
        if self.sleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights(self.model)})
        if self.sleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.llm.reset_prefix_cache()


@contextmanager
def _own_generators() -> Iterator[None]:
    """The process's global generators as they were, whatever is done in between."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    plain, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numbers)


def named_weights(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """The weights of a policy under the names of its architecture; a LoRA adapter is merged into what it adapts.

    Args:
        model: a transformers model, or a peft model around one.

    Yields:
        (name, weight), detached; tied weights once.
    """
    inner = unwrap(model)
    yield from merged(inner, inner.named_parameters())


def _completion(output: Any, sampling: Sampling) -> Completion:
    ids = list(output.token_ids)
    logps = [position[token].logprob for position, token in zip(output.logprobs, ids)]
    return Completion(ids, logps, bool(ids) and ids[-1] in sampling.end_ids)
