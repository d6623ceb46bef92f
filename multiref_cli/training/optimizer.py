"""Optimizers and the learning-rate schedule, a pure function of the step."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from multiref_cli.config import schema
from multiref_cli.models.precision import joined, split
from multiref_cli.sharding import divided, full
from multiref_cli.training.muon import Muon
from multiref_cli.types import LanguageModel

# Parameters of which sums with their remainders are alive at once.
_PIECE = 2**24


def schedule(step: int, total: int, settings: schema.Optimizer) -> float:
    """Multiplier of the peak learning rate at step `step` (from 0) of `total`.

    Linear warm-up to 1, then linear or cosine decay to 0 at `total`, constant, or wsd: constant, and linear to 0 over
    the last 30 % (warm-up, stable, decay).
    """
    warmup = settings.warmup * total if settings.warmup < 1 else settings.warmup
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "wsd":
        return min(1.0, (total - step) / (0.3 * total))
    progress = (step - warmup) / max(total - warmup, 1)
    return 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class Optimizers:
    """AdamW, or Muon for hidden matrices beside AdamW for the rest, behind one step.

    What the optimizers update are the trained parameters themselves, or float32 weights that stand behind them: copies
    that stay (`masters`), or sums of bfloat16 weights and remainders that are made for the step, some at a time
    (`remainders`: what rounding has lost so far is added before the next step, as in Kahan's summation, arXiv
    2010.06192; a remainder of 16 bits loses nothing of a float32 sum, see `models.precision.split`).
    """

    def __init__(self, model: LanguageModel, settings: schema.Optimizer, total: int, kept: str = "") -> None:
        """Takes the parameters that have a gradient.

        Args:
            model: to train.
            settings: of the config.
            total: optimizer steps of the run.
            kept: `masters`, `remainders` or nothing: what is kept beside the parameters. The moments are then float32.
        """
        self.settings, self.total, self.kept = settings, total, kept
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.remainders = [torch.zeros_like(p, dtype=torch.int16) for p in self.trained if kept == "remainders"]
        self.parameters = [_behind(p, kept) for p in self.trained]
        copies = {id(p): copy for p, copy in zip(self.trained, self.parameters)}
        muon = [copies[id(p)] for p in _hidden_matrices(model)] if settings.name == "muon" else []
        chosen = {id(p) for p in muon}
        rest = [(p, copies[id(p)]) for p in self.trained if id(copies[id(p)]) not in chosen]
        groups = [
            {"params": [copy for p, copy in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [copy for p, copy in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (settings.betas[0], settings.betas[1])
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if rest:  # of an adapter all are matrices
            peak, filled = settings.learning_rate, [g for g in groups if g["params"]]
            adamw = torch.optim.AdamW(filled, lr=peak, betas=betas, eps=settings.epsilon)
            self.optimizers.append((adamw, peak))
        if muon:
            matrices = Muon(muon, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay)
            self.optimizers.append((matrices, settings.matrix_learning_rate))

    def step(self, step: int) -> dict[str, float]:
        """Clip the gradient, update with step `step`'s learning rate, clear the gradient.

        Returns:
            `gradient_norm` (before clipping) and `learning_rate`, AdamW's where there is one.
        """
        multiplier = schedule(step, self.total, self.settings)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * multiplier
        limit = self.settings.max_gradient_norm or math.inf
        norm = self._update_sums(limit) if self.kept == "remainders" else self._update(limit)
        return {"gradient_norm": norm, "learning_rate": self.optimizers[0][1] * multiplier}

    def _update(self, limit: float) -> float:
        """Update the parameters, or their copies and with them the parameters; the norm of the gradient."""
        self._take_gradients()
        norm = float(full(nn.utils.clip_grad_norm_(self.parameters, limit)))
        if math.isfinite(norm):
            for optimizer, _ in self.optimizers:
                optimizer.step()
            self._give_weights()
        for optimizer, _ in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _update_sums(self, limit: float) -> float:
        """Update weight + remainder in float32, some parameters at a time; the norm of the gradient."""
        every = [place for place, p in enumerate(self.trained) if p.grad is not None]
        norms = [torch.linalg.vector_norm(self.trained[place].grad, dtype=torch.float32) for place in every]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        share = min(1.0, limit / (norm + 1e-6))
        for places in self._pieces(every) if math.isfinite(norm) else []:
            for place in places:
                whole, weight = self.parameters[place], self.trained[place]
                whole.data = joined(weight, self.remainders[place])
                whole.grad = cast(Tensor, weight.grad).float() * share
            for optimizer, _ in self.optimizers:
                optimizer.step()  # only what has a gradient
            for place in places:
                whole = self.parameters[place]
                split(whole, self.trained[place], self.remainders[place])
                whole.grad, whole.data = None, whole.data.new_empty(0)
        for weight in self.trained:
            weight.grad = None
        return norm

    def _pieces(self, places: Sequence[int]) -> Iterator[list[int]]:
        """Places of parameters that together have about `_PIECE` numbers, or of one that has more."""
        piece: list[int] = []
        count = 0
        for place in places:
            if piece and count + self.trained[place].numel() > _PIECE:
                yield piece
                piece, count = [], 0
            piece.append(place)
            count += self.trained[place].numel()
        if piece:
            yield piece

    def weights(self) -> list[Tensor]:
        """What is trained, in float32, in the order of the trained parameters."""
        if self.kept == "remainders":
            return [joined(p.detach(), rest) for p, rest in zip(self.trained, self.remainders)]
        return [p.detach().float() for p in self.parameters]

    def state_dict(self) -> list[dict[str, Any]]:
        """States of the optimizers, in order, and what is kept beside the parameters."""
        return [optimizer.state_dict() for optimizer, _ in self.optimizers] + [
            {name: [tensor.detach() for tensor in tensors]} for name, tensors in self._beside()
        ]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` gave, here or in a run on another number of processes."""
        for (optimizer, _), state in zip(self.optimizers, states):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                number: {name: divided(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": parts})
        with torch.no_grad():
            for name, tensors in self._beside():
                for tensor, saved in zip(tensors, states[-1][name]):
                    tensor.copy_(divided(saved, tensor))

    def _beside(self) -> list[tuple[str, Sequence[Tensor]]]:
        if not self.kept:
            return []
        return [(self.kept, self.parameters if self.kept == "masters" else self.remainders)]

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Move the gradients of the trained parameters to their copies."""
        if self.kept:
            for copy, parameter in zip(self.parameters, self.trained):
                copy.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None

    @torch.no_grad()
    def _give_weights(self) -> None:
        """Round the copies into the trained parameters."""
        if self.kept:
            for copy, parameter in zip(self.parameters, self.trained):
                parameter.copy_(copy)


def _behind(parameter: nn.Parameter, kept: str) -> nn.Parameter:
    """What an optimizer updates for a parameter; without content where that is made anew for every step."""
    if not kept:
        return parameter
    if kept == "masters":
        return nn.Parameter(parameter.detach().float().clone())
    return nn.Parameter(torch.empty(0, device=parameter.device))


def _hidden_matrices(model: LanguageModel) -> list[nn.Parameter]:
    # Embeddings and heads are lookup tables, not maps between hidden states: Muon is not meant for them.
    edges = {
        id(p)
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
        if m is not None
        for p in m.parameters()
    }
    heads = {id(p) for name, p in model.named_parameters() if name.split(".")[0] in ("score", "classifier", "lm_head")}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in edges | heads]
