"""bfloat16 that trains: shares of weights that a step moves, the float32 copy, autocast through the command."""

import json

import pytest
import torch
from torch import nn

from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Optimizer
from multiref_cli.models.precision import Precision, joined, lost_share, product_type, split
from multiref_cli.training.optimizer import Optimizers

RATE = 1e-6


def trained(dtype, kept="", autocast="float32", steps=1, name="adamw"):
    """A regression with weights of usual size after some steps: (start, end, optimizers, model), both float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    start = torch.cat([p.detach().to(torch.bfloat16).float().flatten() for p in model.parameters()])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    model = model.to(dtype)
    settings = Optimizer(name=name, learning_rate=RATE, matrix_learning_rate=RATE, warmup=0.0, schedule="constant")
    optimizers = Optimizers(model, settings, steps, kept)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    for step in range(steps):
        with Precision(autocast).autocast():
            loss = (model(x).float() - 1).square().mean()
        loss.backward()
        optimizers.step(step)
    return start, torch.cat([p.flatten() for p in optimizers.weights()]), optimizers, model


def test_a_small_step_moves_float32_weights_and_their_copies_but_not_bfloat16_ones():
    start, full, *_ = trained(torch.float32)
    moved = {}
    for name, (dtype, kept, autocast) in {
        "bf16": (torch.bfloat16, "", "float32"),
        "bf16_master": (torch.bfloat16, "masters", "float32"),
        "bf16_kahan": (torch.bfloat16, "remainders", "float32"),
        "bf16_mixed": (torch.float32, "", "bf16_mixed"),
    }.items():
        begin, end, *_ = trained(dtype, kept, autocast)
        assert torch.equal(begin, start)
        update = end - start
        cosine = torch.cosine_similarity(update, full - start, dim=0) if update.any() else torch.tensor(0.0)
        moved[name] = float((update != 0).float().mean()), float(cosine), float(update.norm() / (full - start).norm())
    assert moved["bf16"][0] < 0.05
    for name in ("bf16_master", "bf16_kahan", "bf16_mixed"):
        share, cosine, ratio = moved[name]
        assert share > 0.95 and cosine > 0.9 and abs(ratio - 1) < 0.05, (name, moved[name])


def test_small_steps_add_up_in_the_copy_and_reach_the_rounded_weights():
    start, copies, _, model = trained(torch.bfloat16, kept="masters", steps=300)
    weights = torch.cat([p.detach().float().flatten() for p in model.parameters()])
    assert torch.equal(weights, copies.to(torch.bfloat16).float())
    _, alone, *_ = trained(torch.bfloat16, steps=300)
    assert (weights != start).float().mean() > 2 * (alone != start).float().mean()


def test_copies_come_back_from_a_checkpoint():
    _, copies, optimizers, _ = trained(torch.bfloat16, kept="masters", steps=5)
    _, _, fresh, _ = trained(torch.bfloat16, kept="masters")
    fresh.load_state_dict(optimizers.state_dict())
    assert torch.equal(torch.cat([p.detach().flatten() for p in fresh.parameters]), copies)


def test_weight_and_remainder_are_a_float32_number_bit_for_bit():
    """By hand: 1 + 2^-8 lies in the middle of two bfloat16 numbers and goes away from zero; and a million others."""
    tie = torch.tensor([1 + 2**-8, -(1 + 2**-8), 1 + 2**-9, 0.0, -0.0, 2.0**-140, 3.3e38])
    numbers = torch.randint(-(2**31), 2**31, (10**6,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    for whole in (tie, numbers.view(torch.float32)[numbers.view(torch.float32).isfinite()]):
        weight, rest = torch.empty(len(whole), dtype=torch.bfloat16), torch.empty(len(whole), dtype=torch.int16)
        split(whole, weight, rest)
        assert torch.equal(joined(weight, rest).view(torch.int32), whole.view(torch.int32))
        nearest = whole.to(torch.bfloat16)
        assert ((weight == nearest) | ((weight.double() - whole).abs() == (nearest.double() - whole).abs())).all()
    split(tie, weight := torch.empty(7, dtype=torch.bfloat16), rest := torch.empty(7, dtype=torch.int16))
    assert weight[:4].tolist() == [1 + 2**-7, -(1 + 2**-7), 1.0, 0.0] and rest[:3].tolist() == [
        -(2**15),
        -(2**15),
        2**14,
    ]


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("piece", [1, 5000])
def test_remainders_train_what_float32_copies_train(name, piece, monkeypatch):
    """The same sums, bit for bit while no weight lies midway between bfloat16 numbers; far within a step later."""
    monkeypatch.setattr("multiref_cli.training.optimizer._PIECE", piece)
    for steps in (1, 100):
        start, copies, *_ = trained(torch.bfloat16, "masters", steps=steps, name=name)
        _, sums, optimizers, model = trained(torch.bfloat16, "remainders", steps=steps, name=name)
        assert torch.equal(sums, copies) if steps == 1 else (sums - copies).norm() < 0.01 * (copies - start).norm()
        assert all(p.dtype == torch.bfloat16 and p.grad is None for p in model.parameters())
        assert all(p.numel() == 0 and p.grad is None for p in optimizers.parameters)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_remainders_go_on_from_a_checkpoint_bit_for_bit(name, tmp_path):
    def more(optimizers, model, first, last):
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
        for step in range(first, last):
            (model(x).float() - 1).square().mean().backward()
            optimizers.step(step)

    _, _, optimizers, model = trained(torch.bfloat16, "remainders", steps=8, name=name)
    torch.save([optimizers.state_dict(), model.state_dict()], tmp_path / "state.pt")
    more(optimizers, model, 4, 8)
    _, _, again, fresh = trained(torch.bfloat16, "remainders", steps=8, name=name)
    saved = torch.load(tmp_path / "state.pt")
    for one in fresh.parameters():
        one.data.zero_()
    fresh.load_state_dict(saved[1]), again.load_state_dict(saved[0])
    more(again, fresh, 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(optimizers.weights(), again.weights()))
    assert all(torch.equal(a, b) for a, b in zip(optimizers.remainders, again.remainders))


def test_a_gradient_that_is_not_finite_changes_nothing_and_its_norm_is_that_of_all():
    _, before, optimizers, model = trained(torch.bfloat16, "remainders")
    for value, norm in ((float("nan"), None), (0.5, 0.5 * (64 * 64 + 64 + 64 + 1) ** 0.5)):
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        said = optimizers.step(0)["gradient_norm"]
        assert said == pytest.approx(norm, rel=1e-6) if norm else said != said
        same = torch.equal(torch.cat([p.flatten() for p in optimizers.weights()]), before)
        assert same == (norm is None) and all(p.grad is None for p in model.parameters())


def test_the_share_of_lost_steps_by_hand():
    """Above 1 bfloat16 numbers are 1/128 apart: half of that, 1/256, is the smallest step that moves 1.5."""
    model = nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.5, -1.5, 0.01, 0.0]]))
    assert lost_share(model, 1 / 200) == 0.0
    assert lost_share(model, 1 / 300) == 0.5
    assert float(torch.tensor(1.5, dtype=torch.bfloat16) + 1 / 300) == 1.5
    assert lost_share(model.float(), 1e-9) == 0.0


def test_products_have_autocasts_type_inside_it_alone():
    weight = torch.zeros(2, 2)
    with Precision("bf16_mixed").autocast():
        assert product_type(weight) == torch.bfloat16
        with Precision("bfloat16").autocast():
            assert product_type(weight) == torch.float32
    assert product_type(weight) == torch.float32


@pytest.mark.parametrize(
    ("overrides", "precision", "references"),
    [
        ([], "float32", "float32"),
        (["hardware.dtype=bfloat16"], "bf16_mixed", "bfloat16"),
        (["hardware.dtype=bfloat16", "regularizer=fkl"], "bf16_mixed", "bf16_mixed"),
        (["hardware.precision=bf16_master", "hardware.dtype=bfloat16"], "bf16_master", "bfloat16"),
        (["hardware.precision=bf16_kahan", "hardware.dtype=bfloat16"], "bf16_kahan", "bfloat16"),
        (["policy.dtype=bfloat16"], "bf16_mixed", "bf16_mixed"),
        (["hardware.precision=bf16_mixed"], "bf16_mixed", "bf16_mixed"),
        (["hardware.precision=bf16_mixed", "hardware.dtype=float32"], "bf16_mixed", "float32"),
        (["hardware.precision=bf16_mixed", "+policy.lora.rank=4"], "bf16_mixed", "bfloat16"),
        (["hardware.dtype=bfloat16", "+policy.lora.rank=4", "regularizer=fkl"], "bf16_mixed", "bfloat16"),
        (["+policy.lora.rank=4"], "float32", "float32"),
        (["hardware.precision=bf16_master"], "bf16_master", "bfloat16"),
        (["hardware.precision=bf16"], "bf16", "bfloat16"),
        (["hardware.precision=float32", "hardware.dtype=bfloat16"], "float32", "bfloat16"),
    ],
)
def test_what_auto_stands_for(overrides, precision, references):
    """References compute as the policy unless told otherwise, and for an exponential score always."""
    experiment = compose(["experiment=offline_toy", *overrides])
    assert (experiment.precision, experiment.reference_type) == (precision, references)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["offline", "online"])
def test_both_jobs_run_mixed_and_with_copies(job, place, multiref, request, tmp_path, capsys):
    small = [*request.getfixturevalue(job), "steps=2", "hardware=cpu"]
    losses = {}
    for precision in ("float32", "bf16_mixed", "bf16_master", "bf16_kahan", "bf16"):
        folder = tmp_path / precision
        code = multiref("train", *small, f"hardware.precision={precision}", f"run.dir={folder}")
        assert code == 0, capsys.readouterr().err
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[precision] = lines[0]["loss"]
        notes = " ".join(json.loads((folder / "results.json").read_text())["notes"])
        assert ("trained in bfloat16 alone" in notes) == (precision == "bf16")
    if job == "offline":
        assert all(abs(loss - losses["float32"]) < 0.05 for loss in losses.values()), losses
