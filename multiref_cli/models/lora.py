"""A LoRA adapter added to the weights that it adapts, the model left as it is."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from multiref_cli.types import LanguageModel


def plain_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, or one with LoRA adapters that are added to it and nothing more."""
    if type(module) is nn.Linear:
        return type(module.weight) is nn.Parameter and module.weight.is_floating_point()
    base = getattr(module, "base_layer", None)
    whole = not getattr(module, "merged", False) and not getattr(module, "fan_in_fan_out", False)
    return type(base) is nn.Linear and hasattr(module, "lora_A") and whole and added(module)


def added(module: nn.Module) -> bool:
    """Whether the adapters of a module, if any, are matrices added to its weight: no DoRA, no bias of their own."""
    variants = getattr(module, "lora_variant", {}) or getattr(module, "use_dora", {})
    unusual = any(variants.values()) if all(isinstance(v, bool) for v in variants.values()) else bool(variants)
    return not unusual and all(getattr(one, "bias", None) is None for one in getattr(module, "lora_B", {}).values())


def linear_parts(module: Any) -> tuple[nn.Linear, list[tuple[Tensor, Tensor, float]]]:
    """A linear map and its active adapters: y = base(x) + sum of scale * (x @ A.T) @ B.T.

    Args:
        module: what `plain_linear` says yes to.

    Returns:
        The base, and for each adapter A (r, in), B (out, r) and its scale.
    """
    if type(module) is nn.Linear:
        return module, []
    names = [] if module.disable_adapters else [n for n in module.active_adapters if n in module.lora_A]
    return module.base_layer, [
        (module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name])) for name in names
    ]


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
