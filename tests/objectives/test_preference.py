import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiref_cli.objectives.mixing import power_mean
from multiref_cli.objectives.preference import implicit_reward, multi_preference_loss, preference_loss
from multiref_cli.theory import exact

ORDERS = [-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0]


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_loss_by_hand():
    """beta = 0.5, log ratios log 9 and 0: implicit rewards log 3 and 0, sigmoid(log 3) = 3/4.

    loss -log(3/4); with eps = 0.1: -0.9 log(3/4) - 0.1 log(1/4).
    """
    mixed = double([-7.0])
    chosen = implicit_reward(mixed + math.log(9), mixed, beta=0.5, order=0.0)
    rejected = implicit_reward(mixed, mixed, beta=0.5, order=0.0)
    assert chosen.item() == pytest.approx(math.log(3), rel=1e-14) and rejected.item() == 0.0
    assert preference_loss(chosen, rejected).item() == pytest.approx(-math.log(0.75), rel=1e-14)
    smoothed = preference_loss(chosen, rejected, label_smoothing=0.1).item()
    assert smoothed == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25), rel=1e-14)


def test_forward_kl_loss_by_hand():
    """beta = 2, u = 4 for chosen and 1/2 for rejected: rewards 2 (1 - 1/4) = 1.5 and 2 (1 - 2) = -2, d = 3.5."""
    chosen = implicit_reward(double([4.0]).log(), double([0.0]), beta=2.0, order=1.0, clip=10.0)
    rejected = implicit_reward(double([0.5]).log(), double([0.0]), beta=2.0, order=1.0, clip=10.0)
    loss = preference_loss(chosen, rejected)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3.5)), rel=1e-13)


def test_without_a_clip_the_score_is_exact():
    """Forward KL at u = 1/20: 1 - 20; with a clip at 1 nat it would be 1 - e - (log 20 - 1) e."""
    reward = implicit_reward(double([1 / 20]).log(), double([0.0]), 1.0, 1.0)
    assert reward.item() == pytest.approx(-19.0, rel=1e-13)


def test_ipo_by_hand():
    """beta = 0.1, scores 2 over 4 tokens and -3 over 3: h = 0.5 + 1 = 1.5, (1.5 - 1 / 0.2)^2 = 12.25; lengths 1: 0."""
    chosen, rejected = double([0.2]), double([-0.3])
    loss = preference_loss(chosen, rejected, loss="ipo", beta=0.1, lengths=torch.tensor([[4], [3]]))
    assert loss.item() == pytest.approx(12.25, rel=1e-14)
    printed = preference_loss(chosen, rejected, loss="ipo", beta=0.1, lengths=torch.ones(2, 1))
    assert printed.item() == pytest.approx(0.0, abs=1e-25)


def test_refuses_what_has_no_meaning():
    x, lengths = torch.zeros(1), torch.ones(2, 1)
    with pytest.raises(ValueError, match="allowed: sigmoid, ipo"):
        preference_loss(x, x, loss="hinge")
    with pytest.raises(ValueError, match="lengths"):
        preference_loss(x, x, loss="ipo", beta=0.1)
    with pytest.raises(ValueError, match="needs beta"):
        preference_loss(x, x, loss="ipo", lengths=lengths)
    with pytest.raises(ValueError, match="label smoothing"):
        preference_loss(x, x, loss="ipo", beta=0.1, lengths=lengths, label_smoothing=0.1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_ln_2_at_the_start(order, smoothing):
    """One reference, which is the policy's own start; also one reference listed twice."""
    policy = double([[-20.0, -400.0], [-35.0, -380.0]])
    for references in (policy[None], policy.expand(2, 2, 2)):
        weights = torch.full((len(references),), 1 / len(references))
        rewards = implicit_reward(policy, power_mean(references, weights, order), 0.1, order, clip=10.0)
        losses = preference_loss(rewards[0], rewards[1], label_smoothing=smoothing)
        assert losses.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    difference=st.floats(-40, 40),
    more=st.floats(0.01, 10),
    eps=st.floats(0.0, 0.5),
    level=st.floats(-30, 30),
)
def test_properties_of_the_sigmoid_loss(difference, more, eps, level):
    chosen, rejected = double([level + difference]).requires_grad_(), double([level])
    loss = preference_loss(chosen, rejected, label_smoothing=eps)
    # swapping the responses is flipping the label
    assert preference_loss(rejected, chosen, label_smoothing=1 - eps).item() == pytest.approx(loss.item(), rel=1e-12)
    # the slope is sigmoid(d) - (1 - eps): zero where the model believes the label as much as eps says
    loss.backward()
    assert chosen.grad.item() == pytest.approx(1 / (1 + math.exp(-difference)) - (1 - eps), abs=1e-12)
    assert preference_loss(chosen + more, rejected).item() < preference_loss(chosen, rejected).item()


