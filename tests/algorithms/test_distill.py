"""On-policy distillation: on an enumerable tree the student ends at the mixed teacher, and it runs from the command."""

import math
from pathlib import Path

import pytest
import torch

from multiref_cli.config import schema
from multiref_cli.files import read_json, read_lines
from multiref_cli.objectives.mixing import power_mean
from tests.algorithms.test_grpo_truth import WEIGHTS, TabularLM, build_algorithm, descend, problem

TOKEN = {"level": schema.Level.token, "estimator": schema.Estimator.exact}


def trained(order: float, models, steps: int = 150, **regularizer) -> TabularLM:
    """A student after distillation from the tree's two teachers, without any reward."""
    student = TabularLM(4, 0.0)
    algorithm = build_algorithm(order, student, models, None, **regularizer)
    descend(algorithm, student, steps)
    return student


@pytest.mark.parametrize("order", [0.0, 1.0])
def test_the_exact_loss_ends_at_the_mixed_teacher_at_every_state(order):
    """Without a reward a token costs what its state's divergence is, whatever follows: the rest is M / F itself."""
    _, models, _ = problem()
    student = trained(order, models, **TOKEN)
    with torch.no_grad():
        tables = torch.stack([model.head.weight.T.log_softmax(-1) for model in models])
        mixed = power_mean(tables, WEIGHTS, order).log_softmax(-1)
        own = student.head.weight.T.log_softmax(-1)
        distance = (mixed.exp() * (mixed - own)).sum(-1)
    assert distance.max() < 1e-3 and distance.mean() < 1e-4
    assert (mixed - torch.log(torch.tensor(1 / mixed.shape[-1]))).abs().max() > 0.3  # not where it started


def test_in_the_reward_it_ends_at_the_sequence_level_mean():
    """Reverse KL, whole responses: prod_i pi_i^alpha_i over its sum, which no token-level mix is."""
    references, models, _ = problem()
    student = trained(0.0, models)
    with torch.no_grad():
        found = student.token_logps().sum(-1)
        target = power_mean(references.log(), WEIGHTS, 0.0).log_softmax(-1)
        reached = (found.exp() * (found - target)).sum()
        start = (target - math.log(1 / len(target))).exp().log()
    assert reached < 3e-3
    assert (math.log(1 / len(target)) - target).mean() > 0.05 and start.isfinite().all()


def distilled(online, *overrides):
    """Overrides of a small distillation on the tiny world."""
    kept = [text for text in online if not text.startswith("experiment=")]
    return ["experiment=distill_toy", *kept, "run.name=student", *overrides]


def test_a_run_from_the_command_line(place, multiref, online):
    """No reward in its metrics, a penalty that falls, a policy, scores at the end, and the same bits again."""
    more = ["steps=12", "optimizer.learning_rate=3e-2", "rollout.group_size=16", "alpha=0.2"]
    assert multiref("train", *distilled(online, *more), "--plain") == 0
    rows = read_lines(Path("runs/student/metrics.jsonl"))
    assert len(rows) == 12 and not any(name.startswith("reward") for name in rows[0])
    assert sum(row["penalty"] for row in rows[-3:]) < 0.8 * sum(row["penalty"] for row in rows[:3])
    assert {"kl/first", "kl/second", "kl/mixed", "entropy", "length"} <= rows[0].keys()
    results = read_json(Path("runs/student/results.json"))
    assert results["condition"] == "distill-rkl_token-a0.2-b1" and "toy_verifier" in results["metrics"]
    assert multiref("train", *distilled(online, *more), "run.name=again", "--plain") == 0
    repeated = read_lines(Path("runs/again/metrics.jsonl"))
    assert [row["penalty"] for row in repeated] == [row["penalty"] for row in rows]


def test_one_teacher_and_requests_that_make_no_sense(place, multiref, online, capsys):
    alone = distilled(online, "alpha=0.0", "steps=2")
    assert multiref("train", *alone, "--plain") == 0
    assert read_json(Path("runs/student/results.json"))["condition"] == "distill-rkl_token-single_second-b1"
    assert multiref("train", *distilled(online, "beta=0", "run.name=x")) == 2
    assert "beta must be above 0" in capsys.readouterr().err
    assert multiref("train", *distilled(online, "steps=null", "run.name=x")) == 2
    assert not Path("runs/x").exists()


def test_topk_ends_where_exact_does_and_says_its_number():
    """Two of five tokens summed, the rest sampled: the mixed teacher at every state, up to the sampling."""
    from multiref_cli.config.compose import compose

    _, models, _ = problem()
    topk = {"level": schema.Level.token, "estimator": schema.Estimator.topk, "topk": 2}
    student = trained(0.0, models, 60, **topk)
    with torch.no_grad():
        tables = torch.stack([model.head.weight.T.log_softmax(-1) for model in models])
        mixed = power_mean(tables, WEIGHTS, 0.0).log_softmax(-1)
        own = student.head.weight.T.log_softmax(-1)
        distance = (mixed.exp() * (mixed - own)).sum(-1)
    assert distance.mean() < 5e-3
    asked = ["algorithm=distill", "steps=1", "regularizer=rkl_token", "regularizer.estimator=topk"]
    eight, nine = (compose([*asked, f"regularizer.topk={k}"]) for k in (8, 9))
    assert (eight.condition, eight.estimator_name) == ("distill-rkl_token-topk8-a0.5-b0.1", "topk8")
    assert eight.hash != nine.hash
    exact = [[*asked[:-1], f"regularizer.topk={k}"] for k in (8, 9)]
    assert len({compose(one).hash for one in exact}) == 1
