"""What the claims about a GPU share: sizes, a clock, memory, and where figures go.

Every file of this folder states one claim. With an NVIDIA GPU it is measured at the sizes of Qwen2.5-0.5B and asserted;
without one the same code runs at tiny sizes on the CPU, so that it cannot rot, and nothing is claimed.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from multiref_cli.models.known import CONFIGS
from multiref_cli.models.packing import pack
from multiref_cli.models.precision import Precision

_TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Scale:
    """Where and how large: `real` on a GPU, where claims are asserted."""

    real: bool

    @property
    def device(self):
        """Of everything."""
        return "cuda" if self.real else "cpu"

    @property
    def precision(self):
        """That policies are trained in."""
        return Precision("bf16_mixed" if self.real else "float32", self.device)

    @property
    def config(self):
        """Sizes of a policy."""
        return CONFIGS["Qwen/Qwen2.5-0.5B-Instruct"] if self.real else _TINY

    def choose(self, real, tiny):
        """A size on a GPU, and without one."""
        return real if self.real else tiny

    def model(self, seed=0, dtype=torch.float32, **changes):
        """A model with random weights."""
        settings = {key: value for key, value in {**self.config, **changes}.items() if key != "model_type"}
        torch.manual_seed(seed)
        with torch.device(self.device):
            return Qwen2ForCausalLM(Qwen2Config(initializer_range=0.05, **settings)).to(dtype).eval()

    def rows(self, sequences, prompt, response, seed=0):
        """Pairs of random responses, each pair to a prompt of its own, prompts shared."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, self.config["vocab_size"], (sequences // 2, prompt + 2 * response), generator=generator)
        prompts = [row[:prompt].tolist() for row in ids]
        both = [[row[prompt : prompt + response].tolist(), row[prompt + response :].tolist()] for row in ids]
        return pack(prompts, both, 0, True).to(self.device)


def seconds(run, device, repeats=3):
    """Of one call, the fastest of some after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def peak_bytes(run, device):
    """The most bytes of tensors alive during a call, over those before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Alive() as alive:
        run()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still there."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: value for key, value in self.live.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def record(claim, **figures):
    """Print figures, and append them to the file that $MULTIREF_GPU_RESULTS names."""
    row = {"claim": claim, **{name: float(f"{value:.4g}") for name, value in figures.items()}}
    row["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, tiny sizes"
    row |= {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    print(json.dumps(row))
    place = os.environ.get("MULTIREF_GPU_RESULTS")
    if place:
        with Path(place).open("a") as file:
            file.write(json.dumps(row) + "\n")
