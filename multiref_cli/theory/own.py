"""A divergence of one's own: a function f of u = policy / reference, named by its dotted path."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_cli.dotted import function_of
from multiref_cli.errors import RequestError

FAR = 700.0  # nats: e^700 is a float64
SEEN = 12.0  # nats on both sides of equality where the score must increase


@dataclass(frozen=True)
class OwnDivergence:
    """D_f(pi || p) = sum_y p f(pi / p) of a convex f, whose score is f'(e^x) by automatic differentiation."""

    generator: Callable[[Tensor], Tensor]

    def score(self, log_ratio: Tensor, clip: float = 0.0) -> Tensor:
        """s(x) = f'(e^x) - f'(1) in float64, with x between -700 and 700 nats; infinite at x = inf where it grows."""
        bounded = log_ratio.double().clamp(-FAR, FAR)
        value = self._slope(bounded)
        if bool(log_ratio.isposinf().any()):
            ends = self._slope(torch.tensor([FAR / 2, FAR], dtype=torch.float64))
            value = torch.where(log_ratio.isposinf() & bool(ends[1] - ends[0] > 1e-6), math.inf, value)
        return value

    def _slope(self, log_ratio: Tensor) -> Tensor:
        with torch.enable_grad():
            u = torch.cat([log_ratio.detach().flatten(), log_ratio.new_zeros(1)]).exp().requires_grad_()
            (slope,) = torch.autograd.grad(self.generator(u).sum(), u)
        return (slope[:-1] - slope[-1]).reshape(log_ratio.shape)

    def divergence(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        """sum_y p f(q / p) - f(1) over the last axis; q f'(inf) where p = 0; (..., V) -> (...)."""
        there = ~reference_logps.isneginf()
        ratio = (policy_logps - torch.where(there, reference_logps, 0.0)).clamp(-FAR, FAR)
        one = torch.ones((), dtype=torch.float64)
        value = self.generator(ratio.double().exp()) - self.generator(one)
        beyond = self.score(torch.full((), math.inf, dtype=torch.float64))
        outside = torch.where(policy_logps.isneginf(), 0.0, policy_logps.exp() * beyond)
        return torch.where(there, reference_logps.exp() * value, outside).sum(-1)


def own_divergence(path: str) -> OwnDivergence:
    """The divergence of a user's function f(u), elementwise in torch, u > 0.

    Args:
        path: dotted.

    Returns:
        The divergence.

    Raises:
        RequestError: no such function, values that are not finite, or a score that does not increase: f is not
            strictly convex, as that of total variation is not.
    """
    found = OwnDivergence(function_of(path, "divergence"))
    x = torch.linspace(-SEEN, SEEN, 97, dtype=torch.float64)
    try:
        score = found.score(x)
    except Exception as error:  # whatever the user's function raised
        raise RequestError(f"divergence={path} failed on numbers from e^-12 to e^12: {error}.") from error
    if score.shape != x.shape or not bool(score.isfinite().all()):
        raise RequestError(f"divergence={path} has a derivative that is not finite between e^-12 and e^12.")
    flat = (score.diff() <= 0).nonzero().flatten().tolist()
    if flat:
        raise RequestError(
            f"divergence={path} is not strictly convex: its derivative does not increase at u = "
            f"{math.exp(float(x[flat[0]])):.3g}, so its score trains nothing there."
        )
    return found
