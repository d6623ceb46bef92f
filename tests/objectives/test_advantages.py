"""Advantages: by hand, and what equal rewards give."""

import pytest
import torch

from multiref_cli.objectives.advantages import advantages, zero_spread

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])


def test_group_mean_over_group_deviation_by_hand():
    """Rewards 1 0 0 1: mean 1/2, deviation sqrt(1/3) with G - 1 = 3; the second group is all zeros."""
    given = advantages(REWARDS, scale="group")
    unit = 0.5 / ((1 / 3) ** 0.5 + 1e-4)
    torch.testing.assert_close(given[0], torch.tensor([unit, -unit, -unit, unit]))
    assert given[1].tolist() == [0.0] * 4


def test_leave_one_out_by_hand():
    """The mean of the others: 1 - 1/3 = 2/3 and 0 - 2/3 = -2/3."""
    given = advantages(REWARDS, "leave_one_out", "none")
    torch.testing.assert_close(given[0], torch.tensor([2 / 3, -2 / 3, -2 / 3, 2 / 3]))


def test_batch_scale_uses_one_deviation():
    """All groups are divided by the deviation of all eight rewards."""
    given = advantages(REWARDS, "group_mean", "batch")
    torch.testing.assert_close(given[0, 0], 0.5 / (REWARDS.std() + 1e-4))


def test_no_baseline_no_scale_is_the_reward():
    """Nothing is changed."""
    assert torch.equal(advantages(REWARDS, "none", "none"), REWARDS)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_constant_does_not_matter_and_rows_sum_to_zero(baseline, scale):
    """Adding 5 to every reward changes no advantage, and each group's advantages sum to 0."""
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    given = advantages(rewards, baseline, scale)
    torch.testing.assert_close(advantages(rewards + 5.0, baseline, scale), given)
    torch.testing.assert_close(given.sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_baseline_that_leaves_one_out_is_unbiased():
    """E over independent rewards of the advantage equals E of reward minus its mean; group_mean shrinks it."""
    rewards = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    own = rewards[:, 0]
    full = ((own - 0.5) * own).mean()
    assert (advantages(rewards, "leave_one_out", "none")[:, 0] * own).mean().item() == pytest.approx(full.item())
    assert (advantages(rewards, "group_mean", "none")[:, 0] * own).mean().item() == pytest.approx(full.item() / 2)


def test_zero_spread_is_found():
    """Only the group of equal rewards."""
    assert zero_spread(REWARDS).tolist() == [False, True]


def test_wrong_names_and_single_responses_are_refused():
    """A leave-one-out baseline of one response does not exist."""
    with pytest.raises(ValueError, match="group_mean"):
        advantages(REWARDS, "mean")
    with pytest.raises(ValueError, match="two responses"):
        advantages(REWARDS[:, :1], "leave_one_out")


def test_one_response_without_spread_gives_no_nan():
    """A deviation of one number is not defined; nothing is divided by it."""
    assert advantages(torch.ones(3, 1), "group_mean", "group").tolist() == [[0.0]] * 3


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "none"])
def test_equal_rewards_teach_nothing_where_there_is_a_scale(baseline):
    """Without a baseline they were divided by next to nothing: 10,000."""
    assert advantages(REWARDS, baseline, "group")[1].tolist() == [0.0] * 4
    assert not advantages(torch.ones(2, 3), baseline, "batch").any()
