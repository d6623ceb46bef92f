"""States of the teachers' own responses (GKD), the penalty only where the reward failed, special tokens left out."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from multiref_cli.algorithms.online import Online
from multiref_cli.algorithms.taught import taught_responses
from multiref_cli.config import schema
from multiref_cli.config.algorithms import DistillSettings
from multiref_cli.config.compose import compose
from multiref_cli.errors import RequestError
from multiref_cli.files import read_json, read_lines
from multiref_cli.objectives.divergence import amari_divergence
from multiref_cli.objectives.mixing import power_mean
from tests.algorithms.test_distill import distilled
from tests.algorithms.test_grpo_truth import (
    BETA,
    LEAVES,
    SEQUENCES,
    VOCABULARY,
    WEIGHTS,
    TabularLM,
    build_algorithm,
    problem,
    sampled_gradient,
)

TOKEN = {"level": schema.Level.token, "estimator": schema.Estimator.exact}


def student_of(share: float, policy, models, stored, group: int = 4, **regularizer) -> Online:
    """Forward KL of a tabular student from two teachers with stored responses, a mean over tokens."""
    made = build_algorithm(1.0, policy, models, None, **TOKEN, **regularizer)
    settings = DistillSettings(name="distill", batch_prompts=1, loss_reduction="dapo", teacher_share=share)
    rollout = replace(made.experiment.rollout, group_size=group)
    experiment = replace(made.experiment, algorithm=settings, rollout=rollout)
    made.parts.stored = stored
    return Online(experiment, made.parts)


def divergence_along(policy, models, leaves) -> torch.Tensor:
    """(N, 3) exact forward KL at the states of some leaves, by hand from the tables."""
    rows = policy.head.weight.T.log_softmax(-1)
    tables = torch.stack([model.head.weight.T.log_softmax(-1) for model in models]).detach()
    each = amari_divergence(power_mean(tables, WEIGHTS, 1.0), rows, 1.0)
    sequences = torch.tensor(leaves)
    first = 1 + sequences[:, 0]
    nodes = torch.stack([torch.zeros_like(first), first, VOCABULARY * first + 1 + sequences[:, 1]], -1)
    return each[nodes]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_loss_at_the_teachers_states_is_the_exact_divergence_there(share):
    """By hand: the mean over the taken responses' tokens, beside the student's own in one mean over all tokens."""
    _, models, _ = problem()
    policy, generator = TabularLM(4), torch.Generator().manual_seed(1)
    draw = [[SEQUENCES[i].tolist() for i in torch.randint(LEAVES, (4,), generator=generator)] for _ in models]
    algorithm = student_of(share, policy, models, [{0: one} for one in draw])
    batch = algorithm.batch(0)
    taken = taught_responses(algorithm.parts.stored, 0, WEIGHTS.tolist(), round(4 * share), 0, 0)
    assert len(taken) == 4 * share and all(one in draw[0] + draw[1] for one in taken)
    found = {}
    for micro in batch.micros:
        loss, averages = algorithm.loss(policy, micro)
        found[type(micro).__name__] = (loss, averages.means())
    expected = BETA * divergence_along(policy, models, taken).sum() / 12
    torch.testing.assert_close(found["TaughtMicro"][0], expected)
    gradient, by_hand = (torch.autograd.grad(x, policy.head.weight)[0] for x in (found["TaughtMicro"][0], expected))
    torch.testing.assert_close(gradient, by_hand)
    assert found["TaughtMicro"][1]["penalty/teacher_states"] == pytest.approx(expected.item() / BETA / share)
    assert ("GroupMicro" in found) == (share < 1)
    if share < 1:
        own = algorithm.window.completions[0]
        penalty = found["GroupMicro"][1]["penalty"]
        assert penalty == pytest.approx(float(divergence_along(policy, models, own).mean()))


def test_teachers_are_drawn_by_their_weights_and_no_response_twice():
    stored = [{5: [[10 * i + j] for j in range(8)]} for i in range(3)]
    drawn = [taught_responses(stored, 5, [0.25, -0.5, 1.25], 6, 0, window) for window in range(300)]
    assert all(len({one[0] for one in found}) == 6 for found in drawn)
    first = sum(one[0] < 10 for found in drawn for one in found)
    assert not any(10 <= one[0] < 20 for found in drawn for one in found)  # a negative weight has no responses
    assert first / 1800 == pytest.approx(0.25 / 1.5, abs=0.03)
    assert drawn[7] == taught_responses(stored, 5, [0.25, -0.5, 1.25], 6, 0, 7) != drawn[8]


@pytest.mark.parametrize("estimator", ["exact", "k2", "reward"])
def test_only_failed_responses_are_charged(estimator):
    """A reward that nobody fails: no penalty; one that all fail: the whole of it; between: the failed ones'."""
    _, models, reward = problem()
    token = estimator != "reward"
    level = {"level": schema.Level.token if token else schema.Level.sequence, "estimator": schema.Estimator[estimator]}
    silent, gradients = torch.zeros(LEAVES), {}
    for name, threshold in [("all", 0.5), ("none", -0.5), ("off", None)]:
        policy = TabularLM(4)
        algorithm = build_algorithm(0.0, policy, models, silent, **level)
        if threshold is not None:
            only = replace(algorithm.experiment.penalty, only_failed=True)
            judge = schema.Reward(name="r", correct_at=threshold)
            algorithm = Online(replace(algorithm.experiment, regularizer=only, reward=judge), algorithm.parts)
        gradients[name] = sampled_gradient(algorithm, policy, 2)
    assert torch.equal(gradients["all"], gradients["off"]) and gradients["off"].abs().max() > 1e-3
    assert (gradients["none"] == 0).all()
    algorithm = build_algorithm(0.0, policy, models, reward, **level)
    only = replace(algorithm.experiment.penalty, only_failed=True)
    judge = schema.Reward(name="r", correct_at=0.5)
    algorithm = Online(replace(algorithm.experiment, regularizer=only, reward=judge), algorithm.parts)
    metrics = algorithm.batch(0).metrics
    assert metrics["failed_fraction"] == float((algorithm.window.rewards < 0.5).double().mean())
    assert 0.2 < metrics["failed_fraction"] < 0.8


