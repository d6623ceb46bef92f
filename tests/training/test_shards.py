"""Parts of a model and of a checkpoint, on a group of one process: what is read is what was written, or is refused."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import nn

from multiref_cli.config.schema import Optimizer
from multiref_cli.errors import RunError
from multiref_cli.parallel import Parallel
from multiref_cli.sharding import divided, full, gathered, is_part, is_sharded, shard, weights_of, whole
from multiref_cli.training.checkpoint import Writer, checkpoints, load_checkpoint, save_sharded
from multiref_cli.training.optimizer import Optimizers


class Layer(nn.Module):
    """A layer of a network."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.linear(x).tanh()


class Network(nn.Module):
    """Two layers and an output whose matrix is that of the input; a buffer that is saved and one that is not."""

    _no_split_modules = ("Layer",)

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("dropped", torch.ones(2), persistent=False)

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@dataclass
class Twins:
    """The same network twice, one of them sharded."""

    plain: Network
    sharded: Network


@pytest.fixture
def group():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Parallel(0, 1, sharded=True)
    dist.destroy_process_group()


@pytest.fixture
def twins(group):
    torch.manual_seed(0)
    plain, sharded = Network(), Network()
    sharded.load_state_dict(plain.state_dict())
    shard(sharded, "cpu")
    return Twins(plain, sharded)


IDS = torch.tensor([0, 3, 4, 1])


def step(model, optimizers, number):
    with gathered(model):
        nn.functional.cross_entropy(model(IDS), IDS.flip(0)).backward()
    return optimizers.step(number)


@pytest.mark.parametrize(("name", "kept"), [("adamw", ""), ("adamw", "masters"), ("muon", "")])
def test_a_sharded_model_learns_what_the_whole_one_learns(twins, name, kept):
    both = [
        Optimizers(model, Optimizer(name=name, learning_rate=0.01), 9, kept) for model in (twins.plain, twins.sharded)
    ]
    for number in range(3):
        assert step(twins.plain, both[0], number) == pytest.approx(step(twins.sharded, both[1], number), rel=1e-6)
    for one, other in zip(twins.plain.parameters(), twins.sharded.parameters()):
        assert is_part(other) and torch.allclose(one, full(other), atol=1e-6)


def test_while_it_is_whole_its_weights_are_plain_and_those_of_a_state_dict(twins):
    assert is_sharded(twins.sharded) and not is_sharded(twins.plain)
    with whole(twins.sharded, twins.plain):
        found, expected = weights_of(twins.sharded), twins.plain.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) and not is_part(found[name]) for name in expected)
        assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()
        with whole(twins.sharded), gathered(twins.sharded), torch.no_grad():
            assert torch.equal(twins.sharded(IDS), twins.plain(IDS))
        assert not any(map(is_part, twins.sharded.parameters()))
    assert all(map(is_part, twins.sharded.parameters()))


def test_a_whole_tensor_is_divided_as_a_parameter_of_its_shape(twins):
    like, other = twins.sharded.embedding.weight, torch.rand(5, 3)
    assert torch.equal(full(divided(other, like)), other) and is_part(divided(other, like))
    assert divided(torch.rand(()), like).shape == () and not is_part(divided(torch.rand(()), like))
    assert divided(other, twins.plain.embedding.weight) is other


@pytest.mark.parametrize("beside", [False, True])
def test_parts_are_read_as_parts_or_whole(twins, group, tmp_path, beside):
    optimizers = Optimizers(twins.sharded, Optimizer(learning_rate=0.01), 9)
    step(twins.sharded, optimizers, 0)
    state = {"model": twins.sharded.state_dict(), "optimizers": optimizers.state_dict(), "rng": [torch.arange(3)]}
    expected = {name: full(value).clone() for name, value in state["model"].items()}
    writer = Writer(tmp_path, beside, group)
    for number in (1, 2, 3):
        writer.write(number, state, keep=2)
    step(twins.sharded, optimizers, 1)
    writer.wait()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    parts, alone = load_checkpoint(tmp_path, parallel=group), load_checkpoint(tmp_path)
    assert all(torch.equal(full(parts["model"][name]), value) for name, value in expected.items())
    assert all(torch.equal(alone["model"][name], value) for name, value in expected.items())
    assert is_part(parts["model"]["head.weight"]) and not is_part(alone["model"]["head.weight"])
    moments, whole_ones = parts["optimizers"][0]["state"][0], alone["optimizers"][0]["state"][0]
    assert torch.equal(full(moments["exp_avg"]), whole_ones["exp_avg"]) and float(moments["step"]) == 1.0
    assert torch.equal(alone["rng"][0], torch.arange(3))
    size = sum(path.stat().st_size for path in checkpoints(tmp_path)[-1].glob("*.distcp"))
    tied = twins.sharded.embedding.weight.numel()
    assert size < 3 * 4 * sum(p.numel() for p in twins.sharded.parameters()) + 4 * tied + 40_000  # headers of zip files


