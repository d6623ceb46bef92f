"""A model of which every process of a run holds a part: PyTorch's fully sharded data parallelism (FSDP2).

Parameters are divided by decoder layer, and what is left (embeddings, norms, output head: the root) together. A pass
gathers one layer at a time and drops it again; gradients and optimizer state are of the own part alone. What reads
weights does so inside of `gathered`, where the root is whole and layers come as they are run, or of `whole`, where all
of a model is. For a model that is not sharded both do nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# The method that gathers the root of a model; a model that has it is sharded.
_GATHER = "gather_root_parameters"
# The mark of a model that is whole now.
_WHOLE = "holds_whole_parameters"


def shard(model: Any, device: str | torch.device) -> None:
    """Divide a model's parameters among the processes of the default group; in place, on every one of them.

    Args:
        model: a transformers or peft model, the same on every process; on the CPU at least until now.
        device: where the parts go; a layer at a time is moved there whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        reduce_dtype=torch.float32
    )  # gradients are added in float32, whatever the weights are
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in reversed(list(model.modules())):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    setattr(model, _GATHER, MethodType(_nothing, model))
    register_fsdp_forward_method(model, _GATHER)


def _nothing(model: Any) -> None:
    """A forward pass of nothing: FSDP gathers the root before it, and leaves it gathered."""


def is_sharded(model: Any) -> bool:
    """Whether a model's parameters are divided."""
    return hasattr(model, _GATHER)


@contextmanager
def gathered(*models: Any) -> Iterator[None]:
    """For a forward pass, and a backward pass: roots whole, layers gathered as they are run.

    Every process enters, and runs the same passes in the same order.
    """
    sharded = _divided(models)
    for model in sharded:
        getattr(model, _GATHER)()
    try:
        yield
    finally:
        for model in sharded:
            model.reset_iter_state()


@contextmanager
def whole(*models: Any) -> Iterator[None]:
    """While every process has all parameters as plain tensors: each may run what it likes, nothing is sent.

    Every process enters; inside, `whole` and `gathered` do nothing. `state_dict()` would divide the model again: see
    `weights_of`.
    """
    sharded = _divided(models)
    with gathered(*sharded):
        for model in sharded:
            model.set_reshard_after_forward(False)
            for module in model.modules():
                if hasattr(module, "unshard"):
                    module.unshard()
            setattr(model, _WHOLE, True)
        try:
            yield
        finally:
            for model in sharded:
                delattr(model, _WHOLE)
                model.set_reshard_after_forward(True)
                model.set_reshard_after_forward(False, recurse=False)  # the root: a backward pass begins with it


def _divided(models: Sequence[Any]) -> list[Any]:
    """Those of which this process has parts alone now, each once."""
    return list({id(one): one for one in models if is_sharded(one) and not hasattr(one, _WHOLE)}.values())


def weights_of(model: Any) -> dict[str, Tensor]:
    """The `state_dict()` of a model that is `whole`."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def full(tensor: Tensor) -> Tensor:
    """A tensor of which every process has a part, put together on all of them; any other as it is."""
    part: Any = tensor
    found: Tensor = part.full_tensor() if is_part(tensor) else tensor
    return found


def is_part(tensor: Tensor) -> bool:
    """Whether this process has a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as another one of its shape is; else the tensor as it is.

    Args:
        tensor: the same on every process.
        like: a parameter.
    """
    if not is_part(like) or is_part(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor

    part: Any = like
    size, rank = part.device_mesh.size(), part.device_mesh.get_local_rank()
    chunks = tensor.chunk(size)
    own = chunks[rank] if rank < len(chunks) else tensor[:0]
    return DTensor.from_local(
        own.to(part.to_local().device),
        part.device_mesh,
        part.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def empty_parts(shapes: Sequence[tuple[torch.Size, torch.dtype]], device: str | torch.device) -> list[Tensor]:
    """Tensors of some shapes and types, divided as the parameters of a sharded model on that device are."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, empty

    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    return [empty(*shape, dtype=kind, device_mesh=mesh, placements=[Shard(0)]) for shape, kind in shapes]
