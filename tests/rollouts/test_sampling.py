"""The sampler: its distribution, its truncations beside those of transformers, its random numbers."""

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from multiref_cli.errors import RequestError
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.sampling import draw, inverse_cdf, truncate, uniforms


def test_uniforms_depend_on_seed_sample_and_position_only():
    """More samples or more positions only append numbers; another seed gives others."""
    small, large = uniforms(7, 3, 5), uniforms(7, 6, 11)
    assert torch.equal(large[:3, :5], small)
    assert not torch.equal(uniforms(8, 3, 5), small)
    assert len(large.unique()) == large.numel()


def test_uniforms_are_uniform():
    """Mean 1/2 and variance 1/12 of 80,000 numbers, within five standard errors."""
    numbers = uniforms(2**62 + 5, 400, 200)
    assert abs(numbers.mean().item() - 0.5) < 5 * (1 / 12 / numbers.numel()) ** 0.5
    assert numbers.var().item() == pytest.approx(1 / 12, rel=0.02)
    assert numbers.min() >= 0 and numbers.max() < 1


def test_inverse_cdf_by_hand():
    """Probabilities 0, 1/4, 3/4, 0: up to 1/4 the second, beyond it the third, never one of the others."""
    probabilities = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).expand(4, 4)
    numbers = torch.tensor([0.0, 0.2499, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(probabilities, numbers).tolist() == [1, 1, 2, 2]


def test_frequencies_follow_the_probabilities():
    """Chi-square of 50,000 draws over 12 tokens stays under its 99.99 % point (11 degrees of freedom: 37.4)."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0))
    count = 50_000
    numbers = uniforms(3, 1, count)[0]
    for temperature in (0.7, 1.0, 1.6):
        tokens, logps = draw(logits.expand(count, 12), numbers, Sampling(temperature=temperature))
        expected = (logits / temperature).softmax(-1) * count
        statistic = ((torch.bincount(tokens, minlength=12) - expected) ** 2 / expected).sum()
        assert statistic < 37.4
        torch.testing.assert_close(logps, (logits / temperature).log_softmax(-1)[tokens])


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(top_k=5), [TopKLogitsWarper(5)]),
        (Sampling(top_p=0.7), [TopPLogitsWarper(0.7)]),
        (Sampling(min_p=0.2), [MinPLogitsWarper(0.2)]),
        (Sampling(top_k=9, top_p=0.6, min_p=0.1), [TopKLogitsWarper(9), TopPLogitsWarper(0.6), MinPLogitsWarper(0.1)]),
    ],
)
def test_truncations_agree_with_transformers(sampling, warpers):
    """The same tokens survive, with the same probabilities after renormalization."""
    logits = 2 * torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    ours = truncate(logits.softmax(-1), sampling)
    theirs = logits
    for warper in warpers:
        theirs = warper(None, theirs)
    torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), theirs.softmax(-1))


def test_greedy_takes_the_largest_and_reports_temperature_one():
    """Temperature 0 ignores the numbers; log-probs are those of the untempered softmax."""
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, logps = draw(logits, torch.tensor([0.999], dtype=torch.float64), Sampling(temperature=0.0))
    assert tokens.item() == 1
    torch.testing.assert_close(logps, logits.log_softmax(-1)[:, 1])


def test_log_probs_are_those_before_truncation():
    """top_k = 1 makes the choice certain, yet the log-prob is that of the whole softmax."""
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    _, logps = draw(logits, torch.tensor([0.5], dtype=torch.float64), Sampling(top_k=1))
    torch.testing.assert_close(logps, logits.log_softmax(-1)[:, 1])


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 1.0}, {"max_new_tokens": 0}]
)
def test_values_out_of_range_are_refused(wrong):
    """One sentence naming the field."""
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Sampling(**wrong)