def test_special_tokens_are_charged_nothing():
    """Token 3 is special: its positions add nothing to the penalty, and nothing to what earlier tokens have to pay."""
    _, models, _ = problem()
    policy = TabularLM(4)
    made = build_algorithm(0.0, policy, models, torch.zeros(LEAVES), **TOKEN)
    made.parts.tokenizer = SimpleNamespace(**vars(made.parts.tokenizer), all_special_ids=[3, 3])
    masked = replace(made.experiment.penalty, mask_special=True)
    algorithm = Online(replace(made.experiment, regularizer=masked), made.parts)
    (micro,) = algorithm.batch(0).micros
    values = torch.arange(1.0, 769.0).reshape(256, 3)
    kept = algorithm.charged.kept(values, micro.packed)
    tokens = torch.tensor(algorithm.window.completions[0])[micro.places]
    assert torch.equal(kept, torch.where(tokens == 3, 0.0, values)) and (tokens == 3).any()
    _, averages = algorithm.loss(policy, micro)
    plain = build_algorithm(0.0, policy, models, torch.zeros(LEAVES), **TOKEN)
    (same,) = plain.batch(0).micros
    assert averages.means()["penalty"] < plain.loss(policy, same)[1].means()["penalty"]


DISTILL = ["algorithm=distill", "steps=1", "regularizer=js", "regularizer.level=token"]


def test_names_hashes_and_what_is_refused():
    half = compose([*DISTILL, "algorithm.teacher_share=0.5"])
    assert half.condition == "distill_teacher0.5-js_token-a0.5-b0.1" and half.reads_samples and half.taught == 4
    assert compose([*DISTILL, "algorithm.teacher_share=0"]).hash == compose(DISTILL).hash != half.hash
    grpo = ["algorithm=grpo", "reward=toy_verifier", "steps=1", "regularizer=kdrl"]
    masked = compose([*grpo, "regularizer.only_failed=true", "regularizer.mask_special=true"])
    assert masked.condition == "grpo-rkl_token_failed_no_special-k2-states_given-a0.5-b0.1"
    for overrides, words in [
        ([*DISTILL, "algorithm.teacher_share=0.01"], "less than a response"),
        ([*DISTILL, "algorithm.teacher_share=1.5"], "from 0 to 1"),
        (["algorithm=distill", "steps=1", "regularizer=opd", "algorithm.teacher_share=0.5"], "exact or topk"),
        ([*DISTILL, "regularizer.only_failed=true"], "algorithm=grpo with a reward"),
        (["regularizer.only_failed=true"], "algorithm=grpo with a reward"),
        (["algorithm=distill", "steps=1", "regularizer=rkl", "regularizer.mask_special=true"], None),
        (["regularizer.mask_special=true"], "single tokens out of a loss term"),
    ]:
        if words is None:  # order 0 over whole responses is a sum over tokens: exact
            assert compose(overrides).penalty.mask_special
            continue
        with pytest.raises(RequestError, match=words):
            compose(overrides)


@pytest.mark.parametrize("name", ["opd", "mopd", "gopd", "shiftmopd", "kdrl"])
def test_presets_of_papers(name):
    asked = ["algorithm=grpo", "reward=toy_verifier"] if name == "kdrl" else ["algorithm=distill"]
    alpha = {"gopd": ["alpha=[-0.25,1.25]"], "shiftmopd": ["references=toy_trio", "alpha=[1,1,-1]"]}.get(name, [])
    found = compose([*asked, "steps=1", f"regularizer={name}", *alpha])
    assert found.penalty.title == name and found.estimator_name == "k2, states given"
    assert found.penalty.signed == (name in ("gopd", "shiftmopd"))


def test_a_killed_run_with_half_of_the_states_goes_on_bitwise(place, multiref, online, killed_train, figures):
    """Teachers' samples drawn once, both penalties logged; with all of the states nothing is sampled."""
    more = ["regularizer=js", "regularizer.level=token", "regularizer.estimator=topk", "regularizer.topk=8"]
    more += ["algorithm.teacher_share=0.5", "regularizer.mask_special=true", "hardware.checkpoint_every=1"]
    more += ["algorithm.inner_iterations=2", "steps=5"]
    assert multiref("train", *distilled(online, *more, "run.name=whole"), "--plain") == 0
    rows = figures(Path("runs/whole"))
    assert all(row["penalty/teacher_states"] > 0 and row["penalty"] > 0 for row in rows)
    assert "distill_teacher0.5-js_token" in read_json(Path("runs/whole/results.json"))["condition"]
    killed_train([*distilled(online, *more), "run.dir=cut"], Path("cut"), 2)
    assert multiref("train", "--resume", "cut") == 0
    assert figures(Path("cut")) == rows
    alone = ["algorithm.teacher_share=1", "steps=2", "run.name=all"]
    assert multiref("train", *distilled(online, *more, *alone)) == 0
    rows = read_lines(Path("runs/all/metrics.jsonl"))
    assert all("penalty/teacher_states" in row and "penalty" not in row and "length" not in row for row in rows)
