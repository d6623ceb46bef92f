"""Claim: a DPO step of the 0.5B policy uses at least 40 % of the GPU's matrix products."""

import torch

from multiref_cli.config.schema import Optimizer
from multiref_cli.models.logprobs import token_logps
from multiref_cli.objectives.preference import implicit_reward, preference_loss
from multiref_cli.runs.cards import here
from multiref_cli.training.optimizer import Optimizers
from tests.gpu.parts import record, seconds


class Step:
    """Forward and backward pass of some pairs, and the optimizer's step, from stored reference log-probabilities."""

    def __init__(self, scale, pairs, prompt, response):
        self.scale, self.model = scale, scale.model().train()
        self.rows = scale.rows(2 * pairs, prompt, response)
        self.optimizers = Optimizers(self.model, Optimizer(learning_rate=1e-6, schedule="constant", warmup=0), 1000)
        self.stored = torch.full((pairs, 2), -float(response), dtype=torch.float64, device=scale.device)
        self.number = 0

    def __call__(self):
        """One step; returns its loss."""
        with self.scale.precision.autocast():
            sums = token_logps(self.model, self.rows).logps.sum(-1, dtype=torch.float64).reshape(-1, 2)
        reward = implicit_reward(sums, self.stored, 0.1, 0.0, 0.0)
        loss = preference_loss(reward[:, 0], reward[:, 1]).mean()
        loss.backward()
        self.optimizers.step(self.number)
        self.number += 1
        return float(loss.detach())


def test_share_of_the_peak(scale):
    step = Step(scale, scale.choose(16, 2), scale.choose(256, 6), scale.choose(384, 8))
    losses = []
    taken = seconds(lambda: losses.append(step()), scale.device, repeats=scale.choose(5, 1))
    tokens, parameters = step.rows.real_tokens, sum(p.numel() for p in step.model.parameters())
    use = 6 * parameters * tokens / taken / here(scale.device).operations
    record("dpo step", tokens_per_second=tokens / taken, use_of_matrix_products=use, loss=losses[-1])
    assert all(loss == loss for loss in losses) and use > 0
    if scale.real:
        assert use >= 0.4


def test_beside_trl(scale, tmp_path):
    """The same pairs through TRL's DPOTrainer with its reference precomputed: at least 1.5 times its speed."""
    from tests.gpu.trl_step import TrlStep

    pairs, prompt, response = scale.choose(16, 2), scale.choose(256, 6), scale.choose(384, 8)
    ours, theirs = Step(scale, pairs, prompt, response), TrlStep(scale, pairs, prompt, response, tmp_path)
    repeats = scale.choose(5, 1)
    own, other = seconds(ours, scale.device, repeats), seconds(theirs, scale.device, repeats)
    record("dpo step beside TRL", times_as_fast=other / own, seconds=own, seconds_trl=other)
    if scale.real:
        assert other / own >= 1.5
