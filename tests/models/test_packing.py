"""The layout of rows, by hand, and the batches they are put into."""

import pytest
import torch

from multiref_cli.models.packing import micro_batches, pack, row_length, sharing_pays

PROMPTS = [[10, 11, 12], [20]]
COMPLETIONS = [[[1, 2, 3], [4, 5]], [[6], [7, 8, 9]]]


def test_shared_row_by_hand():
    """Prompt 10 11 12, responses 1 2 3 and 4 5: inputs 10 11 12 | 1 2 | 4; both first tokens predicted at place 2."""
    packed = pack(PROMPTS[:1], COMPLETIONS[:1], pad_id=0, share_prompt=True)
    assert packed.input_ids.tolist() == [[10, 11, 12, 1, 2, 4]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert packed.predictor.tolist() == [2, 3, 4, 2, 5]
    assert packed.targets.tolist() == [1, 2, 3, 4, 5]
    assert packed.mask.tolist() == [[True, True, True], [True, True, False]]
    assert packed.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert packed.real_tokens == packed.padded_tokens == 6


def test_separate_rows_by_hand():
    packed = pack(PROMPTS, COMPLETIONS, pad_id=99, share_prompt=False)
    assert packed.input_ids.tolist() == [
        [10, 11, 12, 1, 2],
        [10, 11, 12, 4, 99],
        [20, 99, 99, 99, 99],
        [20, 7, 8, 99, 99],
    ]
    assert packed.attention_mask is None
    assert packed.predictor.tolist() == [2, 3, 4, 7, 8, 10, 15, 16, 17]
    assert (packed.real_tokens, packed.padded_tokens) == (13, 20)


def test_a_masked_row_always_sees_something():
    packed = pack(PROMPTS, COMPLETIONS, pad_id=0, share_prompt=True)
    assert packed.attention_mask.any(-1).all()


def test_single_sequences_need_no_mask():
    packed = pack(PROMPTS, [[[1, 2]], [[3]]], pad_id=0, share_prompt=True)
    assert packed.attention_mask is None


def test_an_empty_completion_keeps_its_place():
    packed = pack(PROMPTS, [[[], [4, 5]], [[6], []]], pad_id=0, share_prompt=True)
    assert packed.mask.sum(1).tolist() == [0, 2, 1, 0]
    assert packed.targets.tolist() == [4, 5, 6]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        pack([[]], [[[1]]], pad_id=0, share_prompt=True)


def test_row_lengths_match_the_layout():
    for share in (True, False):
        lengths = [
            row_length(len(p), [len(c) for c in group], share) for p, group in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
        assert max(lengths) == pack(PROMPTS, COMPLETIONS, 0, share).input_ids.shape[1]


def test_micro_batches_hold_every_item_once_within_the_limit():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 300, (200,), generator=generator).tolist()
    batches = micro_batches(lengths, max_tokens=1024, rows=2)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert batches == micro_batches(lengths, max_tokens=1024, rows=2)
    for batch in batches:
        assert 2 * len(batch) * max(lengths[i] for i in batch) <= 1024
    padded = sum(2 * len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded <= 1.1 * 2 * sum(lengths)


def test_several_processes_have_batches_of_a_part_of_the_tokens_each():
    """By hand: 400 tokens for 4 processes are at most 100 a batch; alone they would be one batch."""
    lengths = [50, 50, 50, 50, 50, 50, 50, 50]
    assert len(micro_batches(lengths, max_tokens=1024)) == 1
    assert micro_batches(lengths, 1024, processes=4) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert micro_batches([5, 3], 1024, rows=2, processes=4) == [[0], [1]]


def test_an_oversized_item_has_its_own_batch():
    assert micro_batches([5, 100, 4], max_tokens=10) == [[1], [0, 2]]


def test_lengths_that_differ_much_are_not_put_together():
    """By hand: 1000 + 900 pads 2000 over 1900, adding 300 would pad 3000 over 2200; small ones go together anyway."""
    assert micro_batches([1000, 900, 300, 200], max_tokens=8192) == [[0, 1], [2], [3]]
    assert micro_batches([250, 10], max_tokens=8192) == [[0, 1]]


def test_sharing_pays_for_long_prompts_and_not_for_short_ones():
    assert sharing_pays([256], [[64] * 8], hidden_size=320)
    assert sharing_pays([256], [[256, 256]], hidden_size=320)
    assert not sharing_pays([2], [[512] * 8], hidden_size=64)
    assert not sharing_pays([100], [[100]], hidden_size=320)
    assert not sharing_pays([256], [[64] * 8], hidden_size=None)


def test_padding_is_at_no_position_that_a_sequence_lacks():
    """The first row is 3 + 2 + 2 wide, its sequences end at position 4; the second one's padding begins at 0 again."""
    packed = pack([[1, 2, 3], [4]], [[[5, 6, 7], [5, 6, 7]], [[8], [9]]], pad_id=0, share_prompt=True)
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4], [0, 0, 0, 0, 0, 0, 0]]
    limit = torch.zeros(5)  # a model with as many positions as the longest sequence has tokens
    assert limit[packed.position_ids].shape == packed.input_ids.shape
