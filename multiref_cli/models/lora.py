"""A LoRA adapter added to the weights that it adapts, the model left as it is."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from multiref_cli.types import LanguageModel


def merged(model: LanguageModel, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names of the bare architecture, with the active adapters added to what they adapt.

    Args:
        model: a transformers model, or the one inside a peft wrapper, whose adapter layers stay in place.
        weights: (name, tensor) of it, parameters or a state dict.

    Yields:
        (name, tensor), detached; what belongs to adapters alone is left out.
    """
    for name, value in weights:
        if ".lora_" in name or ".original_module." in name:
            continue
        weight = value.detach()
        if name.endswith(".base_layer.weight"):
            module: Any = model.get_submodule(name.removesuffix(".base_layer.weight"))
            deltas = [module.get_delta_weight(adapter).detach() for adapter in module.active_adapters]
            weight = weight + sum(deltas[1:], deltas[0]).to(weight.dtype)
        yield name.replace(".base_layer.", ".").replace(".modules_to_save.default.", "."), weight