def test_what_is_read_goes_on_bitwise(twins, group, tmp_path):
    both = [Optimizers(model, Optimizer(learning_rate=0.01), 9) for model in (twins.plain, twins.sharded)]
    step(twins.sharded, both[1], 0)
    state = {"model": twins.sharded.state_dict(), "optimizers": both[1].state_dict()}
    Writer(tmp_path, False, group).write(1, state, keep=1)
    step(twins.sharded, both[1], 1)
    saved = load_checkpoint(tmp_path)  # whole: for one process, or to be divided again
    twins.plain.load_state_dict(saved["model"])
    both[0].load_state_dict(saved["optimizers"])
    step(twins.plain, both[0], 1)
    saved, again = load_checkpoint(tmp_path), Network()
    again.load_state_dict(saved["model"])
    shard(again, "cpu")
    optimizers = Optimizers(again, Optimizer(learning_rate=0.01), 9)
    optimizers.load_state_dict(saved["optimizers"])
    step(again, optimizers, 1)
    for whole_one, part, expected in zip(twins.plain.parameters(), again.parameters(), twins.sharded.parameters()):
        assert torch.equal(full(part), full(expected)) and torch.allclose(whole_one, full(expected), atol=1e-7)


@pytest.mark.parametrize("harm", ["cut", "flip", "metadata", "state"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(twins, group, tmp_path, harm):
    writer = Writer(tmp_path, False, group)
    for number in (1, 2):
        writer.write(number, {"step": number, "model": twins.sharded.state_dict()}, keep=2)
    newest = checkpoints(tmp_path)[-1]
    (stored,) = newest.glob("*.distcp")
    target = {"metadata": newest / ".metadata", "state": newest / "state.pt"}.get(harm, stored)
    content = bytearray(target.read_bytes())
    if harm == "flip":
        middle = content.find(twins.sharded.layers[0].linear.weight.detach().to_local().numpy().tobytes())
        content[middle] ^= 255
    else:
        del content[len(content) // 2 :]
    target.write_bytes(content)
    for parallel in (group, Parallel()):
        assert load_checkpoint(tmp_path, parallel=parallel)["step"] == 1
    (checkpoints(tmp_path)[0] / "state.pt").unlink()
    with pytest.raises(RunError, match="step_00000001: it is damaged"):
        load_checkpoint(tmp_path)


def test_who_has_fewer_passes_repeats_one_that_does_not_count():
    passes = [Parallel(rank, 3, sharded=True).in_step([10, 11, 12, 13]) for rank in range(3)]
    assert passes == [[(10, True), (13, True)], [(11, True), (10, False)], [(12, True), (10, False)]]
    assert Parallel(1, 3).in_step([10, 11, 12, 13]) == [(11, True)]
    seen = []
    assert Parallel(2, 3, sharded=True).each([1, 2], lambda item: seen.append(item) or 7) == [] and seen == [1]


def test_a_damaged_checkpoint_is_written_again_when_its_step_is_reached(twins, group, tmp_path):
    for number in (1, 2):
        save_sharded(tmp_path, number, {"step": number, "model": twins.sharded.state_dict()}, 2, group, None)
    (damaged,) = (tmp_path / "step_00000002").glob("*.distcp")
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert load_checkpoint(tmp_path, parallel=group)["step"] == 1
    save_sharded(tmp_path, 2, {"step": 2, "model": twins.sharded.state_dict()}, 2, group, None)
    assert load_checkpoint(tmp_path, parallel=group)["step"] == 2