@pytest.mark.parametrize("order", ORDERS)
def test_gradient(order):
    """Against finite differences, through references, score and both losses; some log ratios beyond the clip."""
    references = double([[[-9.0, -30.0], [-11.0, -22.0]], [[-8.0, -33.0], [-14.0, -20.0]]])
    mixed = power_mean(references, torch.tensor([0.3, 0.7]), order)
    policy = (mixed + double([[0.7, -3.1], [-0.2, 4.0]])).requires_grad_()
    lengths = torch.tensor([[4, 9], [5, 8]])

    def sigmoid(x):
        rewards = implicit_reward(x, mixed, 0.3, order, clip=2.0)
        return preference_loss(rewards[0], rewards[1], label_smoothing=0.05)

    def ipo(x):
        rewards = implicit_reward(x, mixed, 0.3, order, clip=2.0)
        return preference_loss(rewards[0], rewards[1], loss="ipo", beta=0.3, lengths=lengths)

    assert torch.autograd.gradcheck(sigmoid, policy, rtol=1e-4)
    assert torch.autograd.gradcheck(ipo, policy, rtol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_a_thousand_tokens_and_references_100_nats_apart(order):
    """float32 equals float64 to the rounding of sums of 2,600 nats; loss and gradient are finite in every case."""
    generator = torch.Generator().manual_seed(0)
    tokens = -5 * torch.rand(2, 4, 1000, generator=generator, dtype=torch.float64)
    policy = tokens.sum(-1)
    references = torch.stack([policy - double([[60.0], [40.0]]), policy + double([[40.0], [61.0]])])
    weights = torch.tensor([0.4, 0.6])

    def loss_and_gradient(dtype):
        x = policy.to(dtype).requires_grad_()
        mixed = power_mean(references.to(dtype), weights, order)
        rewards = implicit_reward(x, mixed, 0.01, order, clip=10.0)
        losses = preference_loss(rewards[0], rewards[1])
        losses.sum().backward()
        return losses.detach().double(), x.grad.double()

    loss, gradient = loss_and_gradient(torch.float32)
    exact_loss, exact_gradient = loss_and_gradient(torch.float64)
    assert loss.isfinite().all() and gradient.isfinite().all() and exact_loss.isfinite().all()
    # 5e-4 nats of rounding, times the largest slope of the clipped score
    scale = 5e-4 * 0.01 * math.exp(10 * abs(order)) if order else 5e-6
    assert (loss - exact_loss).abs().max() <= scale + 1e-6 * exact_loss.max()
    assert torch.allclose(gradient, exact_gradient, rtol=1e-3, atol=1e-6)
    if order == 0:
        by_hand = 0.01 * (
            (policy - 0.4 * references[0] - 0.6 * references[1])[0]
            - (policy - 0.4 * references[0] - 0.6 * references[1])[1]
        )
        assert exact_loss.tolist() == pytest.approx((-by_hand.sigmoid().log()).tolist(), rel=1e-6)


def test_the_gradient_does_not_die_beyond_the_clip():
    """Forward KL, chosen 300 nats below its reference: slope beta e^10 a nat, where an unclipped score is infinite."""
    policy = torch.tensor([-1300.0], requires_grad=True)
    reward = implicit_reward(policy, torch.tensor([-1000.0]), 1e-6, 1.0, clip=10.0)
    preference_loss(reward, torch.zeros(1)).backward()
    weight = 1 / (1 + math.exp(1e-6 * (1 - math.exp(10) - 290 * math.exp(10))))
    assert policy.grad.item() == pytest.approx(-1e-6 * math.exp(10) * weight, rel=1e-4)


@pytest.mark.parametrize("order", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_the_optimum_of_the_regularized_reward_minimizes_the_expected_loss(order):
    """Bradley-Terry labels of every pair out of 6 responses: the expected loss is stationary at the closed form."""
    generator = torch.Generator().manual_seed(1)
    references = torch.randn(3, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    weights, beta = double([0.5, 0.3, 0.2]), 0.8
    reward = torch.rand(6, generator=generator, dtype=torch.float64)
    best = exact.optimal_policy(references.exp(), weights, reward, beta, order).log()
    mixed = power_mean(references, weights, order)
    first, second = torch.combinations(torch.arange(6)).T
    preferred = (reward[first] - reward[second]).sigmoid()

    def expected_loss(logits):
        rewards = implicit_reward(logits.log_softmax(-1), mixed, beta, order)
        win, lose = rewards[first], rewards[second]
        return (preferred * preference_loss(win, lose) + (1 - preferred) * preference_loss(lose, win)).mean()

    logits = best.clone().requires_grad_()
    expected_loss(logits).backward()
    assert logits.grad.abs().max() < 1e-10
    assert expected_loss(best + 0.1 * torch.randn(6, generator=generator, dtype=torch.float64)) > expected_loss(best)
    found = implicit_reward(best, mixed, beta, order)
    assert ((found - reward) - (found - reward).mean()).abs().max() < 1e-10


def test_multi_dpo_by_hand():
    """Losses -log(3/4) and -log(1/4) with weights (0.7, 0.3)."""
    policy, references = double([-5.0]), double([[-5.0 - math.log(3)], [-5.0 + math.log(3)]])
    chosen = implicit_reward(policy, references, 1.0, 0.0)
    losses = preference_loss(chosen, torch.zeros_like(chosen))
    total = multi_preference_loss(losses, torch.tensor([0.7, 0.3], dtype=torch.float64))
    assert total.shape == (1,)
    assert total.item() == pytest.approx(-0.7 * math.log(0.75) - 0.3 * math.log(0.25), rel=1e-14)


def test_multi_dpo_corners_equal_references_and_dropped_references():
    losses = torch.tensor([[0.3, 0.9], [torch.nan, torch.inf], [0.5, 0.1]], requires_grad=True)
    corner = multi_preference_loss(losses, torch.tensor([0.0, 0.0, 1.0]))
    assert torch.equal(corner, losses[2])
    mixed = multi_preference_loss(losses, torch.tensor([0.25, 0.0, 0.75]))
    assert mixed.tolist() == pytest.approx([0.45, 0.3], rel=1e-6)
    mixed.sum().backward()
    assert losses.grad.tolist() == [[0.25, 0.25], [0.0, 0.0], [0.75, 0.75]]
    equal = multi_preference_loss(losses[:1].expand(3, 2), torch.tensor([0.2, 0.2, 0.6]))
    assert equal.tolist() == pytest.approx(losses[0].tolist(), rel=1e-6)
    with pytest.raises(ValueError, match="need as many weights"):
        multi_preference_loss(losses, torch.tensor([0.5, 0.5]))


def test_multi_dpo_is_not_dpo_towards_the_mixture():
    """By Jensen the sum of losses is at least the loss of the mean difference (order 0), and more when they differ."""
    policy, references = double([[-5.0], [-6.0]]), double([[[-5.0], [-9.0]], [[-8.0], [-4.0]]])
    weights = torch.tensor([0.5, 0.5])
    rewards = implicit_reward(policy, references, 1.0, 0.0)
    multi = multi_preference_loss(preference_loss(rewards[:, 0], rewards[:, 1]), weights)
    rewards = implicit_reward(policy, power_mean(references, weights, 0.0), 1.0, 0.0)
    assert multi.item() > preference_loss(rewards[0], rewards[1]).item() + 0.1
