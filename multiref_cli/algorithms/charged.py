"""Which responses and tokens the online penalty charges: all of them unless the regularizer says otherwise."""

import torch
from torch import Tensor

from multiref_cli.config.schema import Experiment
from multiref_cli.models.packing import Packed
from multiref_cli.types import Tokenizer


class Charged:
    """`regularizer.only_failed` and `regularizer.mask_special`, for the tokens of a batch."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer) -> None:
        """Reads the special tokens where they are wanted.

        Args:
            experiment: an online one.
            tokenizer: of the policy.
        """
        penalty = experiment.regularizer if experiment.penalized else None
        reward = experiment.reward
        self.threshold = reward.correct_at if penalty and penalty.only_failed and reward else None
        wanted = penalty is not None and penalty.mask_special
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids))) if wanted else None

    def failed(self, rewards: Tensor) -> Tensor | None:
        """Which responses alone are charged, of the shape of their rewards; None: all."""
        return None if self.threshold is None else rewards < self.threshold

    def plain(self, packed: Packed) -> Tensor | None:
        """(B, T) the tokens that are no special ones, where these are charged nothing; None: all are charged."""
        if self.special is None:
            return None
        plain = ~torch.isin(packed.targets, self.special.to(packed.targets))
        return torch.zeros_like(packed.mask).masked_scatter(packed.mask, plain)

    def kept(self, values: Tensor, packed: Packed, rewards: Tensor | None = None) -> Tensor:
        """Per-token values with zeros where nothing is charged.

        Args:
            values: (B, T).
            packed: the B rows.
            rewards: (B,) of the responses; None: it does not matter which failed.
        """
        failed = None if rewards is None else self.failed(rewards)
        for mask in (self.plain(packed), None if failed is None else failed[:, None]):
            values = values if mask is None else torch.where(mask.to(values.device), values, torch.zeros_like(values))
        return values
