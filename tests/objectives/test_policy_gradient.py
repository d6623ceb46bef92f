"""Importance ratios and the clipped surrogate: by hand and by gradient."""

import math

import pytest
import torch

from multiref_cli.objectives.policy_gradient import clipped_surrogate, importance_ratios

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_ratios_by_hand():
    """Log ratios 0.2, 0.4 (masked: 9) give exp of each, or exp(0.3) for the response."""
    old = torch.zeros(2, 3)
    logps = torch.tensor([[0.2, 0.4, 9.0], [0.0, 0.3, -0.3]])
    token = importance_ratios(logps, old, MASK)
    torch.testing.assert_close(token[0], torch.tensor([math.exp(0.2), math.exp(0.4), 1.0]))
    sequence = importance_ratios(logps, old, MASK, "sequence")
    torch.testing.assert_close(sequence, torch.tensor([[math.exp(0.3)], [1.0]]))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_on_policy_gradient_is_the_policy_gradient(level):
    """At ratio 1 the summed loss has gradient -A for each token (token) or -A / length (sequence)."""
    logps = torch.full((2, 3), -1.0).requires_grad_()
    ratios = importance_ratios(logps, logps.detach(), MASK, level)
    loss, stopped = clipped_surrogate(ratios, torch.tensor([2.0, -3.0]))
    (loss.expand(2, 3) * MASK).sum().backward()
    expected = -torch.tensor([[2.0], [-3.0]]) * MASK
    torch.testing.assert_close(logps.grad, expected.float())
    assert not stopped.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient", "stops"),
    [
        (1.5, 1.0, -1.3, 0.0, True),
        (1.5, -1.0, 1.5, 1.0, False),
        (0.5, 1.0, -0.5, -1.0, False),
        (0.5, -1.0, 0.8, 0.0, True),
        (1.1, 2.0, -2.2, -2.0, False),
    ],
)
def test_clipping_by_hand(ratio, advantage, value, gradient, stops):
    """Only moving further in the direction that the advantage wants is stopped; low 0.2, high 0.3."""
    ratios = torch.tensor([[ratio]], requires_grad=True)
    loss, stopped = clipped_surrogate(ratios, torch.tensor([advantage]), 0.2, 0.3)
    loss.sum().backward()
    assert loss.item() == pytest.approx(value)
    assert ratios.grad.item() == pytest.approx(gradient)
    assert bool(stopped) is stops


def test_unknown_level_is_refused():
    """The message names what is allowed."""
    with pytest.raises(ValueError, match="sequence"):
        importance_ratios(torch.zeros(2, 3), torch.zeros(2, 3), MASK, "word")
