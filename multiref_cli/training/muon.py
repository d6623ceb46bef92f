"""Muon (Jordan et al., 2024) in the precision of the parameters; matrices of one shape are orthogonalized together.

The rule is that of `torch.optim.Muon`, which always computes in bfloat16: on a CPU without bfloat16 units that took
more time than the forward and backward passes of the embedded models together.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from multiref_cli.sharding import divided, full

# Quintic Newton-Schulz coefficients of the authors: singular values land near 1, not on it, in five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_EPSILON = 1e-7


def orthogonalized(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T, by five Newton-Schulz steps.

    Args:
        matrices: (N, R, C), any scale.

    Returns:
        (N, R, C); singular values between about 0.7 and 1.2, but for those that are tiny beside the largest.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, for the hidden matrices of a network.

    B <- m B + (1 - m) G,  W <- (1 - lr * decay) W - lr sqrt(max(1, rows / columns)) orthogonalized((1 - m) G + m B)
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        """Takes the matrices.

        Args:
            matrices: two-dimensional parameters.
            lr: step size; usual 0.01 to 0.05.
            weight_decay: decoupled, as in AdamW.
            momentum: m, in [0, 1).
        """
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for shape, alike in shapes.items():
                updates = torch.stack([full(self._momentum(matrix, group["momentum"])) for matrix in alike])
                size = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for matrix, update in zip(alike, orthogonalized(updates)):
                    matrix.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(divided(update, matrix), alpha=size)

    def _momentum(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        """The gradient blended with its running mean (Nesterov's form)."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None  # matrices without a gradient are left out by `step`
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        mean = state["momentum"].lerp_(gradient, 1.0 - momentum)
        return gradient.lerp(mean, momentum)
