"""How a model computes while it is trained: the type of its parameters, of its matrix products, of its master copy.

An AdamW step of 1e-6 is lost to rounding in almost every bfloat16 weight, so bfloat16 parameters alone do not train:
either the parameters are float32 and the products run in bfloat16 (autocast), or the optimizer keeps a float32 copy, or
the bits that rounding has lost.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from multiref_cli.config.schema import PRECISIONS
from multiref_cli.types import LanguageModel

# Relative spacing of bfloat16 numbers just above a power of two: 8 bits of significand, one of them implied.
_SPACING = 2.0**-7


def parameter_type(name: str) -> str:
    """The parameter type of a model that is said to compute in a precision or in a plain type."""
    return PRECISIONS.get(name, name)


@dataclass(frozen=True)
class Precision:
    """One of PRECISIONS (or a plain type, for a frozen model) on a device.

    Attributes:
        name: float32; bf16_mixed: float32 parameters, bfloat16 products; bf16_master: bfloat16 parameters and a
            float32 copy in the optimizer; bf16_kahan: bfloat16 parameters and the 16 bits that their rounding
            has lost; bf16: bfloat16 throughout.
        device: torch device of the model.
    """

    name: str = "float32"
    device: str = "cpu"

    def parameters(self, adapted: bool) -> str:
        """Type of the policy's parameters; a frozen base (`adapted`) is never updated, so bfloat16 holds it as well."""
        return "bfloat16" if adapted and self.name != "float32" else PRECISIONS[self.name]

    def bytes_of(self, adapted: bool) -> tuple[int, int]:
        """Bytes of a parameter, and what training adds for one: gradient, two moments, what is kept beside it."""
        held = 2 if self.parameters(adapted) == "bfloat16" else 4
        added = {"float32": 12, "bf16_mixed": 12, "bf16_master": 14, "bf16_kahan": 12, "bf16": 6}[self.name]
        return held, added

    @property
    def kept(self) -> str:
        """What the optimizer keeps beside the parameters: `masters`, `remainders` or nothing."""
        return {"bf16_master": "masters", "bf16_kahan": "remainders"}.get(self.name, "")

    def autocast(self) -> AbstractContextManager[None]:
        """Around everything that computes with the model, the backward pass aside.

        Entered anew for each step: the casts of the parameters are kept until the context ends.
        """
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.name == "bf16_mixed")


FLOAT32 = Precision()
# The mark of a frozen model that computes in bf16_mixed wherever it is asked.
_MIXED = "computes_mixed"


def compute_mixed(model: LanguageModel) -> None:
    """Let a frozen model compute as a bf16_mixed policy does, wherever it is asked; in place.

    Its parameters are float32, or bfloat16 where its files are: the numbers are the same to the bit. Products are of
    bfloat16 copies in any case; what autocast leaves in float32 beside them, the residual stream and layer norms, is so
    here too.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):  # the residual stream begins in its type
            module.register_forward_hook(lambda module, given, found: found.float())
        elif isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)):  # these take no input of another type
            module.float()
    setattr(model, _MIXED, True)


def own_autocast(model: LanguageModel) -> AbstractContextManager[None]:
    """Around a pass of a frozen model: autocast where it computes in bf16_mixed, else nothing new."""
    if not hasattr(model, _MIXED):
        return nullcontext()
    return Precision("bf16_mixed", str(next(model.parameters()).device)).autocast()


def product_type(tensor: torch.Tensor) -> torch.dtype:
    """The type that matrix products with a parameter have here: autocast's where it is on, else its own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


@torch.no_grad()
def split(whole: torch.Tensor, weight: torch.Tensor, rest: torch.Tensor) -> None:
    """Keep a float32 tensor as bfloat16 weights and what their rounding loses: `joined` gives it back bit for bit.

    Bits of float32 numbers count up with their size, and a bfloat16 number has the upper half of them: the nearest one
    is that of the bits + 2^15, a tie away from zero, and the bits differ from its own by -2^15 to 2^15 - 1.

    Args:
        whole: float32, finite.
        weight: same shape, written to; where it is not bfloat16 it takes the tensor as it is.
        rest: same shape, int16, written to.
    """
    if weight.dtype != torch.bfloat16:
        weight.copy_(whole)
        return
    bits = whole.view(torch.int32)
    upper = (bits + 2**15) >> 16
    weight.copy_(upper.to(torch.int16).view(torch.bfloat16))
    rest.copy_(bits - (upper << 16))


@torch.no_grad()
def joined(weight: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The float32 tensor that was `split`."""
    if weight.dtype != torch.bfloat16:
        return weight.float().clone()
    return ((weight.view(torch.int16).to(torch.int32) << 16) + rest).view(torch.float32)


def lost_share(model: LanguageModel, step: float) -> float:
    """Share of the trained bfloat16 weights that a change of `step` leaves as they are: it is less than half of their
    spacing.

    Args:
        model: to train.
        step: size of a weight's change; AdamW's is at most about its learning rate.

    Returns:
        0 to 1; 0 where nothing that is trained is bfloat16.
    """
    lost = total = 0
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype == torch.bfloat16:
            size = weight.detach().float().abs()
            spacing = torch.exp2(size.clamp(min=torch.finfo(torch.float32).tiny).log2().floor()) * _SPACING
            lost += int((step < spacing / 2).sum())
            total += size.numel()
    return lost / total if total else 0.0
