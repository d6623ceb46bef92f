"""Masked reductions: by hand, blind to what is masked, and additive over micro-batches."""

import pytest
import torch

from multiref_cli.objectives.aggregate import REDUCTIONS, StepSize, masked_mean, masked_sum, reduce

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_each_reduction_by_hand():
    """Sequences of 3 and 1 tokens with sums 6 and 4: (2 + 4) / 2, 10 / 4, 10 / (2 * 5)."""
    expected = {"grpo": 3.0, "bnpo": 2.5, "dapo": 2.5, "dr_grpo": 1.0}
    for how in REDUCTIONS:
        assert reduce(VALUES, MASK, how, StepSize.of(MASK, length=5)).item() == pytest.approx(expected[how])


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("filler", [1e30, float("nan"), float("-inf")])
def test_masked_entries_change_neither_value_nor_gradient(how, filler):
    """Whatever stands where the mask is false, the loss and its gradient are the same, and the gradient there is 0."""
    results = []
    for fill in (0.0, filler):
        values = torch.where(MASK, VALUES, torch.tensor(fill)).requires_grad_()
        loss = reduce(values, MASK, how)
        loss.backward()
        results.append((loss.detach(), values.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][~MASK] == 0).all()


@pytest.mark.parametrize("how", REDUCTIONS)
def test_left_right_and_no_padding_agree(how):
    """Moving the tokens of a row, or cutting the padding off, changes nothing."""
    step = StepSize.of(MASK, length=7)
    right = reduce(VALUES, MASK, how, step)
    left = reduce(VALUES.flip(1), MASK.flip(1), how, step)
    alone = [reduce(VALUES[i : i + 1, :n], MASK[i : i + 1, :n], how, step) for i, n in enumerate((3, 1))]
    assert right.item() == pytest.approx(left.item())
    assert right.item() == pytest.approx(sum(alone).item())


@pytest.mark.parametrize("how", REDUCTIONS)
def test_micro_batches_add_up(how):
    """The shares of any split of the rows add up to the loss of the whole step."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.randint(1, 6, (7, 1), generator=generator)
    step = StepSize.of(mask, length=9)
    parts = [reduce(values[a:b], mask[a:b], how, step) for a, b in ((0, 2), (2, 3), (3, 7))]
    torch.testing.assert_close(sum(parts), reduce(values, mask, how, step))


def test_weights_multiply_sequences():
    """grpo with weights 3 and 1: (3 * 2 + 1 * 4) / 2."""
    assert reduce(VALUES, MASK, "grpo", weights=torch.tensor([3.0, 1.0])).item() == pytest.approx(5.0)


def test_means_of_nothing_are_zero():
    """An empty mask gives 0, not nan."""
    nothing = torch.zeros_like(MASK)
    assert masked_mean(VALUES, nothing).item() == 0.0
    assert masked_mean(VALUES, nothing, 1).tolist() == [0.0, 0.0]
    assert reduce(VALUES, nothing, "grpo").item() == 0.0


def test_half_precision_adds_up_in_float32():
    """4,096 ones in bfloat16 would stop at 256 if they were added in bfloat16."""
    ones = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert masked_sum(ones, torch.ones_like(ones, dtype=torch.bool)).item() == 4096.0


def test_unknown_reduction_is_refused():
    """The message names what is allowed."""
    with pytest.raises(ValueError, match="dr_grpo"):
        reduce(VALUES, MASK, "mean")
