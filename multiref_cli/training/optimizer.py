"""Optimizers and the learning-rate schedule, a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from multiref_cli.config import schema
from multiref_cli.training.muon import Muon
from multiref_cli.types import LanguageModel


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
    """AdamW, or Muon for hidden matrices beside AdamW for the rest, behind one step."""

    def __init__(self, model: LanguageModel, settings: schema.Optimizer, total: int, masters: bool = False) -> None:
        """Takes the parameters that have a gradient.

        Args:
            model: to train.
            settings: of the config.
            total: optimizer steps of the run.
            masters: update a float32 copy of every parameter, with float32 moments, and round it after each step.
        """
        self.settings, self.total = settings, total
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = [nn.Parameter(p.detach().float().clone()) for p in self.trained] if masters else self.trained
        copies = {id(p): copy for p, copy in zip(self.trained, self.parameters)}
        muon = [copies[id(p)] for p in _hidden_matrices(model)] if settings.name == "muon" else []
        chosen = {id(p) for p in muon}
        rest = [p for p in self.parameters if id(p) not in chosen]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (settings.betas[0], settings.betas[1])
        peak = settings.learning_rate
        adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=peak, betas=betas, eps=settings.epsilon)
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, peak)]
        if muon:
            matrices = Muon(muon, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay)
            self.optimizers.append((matrices, settings.matrix_learning_rate))

    def step(self, step: int) -> dict[str, float]:
        """Clip the gradient, update with step `step`'s learning rate, clear the gradient.

        Returns:
            `gradient_norm` (before clipping) and `learning_rate`.
        """
        self._take_gradients()
        limit = self.settings.max_gradient_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        multiplier = schedule(step, self.total, self.settings)
        if math.isfinite(norm):
            for optimizer, peak in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = peak * multiplier
                optimizer.step()
            self._give_weights()
        for optimizer, _ in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return {"gradient_norm": norm, "learning_rate": self.optimizers[0][1] * multiplier}

    def state_dict(self) -> list[dict[str, Any]]:
        """States of the optimizers, in order, and the float32 copies of the weights where there are any."""
        copies = [{"masters": [p.detach() for p in self.parameters]}] if self._masters else []
        return [optimizer.state_dict() for optimizer, _ in self.optimizers] + copies

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` gave."""
        for (optimizer, _), state in zip(self.optimizers, states):
            optimizer.load_state_dict(state)
        if self._masters:
            with torch.no_grad():
                for copy, saved in zip(self.parameters, states[-1]["masters"]):
                    copy.copy_(saved)

    @property
    def _masters(self) -> bool:
        return self.parameters is not self.trained

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Move the gradients of the trained parameters to their copies."""
        if self._masters:
            for copy, parameter in zip(self.parameters, self.trained):
                copy.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None

    @torch.no_grad()
    def _give_weights(self) -> None:
        """Round the copies into the trained parameters."""
        if self._masters:
            for copy, parameter in zip(self.parameters, self.trained):
                parameter.copy_(copy)


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
