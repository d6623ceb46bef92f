"""Muon against torch's own, which computes in bfloat16, and against the singular values that it promises."""

import pytest
import torch
from torch import nn

from multiref_cli.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_singular_values_become_about_one(shape):
    """S of any spread within two decades lands in [0.65, 1.25]; the singular vectors stay."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, *shape, dtype=torch.float64), full_matrices=False)
    spectrum = torch.logspace(-2, 0, u.shape[-1], dtype=torch.float64)
    found = orthogonalized(7.0 * (u * spectrum) @ v)
    turned = u.mT @ found @ v.mT
    values = turned.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(turned, torch.diag_embed(values), atol=1e-10, rtol=0)
    assert float(values.min()) > 0.65 and float(values.max()) < 1.25


def test_steps_are_those_of_torch():
    """Five steps of both on the same gradients differ by bfloat16's rounding only: 2^-8 of the update's size."""
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 16), (24, 16), (16, 24)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(one.detach().clone()) for one in ours]
    start = [one.detach().clone() for one in ours]
    optimizers = Muon(ours, lr=0.02, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(5):
        for mine, other in zip(ours, theirs):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start):
        moved = (other - before).norm()
        assert (mine - other).norm() < 0.03 * moved and moved > 0.1


def test_matrices_do_not_see_each_other():
    """Computed alone or beside others of its shape, a matrix is updated the same up to rounding."""
    torch.manual_seed(0)
    both = [nn.Parameter(torch.randn(8, 12, dtype=torch.float64)) for _ in range(2)]
    alone = nn.Parameter(both[1].detach().clone())
    for one in (*both, alone):
        one.grad = torch.sin(one.detach())
    Muon(both, lr=0.1).step()
    Muon([alone], lr=0.1).step()
    torch.testing.assert_close(alone, both[1], atol=1e-12, rtol=1e-12)


def test_an_adapter_leaves_nothing_to_adamw():
    """All of its weights are matrices of hidden layers."""
    from multiref_cli.config.schema import Optimizer
    from multiref_cli.training.optimizer import Optimizers

    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    optimizers = Optimizers(model, Optimizer(name="muon", matrix_learning_rate=0.1, warmup=0.0), 2)
    before = [p.clone() for p in model.parameters()]
    model(torch.ones(1, 4)).sum().backward()
    assert optimizers.step(0)["learning_rate"] == 0.1
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters()))
