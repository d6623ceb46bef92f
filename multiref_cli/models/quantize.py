"""Frozen models with their linear maps in 8 or 4 bits: a second reference of 14 B parameters beside a policy of 7 B.

Embedding, norms and output head keep their type, so that log-probabilities are taken over the vocabulary as of any
model. Nothing is trained through such a model.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from multiref_cli.errors import RequestError

# Kind -> the package that has it, and bytes of a parameter, scales included.
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
BYTES = {"int8": 1.02, "nf4": 0.52}


def require(kind: str) -> None:
    """Refuse a kind whose package is not installed.

    Raises:
        RequestError: saying how to install it.
    """
    if find_spec(PACKAGES[kind]) is None:
        raise RequestError(
            f"quantization={kind} needs {PACKAGES[kind]}, which is not installed: pip install {PACKAGES[kind]}."
        )


def quantize(model: Any, kind: str) -> None:
    """Put the linear maps of a frozen model's decoder into fewer bits, in place.

    int8: each row of a weight has its own scale (torchao). nf4: blocks of 64 weights, the 4-bit normal float of arXiv
    2305.14314 (bitsandbytes), packed when the model is moved to its device.

    Raises:
        RequestError: the package is not installed.
    """
    require(kind)
    head = model.get_output_embeddings()
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig(), lambda module, _: type(module) is nn.Linear and module is not head)
        return
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear and module is not head:
                setattr(parent, name, _four_bits(module))


def _four_bits(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = linear.weight.detach()
    found = Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=weight.dtype, quant_type="nf4"
    )
    found.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")
    if linear.bias is not None:
        found.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    packed: nn.Module = found.to(torch.device("cpu"))
    return packed
