"""Responses of variable length, enumerated: a vocabulary with an end token, and every response up to a length.

Token 0 ends a response; a response of T tokens ends without it, as under a limit on new tokens. S states are the
prefixes that go on, in breadth-first order; Y responses are the leaves. A policy is (..., S, V) log-probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

END = 0


@dataclass(frozen=True)
class Responses:
    """All responses over a vocabulary of V tokens, of at most T tokens.

    states, tokens, mask (Y, T): the state before each token, the token, and whether there is one.
    child (S, V): what a token leads to, a state below S, or S + y for the end of response y.
    depth (S,): tokens before each state.
    """

    states: Tensor
    tokens: Tensor
    mask: Tensor
    child: Tensor
    depth: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, the end token included; (Y,)."""
        return self.mask.sum(-1)

    def logps(self, policy: Tensor) -> Tensor:
        """Log-probabilities of whole responses; (..., S, V) -> (..., Y)."""
        return self.chosen(policy[..., self.states, :]).sum(-1)

    def chosen(self, rows: Tensor) -> Tensor:
        """Entries of the tokens that were chosen, 0 behind the end; (..., Y, T, V) -> (..., Y, T)."""
        tokens = self.tokens.unsqueeze(-1).expand(*rows.shape[:-1], 1)
        return torch.where(self.mask, rows.gather(-1, tokens).squeeze(-1), 0.0)

    def backward(self, leaves: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Backward induction from the ends of the responses to the root.

        Args:
            leaves: (..., Y) what each response is worth.
            value: from states (D,) of one depth and the worth of their children (..., D, V) to theirs (..., D).

        Returns:
            (..., S, V) what each token at each state leads to.
        """
        count = len(self.child)
        worth = torch.cat([leaves.new_zeros(*leaves.shape[:-1], count), leaves], -1)
        for depth in range(int(self.depth.max()), -1, -1):
            at = torch.nonzero(self.depth == depth).squeeze(-1)
            worth[..., at] = value(at, worth[..., self.child[at]])
        return worth[..., self.child]


def enumerate_responses(vocabulary: int, length: int) -> Responses:
    """Every response of at most `length` tokens.

    Args:
        vocabulary: V, the end token included; 2 or more.
        length: T, 1 or more.

    Returns:
        Responses; S is the sum of (V - 1)^t over t < T.
    """
    prefixes = [p for t in range(length) for p in product(range(1, vocabulary), repeat=t)]
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    responses = [(*p, v) for p in prefixes for v in range(vocabulary) if v == END or len(p) + 1 == length]
    leads_to = index | {response: len(prefixes) + y for y, response in enumerate(responses)}
    child = [[leads_to[(*p, v)] for v in range(vocabulary)] for p in prefixes]
    states, tokens = (torch.zeros(len(responses), length, dtype=torch.long) for _ in range(2))
    for y, response in enumerate(responses):
        for t, token in enumerate(response):
            states[y, t], tokens[y, t] = index[response[:t]], token
    lengths = torch.tensor([len(r) for r in responses])
    mask = torch.arange(length) < lengths[:, None]
    return Responses(states, tokens, mask, torch.tensor(child), torch.tensor([len(p) for p in prefixes]))


def random_policies(
    rng: np.random.Generator, responses: Responses, problems: int, count: int, distance: float
) -> Tensor:
    """K random policies around a common one, for each of N problems.

    Args:
        rng: source of randomness.
        responses: what they generate.
        problems: N.
        count: K.
        distance: standard deviation of the logits around the common policy, in nats.

    Returns:
        (K, N, S, V) log-probabilities.
    """
    shape = tuple(responses.child.shape)
    common, own = rng.standard_normal((problems, *shape)), rng.standard_normal((count, problems, *shape))
    return torch.log_softmax(torch.from_numpy(common + distance * own), -1)
