"""Gradients written by hand beside autograd through the formulas of objectives/, and what a chunk may not do."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.models.decoder import Head
from multiref_cli.models.head import Exact, Sampled, Sizes, over_chunks
from multiref_cli.objectives.divergence import kind_of
from multiref_cli.objectives.mixing import mean_of_rows, mix_factor, power_mean

ROWS, HIDDEN, WORDS, K = 7, 5, 23, 3
WEIGHTS = (0.2, 0.5, 0.3)
ONE = (0.0, 1.0, 0.0)
ORDERS = [-2.0, -1.0, -0.4, -0.1, 0.0, 0.1, 0.3, 0.5, 0.8, 1.0, 1.7]
SUMS = [
    [Term("jensen_shannon", Mix(0.0, ONE), 0.7), Term(1.0, Mix(1.0, WEIGHTS), 2.0)],
    [Term(0.0, Mix(0.0, (-0.5, 1.0, 0.5)))],
    [Term(0.0, Mix(-1.0, WEIGHTS)), Term(0.5, Mix(0.5, (0.5, 0.5, 0.0)), 0.3)],
    [Term(-1.0, Mix(0.0, WEIGHTS))],
]
CASES = [[Term(order, Mix(order, weights))] for order in ORDERS for weights in (WEIGHTS, ONE)] + SUMS


class Inputs:
    """Hidden states, heads and targets of a policy and K references."""

    def __init__(self, dtype=torch.float64, spread=1.0):
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

        self.hidden = random(ROWS, HIDDEN).requires_grad_()
        self.weight = random(WORDS, HIDDEN).requires_grad_()
        self.references = [(Head(random(WORDS, HIDDEN), None), random(ROWS, HIDDEN)) for _ in range(K)]
        self.targets = torch.randint(0, WORDS, (ROWS,), generator=generator)
        self.factors = random(3, ROWS)

    def gradients(self, results):
        """Values, and gradients of a loss with a weight of its own at every result and row."""
        loss = sum((factor * result).sum() for factor, result in zip(self.factors, results, strict=True))
        return [r.detach() for r in results], torch.autograd.grad(loss, (self.hidden, self.weight))


def judged(inputs, terms, normalized, temperature):
    """The same by autograd, with `power_mean` and the divergences' own formulas over whole tensors."""
    logps = (inputs.hidden @ inputs.weight.T / temperature).log_softmax(-1)
    frozen = torch.stack([(hidden @ head.weight.T / temperature).log_softmax(-1) for head, hidden in inputs.references])
    divergence = torch.zeros(ROWS, dtype=logps.dtype)
    for term in terms:
        kind, mix = kind_of(term.score), term.mix
        mixed = power_mean(frozen, torch.tensor(mix.weights, dtype=torch.float64), mix.order, mix.signed)
        log_f = mixed.logsumexp(-1)
        if normalized:
            value = mix_factor(term, log_f) * kind.divergence(mixed - log_f[:, None], logps)
        elif mix.order == term.score or isinstance(term.score, str):
            value = sum(w * kind.divergence(one, logps) for w, one in zip(mix.weights, frozen, strict=True) if w != 0)
        else:
            value = kind.divergence(mixed, logps)
        divergence = divergence + term.weight * value
    return logps.gather(1, inputs.targets[:, None])[:, 0], divergence, -(logps.exp() * logps).sum(-1)


def given(inputs, terms, normalized, temperature, chunk=3):
    exact = Exact(inputs.targets, inputs.references, tuple(terms), temperature, normalized, entropy=True)
    return over_chunks(inputs.hidden, Head(inputs.weight, None), exact, Sizes(chunk, temperature, 3))[:3]


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("terms", CASES, ids=str)
def test_equal_to_autograd(terms, normalized):
    """Every order of mean and score, sums of terms, signed weights: values and gradients to 1e-11 in float64."""
    if not normalized and terms[0].mix.signed:
        normalized = True  # a sum of divergences with negative weights is not defined apart from its mean
    inputs = Inputs()
    for temperature in (1.0, 0.7):
        values, gradients = inputs.gradients(given(inputs, terms, normalized, temperature))
        expected, true = inputs.gradients(judged(inputs, terms, normalized, temperature))
        for a, b in zip([*values, *gradients], [*expected, *true], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * float(b.abs().max()))


@pytest.mark.parametrize("order", [-0.1, 0.0, 0.1, 0.5, 1.0])
def test_single_precision(order):
    """Log-probabilities below -100 in float32: as close to float64 as autograd through the formulas, or 1e-5."""
    terms, found = [Term(order, Mix(order, WEIGHTS))], {}
    for dtype in (torch.float32, torch.float64):
        inputs = Inputs(dtype, spread=4.0)
        found[dtype] = inputs.gradients(given(inputs, terms, True, 1.0))[1]
        formulas = inputs.gradients(judged(inputs, terms, True, 1.0))[1]
    plain = Inputs(torch.float32, spread=4.0)
    assert (plain.hidden @ plain.weight.T).log_softmax(-1).min() < -100
    rough = plain.gradients(judged(plain, terms, True, 1.0))[1]
    for ours, theirs, true in zip(found[torch.float32], rough, formulas, strict=True):
        error, usual = ((one.double() - true).abs().max() / true.abs().max() for one in (ours, theirs))
        assert error <= max(2 * usual, 1e-5)


def test_nothing_is_charged_for_being_the_reference():
    inputs = Inputs(torch.float32)
    inputs.references = [(Head(inputs.weight.detach(), None), inputs.hidden.detach())] * K
    for order in (0.0, 0.1, 1.0, -1.0):
        _, divergence, _ = given(inputs, [Term(order, Mix(order, WEIGHTS))], True, 1.0)
        assert divergence.abs().max() < 1e-6


def test_the_entropy_costs_nothing_in_the_backward_pass_when_it_is_only_a_metric():
    inputs = Inputs()
    for statistics in (Sampled(inputs.targets, True), Sampled(inputs.targets, False)):
        head = Head(inputs.weight, None)
        logps, *_ = over_chunks(inputs.hidden, head, statistics, Sizes(3, 1.0, 1 + statistics.entropy))
        with Names() as names:
            torch.autograd.grad(logps.sum(), inputs.hidden)
        assert "exp" not in names.seen


class Names(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("terms", CASES, ids=str)
def test_no_chunk_waits_for_the_device(terms):
    """Nothing reads a value back: no item, no nonzero, no data-dependent shape."""
    inputs = Inputs(torch.float32)
    with Names() as names:
        results = given(inputs, terms, True, 0.7)
        torch.autograd.grad(results[0].sum() + results[1].sum(), inputs.hidden)
    assert "mm" in names.seen
    assert not names.seen & {"_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "equal"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("weights", [WEIGHTS, ONE, (0.999, 0.0005, 0.0005), (0.5, 0.5, 0.0)])
def test_means_of_rows_are_power_means(order, weights):
    rows = [(6 * torch.randn(4, WORDS, generator=torch.Generator().manual_seed(i))).log_softmax(-1) for i in range(K)]
    expected = power_mean(torch.stack(rows).double(), torch.tensor(weights).double(), order)
    torch.testing.assert_close(mean_of_rows(rows, weights, order).double(), expected, rtol=1e-6, atol=2e-6)
