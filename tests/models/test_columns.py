"""The top-k estimate of a divergence, enumerated over a small vocabulary: unbiased, value and gradient, for every k."""

import pytest
import torch

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.models.columns import topk_token_divergence
from multiref_cli.models.logprobs import LIVE_ELEMENTS, token_divergence
from multiref_cli.models.packing import pack
from multiref_cli.objectives.divergence import amari_columns, amari_divergence, kind_of, ratio_estimate
from multiref_cli.objectives.penalty import penalty_to_go
from tests.algorithms.test_grpo_truth import SEQUENCES, VOCABULARY, TabularLM
from tests.models.test_logprobs import WIDE, assert_same_gradients, gradients, memory_of

# Exact in float32, in which means over the vocabulary take their weights.
WEIGHTS = (0.375, 0.625)
# Penalties over two references, and whether the mean is divided by its sum.
PENALTIES = {
    "rkl": ([Term(0.0, Mix(0.0, WEIGHTS))], True),
    "rkl, sum over references": ([Term(0.0, Mix(0.0, WEIGHTS))], False),
    "fkl": ([Term(1.0, Mix(1.0, WEIGHTS))], True),
    "hellinger": ([Term(0.5, Mix(0.5, WEIGHTS))], True),
    "chi2": ([Term(-1.0, Mix(-1.0, WEIGHTS))], True),
    "order 2, not normalized": ([Term(2.0, Mix(2.0, WEIGHTS))], False),
    "mrpo": ([Term(0.0, Mix(-1.0, WEIGHTS))], True),
    "mrpo, not normalized": ([Term(0.0, Mix(-1.0, WEIGHTS))], False),
    "forward on the harmonic mean, not normalized": ([Term(1.0, Mix(-1.0, WEIGHTS))], False),
    "signed": ([Term(0.0, Mix(0.0, (-0.375, 1.375)))], True),
    "js and 2 x fkl": ([Term("jensen_shannon", Mix(0.0, (1.0, 0.0)), 0.3), Term(1.0, Mix(1.0, (0.0, 1.0)), 2.0)], True),
}
ALL = pack([[0]], [SEQUENCES.tolist()], 0, share_prompt=False)


def losses(found, policy, mask) -> torch.Tensor:
    """(125,) of every leaf: its tokens' penalties, and what each token has still to pay."""
    to_go = penalty_to_go(found.divergence, mask, 1)
    return (found.divergence + to_go * found.logps).sum(-1)


@pytest.mark.parametrize("name", PENALTIES)
def test_unbiased_in_value_and_gradient_for_every_k(name):
    """All 125 responses, each with its probability: with the penalty to go the whole gradient, as `exact` has it."""
    terms, normalized = PENALTIES[name]
    references = [TabularLM(1, 1.5), TabularLM(2, 1.5)]
    policy = TabularLM(4, 1.5)
    chance = policy.token_logps().sum(-1).exp().detach()
    exact = token_divergence(policy, references, terms, ALL, normalized=normalized)
    expected = gradients(policy, (chance * losses(exact, policy, ALL.mask)).sum())
    spreads = []
    for count in range(VOCABULARY + 2):
        found = topk_token_divergence(policy, references, terms, ALL, count, entropy=True, normalized=normalized)
        value = (chance * found.divergence.sum(-1)).sum()
        torch.testing.assert_close(value, (chance * exact.divergence.sum(-1)).sum())
        assert_same_gradients(gradients(policy, (chance * losses(found, policy, ALL.mask)).sum()), expected, 1e-9)
        spreads.append(float((chance[:, None] * (found.divergence - exact.divergence).detach().square()).sum()))
        torch.testing.assert_close(found.logps, exact.logps)
        torch.testing.assert_close(found.reference_logps, exact.reference_logps)
        torch.testing.assert_close(found.log_normalizers, exact.log_normalizers)
        torch.testing.assert_close(
            found.entropy, token_divergence(policy, references, terms, ALL, entropy=True).entropy
        )
    assert spreads[0] > 1e-3 and max(spreads[VOCABULARY:]) < 1e-20  # it is sampled, and is not from V on
    assert spreads[VOCABULARY - 1] < spreads[0]


@pytest.mark.parametrize("count", range(VOCABULARY + 1))
def test_off_the_policy_that_sampled_each_token_is_corrected(count):
    """Responses of an older policy: at its states the divergence of the policy now, and its gradient."""
    terms, references = PENALTIES["hellinger"][0], [TabularLM(1, 1.5), TabularLM(2, 1.5)]
    policy, older = TabularLM(4, 1.5), TabularLM(5, 1.5)
    old = older.token_logps().detach()
    chance = old.sum(-1).exp()[:, None]
    found = topk_token_divergence(policy, references, terms, ALL, count, old)
    exact = token_divergence(policy, references, terms, ALL)
    torch.testing.assert_close((chance * found.divergence).sum(), (chance * exact.divergence).sum())
    given = gradients(policy, (chance * found.divergence).sum())
    assert_same_gradients(given, gradients(policy, (chance * exact.divergence).sum()), 1e-9)


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.3, 0.5, 0.7, 1.0, 2.0])
def test_columns_are_the_terms_of_the_ratio_estimate(order):
    """Column by column p f(m / p), also where the ratio's exponential overflows float32; in all the divergence."""
    generator = torch.Generator().manual_seed(0)
    m, p = (torch.randn(2, 7, 9, generator=generator, dtype=torch.float64) * 3).log_softmax(-1)
    each = torch.stack([amari_columns(m[:, [v]], p[:, [v]], order) for v in range(9)], -1)
    torch.testing.assert_close(each, p.exp() * ratio_estimate(p - m, order))
    torch.testing.assert_close(amari_columns(m, p, order), amari_divergence(m, p, order))
    assert (each > -1e-15).all()
    far = amari_columns(torch.tensor([-1.0]), torch.tensor([-120.0]), order)
    assert far.isfinite().all() or order == 2.0


def test_jensen_shannon_has_no_slope_at_one():
    generator = torch.Generator().manual_seed(0)
    m, p = torch.randn(2, 7, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    kind = kind_of("jensen_shannon")
    torch.testing.assert_close(kind.columns(m, p), (p.exp() * kind.ratio_estimate(p - m)).sum(-1))


@pytest.mark.parametrize("count", [2, 6])
def test_memory_is_bounded_whatever_the_vocabulary_and_the_references(make_model, count):
    """Peak of tensors over 50,001 ids, forward and backward: no copy for each reference."""
    model, *references = (make_model("llama", seed, **WIDE) for seed in range(count + 1))
    packed = pack([[1, 2, 3]], [[list(range(1, 33)), list(range(200, 232))]], 0, True)
    terms = [Term(0.0, Mix(0.0, (1 / count,) * count))]
    found = memory_of(
        model, lambda: topk_token_divergence(model, references, terms, packed, 16).divergence.sum().backward()
    )
    assert found.peak <= 1.2 * LIVE_ELEMENTS["cpu"] * 4
