"""bfloat16 that trains: shares of weights that a step moves, the float32 copy, autocast through the command."""

import json

import pytest
import torch
from torch import nn

from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Optimizer
from multiref_cli.models.precision import Precision, lost_share, product_type
from multiref_cli.training.optimizer import Optimizers

RATE = 1e-6


def trained(dtype, masters=False, autocast="float32", steps=1):
    """A regression with weights of usual size after some AdamW steps: (start, end, optimizers), both float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    start = torch.cat([p.detach().to(torch.bfloat16).float().flatten() for p in model.parameters()])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    model = model.to(dtype)
    optimizers = Optimizers(model, Optimizer(learning_rate=RATE, warmup=0.0, schedule="constant"), steps, masters)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    for step in range(steps):
        with Precision(autocast).autocast():
            loss = (model(x).float() - 1).square().mean()
        loss.backward()
        optimizers.step(step)
    held = optimizers.parameters if masters else model.parameters()
    return start, torch.cat([p.detach().float().flatten() for p in held]), optimizers, model


def test_a_small_step_moves_float32_weights_and_their_copies_but_not_bfloat16_ones():
    start, full, *_ = trained(torch.float32)
    moved = {}
    for name, (dtype, masters, autocast) in {
        "bf16": (torch.bfloat16, False, "float32"),
        "bf16_master": (torch.bfloat16, True, "float32"),
        "bf16_mixed": (torch.float32, False, "bf16_mixed"),
    }.items():
        begin, end, *_ = trained(dtype, masters, autocast)
        assert torch.equal(begin, start)
        update = end - start
        cosine = torch.cosine_similarity(update, full - start, dim=0) if update.any() else torch.tensor(0.0)
        moved[name] = float((update != 0).float().mean()), float(cosine), float(update.norm() / (full - start).norm())
    assert moved["bf16"][0] < 0.05
    for name in ("bf16_master", "bf16_mixed"):
        share, cosine, ratio = moved[name]
        assert share > 0.95 and cosine > 0.9 and abs(ratio - 1) < 0.05, (name, moved[name])


def test_small_steps_add_up_in_the_copy_and_reach_the_rounded_weights():
    start, copies, _, model = trained(torch.bfloat16, masters=True, steps=300)
    weights = torch.cat([p.detach().float().flatten() for p in model.parameters()])
    assert torch.equal(weights, copies.to(torch.bfloat16).float())
    _, alone, *_ = trained(torch.bfloat16, steps=300)
    assert (weights != start).float().mean() > 2 * (alone != start).float().mean()


def test_copies_come_back_from_a_checkpoint():
    _, copies, optimizers, _ = trained(torch.bfloat16, masters=True, steps=5)
    _, _, fresh, _ = trained(torch.bfloat16, masters=True)
    fresh.load_state_dict(optimizers.state_dict())
    assert torch.equal(torch.cat([p.detach().flatten() for p in fresh.parameters]), copies)


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
        (["policy.dtype=bfloat16"], "bf16_mixed", "float32"),
    ],
)
def test_what_auto_stands_for(overrides, precision, references):
    """On a CPU; an exponential score is computed by the references as by the policy."""
    experiment = compose(["experiment=offline_toy", *overrides])
    assert (experiment.precision, experiment.reference_type) == (precision, references)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["offline_toy", "online_toy"])
def test_both_jobs_run_mixed_and_with_copies(job, multiref, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["evaluation.prompts=8", "steps=2", "tracking=off", "hardware=cpu"]
    losses = {}
    for precision in ("float32", "bf16_mixed", "bf16_master", "bf16"):
        folder = tmp_path / precision
        code = multiref("train", f"experiment={job}", *small, f"hardware.precision={precision}", f"run.dir={folder}")
        assert code == 0, capsys.readouterr().err
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[precision] = lines[0]["loss"]
        notes = " ".join(json.loads((folder / "results.json").read_text())["notes"])
        assert ("trained in bfloat16 alone" in notes) == (precision == "bf16")
    if job == "offline_toy":
        assert all(abs(loss - losses["float32"]) < 0.05 for loss in losses.values()), losses
