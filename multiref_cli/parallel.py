"""The processes of one run: which of them this one is, and what they tell each other.

Every process holds the whole model, or its part of it (`sharding`), and reads the same batch; it computes its share of
the micro-batches, rollouts and evaluation rows. Losses of micro-batches add up to the loss of the step: the sum of the
gradients is that of one process up to rounding, whatever the number of processes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from multiref_cli.sharding import is_sharded, shard

T = TypeVar("T")
R = TypeVar("R")

# Gradients are summed in pieces of about this many numbers: few messages, and little memory besides.
PIECE = 2**22


class Lost(RuntimeError):
    """Another process of the run is gone or has failed: what it had to say will not come."""


@dataclass(frozen=True)
class Parallel:
    """This process among those of a run; alone, nothing is sent.

    Every process calls the same methods in the same order.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        sharded: each holds a part of the models that are trained or asked in training; every pass over one of them is
            then run by all processes at once.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of some items that every process has: every `size`-th of them."""
        return list(items[self.rank :: self.size])

    def shard(self, model: Any, device: str) -> None:
        """Divide a model among the processes, if that is asked for and was not done; in place."""
        if self.sharded and not is_sharded(model):
            shard(model, device)

    def in_step(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """This process's share of some passes, and whether each counts.

        Where models are sharded all processes run the same number of passes: who has one less repeats the first item,
        which does not count.
        """
        found = [(item, True) for item in self.share(items)]
        lacking = -(-len(items) // self.size) - len(found) if self.sharded else 0
        return found + [(items[0], False)] * lacking

    def each(self, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
        """Results of this process's share of some passes, see `in_step`."""
        done = [(work(item), counts) for item, counts in self.in_step(items)]
        return [result for result, counts in done if counts]

    def gather(self, value: T) -> list[T]:
        """What every process gave, in the order of the ranks; values that can be pickled.

        Raises:
            Lost: a process is gone.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        _told(lambda: dist.all_gather_object(found, value))
        return found

    def woven(self, own: Sequence[T]) -> list[T]:
        """Results of all items in their order, out of every process's results of its `share`."""
        parts = self.gather(list(own))
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def once(self, make: Callable[[], T]) -> T:
        """What the main process makes, on every process."""
        return self.gather([make()] if self.main else [])[0][0]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every parameter the sum of its gradients over the processes, added in float32.

        The backward pass of a sharded model has done so. A parameter that has a gradient nowhere keeps none.

        Raises:
            Lost: a process is gone.
        """
        if self.size == 1 or self.sharded:
            return
        every = list(parameters)
        there = torch.tensor([p.grad is not None for p in every], dtype=torch.uint8)
        _told(lambda: dist.all_reduce(there, op=dist.ReduceOp.MAX))
        piece: list[Tensor] = []
        for parameter in [p for p, some in zip(every, there.tolist()) if some]:
            piece.append(parameter)
            if sum(p.numel() for p in piece) >= PIECE:
                _sum(piece)
                piece = []
        _sum(piece)


ALONE = Parallel()


def _sum(parameters: list[Tensor]) -> None:
    if not parameters:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters])
    _told(lambda: dist.all_reduce(flat))
    for parameter, total in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = total.reshape(parameter.shape).to(parameter.dtype)


@contextmanager
def told() -> Iterator[None]:
    """What is sent inside of it is understood: Lost, where a peer has closed its connection."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise Lost(str(error)) from error
        raise


def _told(exchange: Callable[[], Any]) -> None:
    try:
        exchange()
    except RuntimeError as error:  # gloo and NCCL raise this where a peer has closed its connection
        raise Lost(str(error)) from error
