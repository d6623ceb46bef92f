"""Devices: this machine's, measured, and usual cards as their makers state them."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

CPU = "this CPU"


@dataclass(frozen=True)
class Card:
    """A device: memory in bytes, operations a second of large matrix products, bytes a second of its memory."""

    name: str
    memory: float
    operations: float
    bandwidth: float

    @property
    def gpu(self) -> bool:
        """Whether operations have to be launched."""
        return self.name != CPU


# Dense bfloat16, as the makers state it.
CARDS = (
    Card("RTX 4090, 24 GB", 24e9, 1.65e14, 1.0e12),
    Card("L40S, 48 GB", 48e9, 3.62e14, 8.6e11),
    Card("A100, 80 GB", 80e9, 3.12e14, 2.0e12),
    Card("H100, 80 GB", 80e9, 9.89e14, 3.35e12),
    Card("H200, 141 GB", 141e9, 9.89e14, 4.8e12),
    Card("B200, 180 GB", 180e9, 2.25e15, 8.0e12),
)


@cache
def here(device: str) -> Card:
    """This machine's device, its matrix products and its memory's speed measured in a fraction of a second.

    On a CPU in the processor's own time, so that other work of the machine does not count.

    Asked for a GPU that is not there: an H100, so that what will run elsewhere can be priced here.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        return next(card for card in CARDS if card.name.startswith("H100"))
    gpu = device.startswith("cuda")
    side, kind = (8192, torch.bfloat16) if gpu else (768, torch.float32)
    a, b = torch.ones(side, side, device=device, dtype=kind), torch.ones(side, side, device=device, dtype=kind)

    def seconds(run: Callable[[], torch.Tensor]) -> float:
        """The fastest of four."""
        clock, best = time.perf_counter if gpu else time.process_time, float("inf")
        for _ in range(4):
            start = clock()
            run()
            if gpu:
                torch.cuda.synchronize(device)
            best = min(best, (clock() - start) / (1 if gpu else torch.get_num_threads()))
        return max(best, 1e-9)

    product, copied = seconds(lambda: a @ b), seconds(lambda: a.clone())
    if gpu:
        name, memory = torch.cuda.get_device_name(device), float(torch.cuda.mem_get_info(device)[1])
    else:
        name, memory = CPU, float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Card(name, memory, 2 * side**3 / product, 2 * a.numel() * a.element_size() / copied)
