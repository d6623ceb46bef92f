"""Importance ratios and the clipped surrogate: by hand and by gradient."""

import math

import pytest
import torch

from multiref_cli.objectives.policy_gradient import clipped_surrogate, importance_ratios, sampler_weights

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_ratios_by_hand():
    """Log ratios 0.2, 0.4 (masked: 9) give exp of each, or exp(0.3) for the response."""
    old = torch.zeros(2, 3)
    logps = torch.tensor([[0.2, 0.4, 9.0], [0.0, 0.3, -0.3]])
    token = importance_ratios(logps, old, MASK)
    torch.testing.assert_close(token[0], torch.tensor([math.exp(0.2), math.exp(0.4), 1.0]))
    sequence = importance_ratios(logps, old, MASK, "sequence")
    torch.testing.assert_close(sequence, torch.tensor([[math.exp(0.3)] * 3, [1.0] * 3]))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_on_policy_gradient_is_the_policy_gradient(level):
    """At ratio 1 the summed loss has gradient -A for each token (token) or -A / length (sequence)."""
    logps = torch.full((2, 3), -1.0).requires_grad_()
    ratios = importance_ratios(logps, logps.detach(), MASK, level)
    loss, stopped = clipped_surrogate(ratios, torch.tensor([2.0, -3.0]))
    (loss * MASK).sum().backward()
    expected = -torch.tensor([[2.0], [-3.0]]) * MASK
    torch.testing.assert_close(logps.grad, expected.float())
    assert not stopped.any()


def test_sequence_ratios_with_one_advantage_have_the_gradient_of_gspo_as_printed():
    """Off the policy that sampled: one ratio a response, differentiated through the mean (GSPO), and token by token."""
    logps = torch.tensor([[-1.0, -0.6, -9.0], [-0.8, -1.3, -1.1]]).requires_grad_()
    old, advantage = torch.full((2, 3), -1.0), torch.tensor([2.0, -3.0])
    mean = (torch.where(MASK, logps - old, 0.0).sum(1) / MASK.sum(1))[:, None].exp()
    printed, _ = clipped_surrogate(mean, advantage, 0.5, 0.5)
    (expected,) = torch.autograd.grad((printed.expand(2, 3) * MASK).sum(), logps)
    ours, _ = clipped_surrogate(importance_ratios(logps, old, MASK, "sequence"), advantage, 0.5, 0.5)
    (given,) = torch.autograd.grad((ours * MASK).sum(), logps)
    torch.testing.assert_close(given, expected)


def test_sequence_ratios_give_each_token_its_own_advantage():
    """On the policy that sampled the gradient of a token is minus its own advantage, not the response's mean."""
    logps = torch.full((2, 3), -1.0).requires_grad_()
    own = torch.tensor([[1.0, -2.0, 5.0], [0.5, 3.0, -1.0]])
    loss, _ = clipped_surrogate(importance_ratios(logps, logps.detach(), MASK, "sequence"), own)
    (given,) = torch.autograd.grad((loss * MASK).sum(), logps)
    torch.testing.assert_close(given, -own * MASK)


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


def test_sampler_weights_by_hand():
    """Log ratios 0.2 and 0.4 (masked: 9) are exp of each, or exp(0.6) for the response; at most the cap."""
    sampler = torch.zeros(2, 3)
    trainer = torch.tensor([[0.2, 0.4, 9.0], [0.0, 0.3, -0.3]], requires_grad=True)
    token = sampler_weights(trainer, sampler, MASK)
    assert not token.requires_grad
    torch.testing.assert_close(token[0], torch.tensor([math.exp(0.2), math.exp(0.4), 1.0]))
    sequence = sampler_weights(trainer, sampler, MASK, "sequence")
    torch.testing.assert_close(sequence, torch.tensor([[math.exp(0.6)] * 3, [1.0] * 3]))
    torch.testing.assert_close(sampler_weights(trainer, sampler, MASK, "sequence", 1.5)[0], torch.full((3,), 1.5))
    with pytest.raises(ValueError, match="allowed: token, sequence"):
        sampler_weights(trainer, sampler, MASK, "word")


@pytest.mark.parametrize("cap", [1e6, 1.2])
def test_weighted_samples_of_the_engine_have_the_mean_of_the_trainer_but_for_the_cap(cap):
    """Over all 16 responses of two tokens: sum q min(p / q, cap) f is sum min(p, cap q) f."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    value = torch.randn(16, generator=generator, dtype=torch.float64)
    mask = torch.ones(16, 2, dtype=torch.bool)
    weights = sampler_weights(p[pairs], q[pairs], mask, "sequence", cap)[:, 0]
    trainer, sampler = p[pairs].sum(1).exp(), q[pairs].sum(1).exp()
    expected = (torch.minimum(trainer, cap * sampler) * value).sum()
    torch.testing.assert_close((sampler * weights * value).sum(), expected)
    unbiased = torch.isclose(expected, (trainer * value).sum())
    assert bool(unbiased) == (cap > 1e3)


def test_unknown_level_is_refused():
    """The message names what is allowed."""
    with pytest.raises(ValueError, match="sequence"):
        importance_ratios(torch.zeros(2, 3), torch.zeros(2, 3), MASK, "word")
