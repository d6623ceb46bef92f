"""Jobs whole on a device that has no float64, as Apple's GPUs: played by a mode over tensors of the CPU."""

import contextlib
import re

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from multiref_cli.algorithms.base import module_of
from multiref_cli.config.compose import compose
from multiref_cli.objectives.aggregate import widened, widest
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.sampling import draw
from multiref_cli.runs.job import prepare
from multiref_cli.tracking.progress import Silent

MPS, CPU = torch.device("mps"), torch.device("cpu")
_LEAVING = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.numpy, torch.Tensor.__float__)


class Away(torch.Tensor):
    """A tensor that counts as one of the device."""


def _name(value):
    """The device that an argument names, if any."""
    if isinstance(value, str) and re.fullmatch(r"(mps|cpu)(:0)?", value):
        return torch.device(value.split(":")[0])
    return value if isinstance(value, torch.device) else None


class WithoutFloat64(TorchFunctionMode):
    """Parameters are on `mps`, and all that comes of them or is sent there; a float64 tensor there is an error."""

    def __init__(self):
        super().__init__()
        self.there = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        away = any(isinstance(one, (Away, torch.nn.Parameter)) for one in flat)
        if func == torch.Tensor.device.__get__:
            return MPS if away else func(*args, **kwargs)
        places = [place for one in flat if (place := _name(one)) is not None]
        args, kwargs = tree_map(lambda one: CPU if _name(one) is not None else one, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        leaves = func in _LEAVING or (func is torch.Tensor.to and CPU in places)
        sent = MPS in places or (away and CPU not in places)
        return tree_map(lambda one: self._placed(one, sent and not leaves, func), out)

    def _placed(self, one, there, func):
        if not isinstance(one, torch.Tensor) or isinstance(one, torch.nn.Parameter):
            return one
        if not there:
            return one.as_subclass(torch.Tensor) if isinstance(one, Away) else one
        if one.dtype == torch.float64:
            raise TypeError(f"the device has no float64: {func}")
        self.there += 1
        return one.as_subclass(Away)


@pytest.fixture
def mode():
    with WithoutFloat64() as entered:
        yield entered


def test_the_device_refuses_float64(mode):
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(2, device="mps").double()
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(2, dtype=torch.float64).to("mps")
    assert torch.zeros(2, device="mps").cpu().double().dtype == torch.float64
    assert widened(torch.ones(2, device="mps")).dtype == torch.float32 == widest(MPS)
    assert widened(torch.ones(2)).dtype == torch.float64


def test_tokens_are_drawn_by_the_same_rule(mode):
    """Of 0.1, 0.2, 0.7 the numbers 0.05, 0.25, 0.9 choose each in turn; top-p .8 leaves out the first."""
    logits = torch.tensor([[0.1, 0.2, 0.7]] * 3).log().to("mps")
    for numbers, top_p, chosen in (([0.05, 0.25, 0.9], 1.0, [0, 1, 2]), ([0.05, 0.25, 0.9], 0.8, [1, 2, 2])):
        uniform = torch.tensor(numbers, dtype=torch.float64).to("mps", widest(MPS))
        assert draw(logits, uniform, Sampling(1.0, top_p))[0].tolist() == chosen


@pytest.mark.parametrize(
    ("job", "more"),
    [
        ("offline", ["regularizer=rkl"]),
        ("offline", ["regularizer=rkl", "regularizer.level=token", "algorithm.loss=ipo"]),
        ("online", ["regularizer.estimator=exact"]),
        ("online", ["regularizer.estimator=reward"]),
        ("online", ["regularizer.estimator=k2", "algorithm.inner_iterations=2", "rollout.top_p=0.9"]),
    ],
)
def test_a_step_needs_no_float64(job, more, request, monkeypatch, tmp_path):
    """Rollout, references, loss and gradient: the loss is that of the CPU up to float32."""
    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path))
    config = compose([*request.getfixturevalue(job)[:-1], *more])
    ready = prepare(config, config, Silent())
    losses, gradients = [], []
    for place in (contextlib.nullcontext(), WithoutFloat64()):
        trainee = module_of(config).assemble(ready, Silent())
        with place as mode:
            batch, loss = trainee.objective.batch(0), 0.0
            for micro in batch.micros:
                share = trainee.objective.loss(trainee.model, micro)[0].cpu()
                share.backward()
                loss += float(share.detach())
        losses.append(loss)
        gradients.append(torch.cat([p.grad.flatten() for p in trainee.model.parameters() if p.grad is not None]))
    assert mode.there > 100 and losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-5)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
