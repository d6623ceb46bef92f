"""Beta and alpha that move: by hand, in both losses, in names and hashes, killed and gone on with, and refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multiref_cli.algorithms.scheduled import Scheduled
from multiref_cli.config import schema
from multiref_cli.config.compose import compose
from multiref_cli.config.schedules import AlphaSchedule, BetaSchedule, controlled, moved
from multiref_cli.errors import RequestError
from multiref_cli.files import read_json
from tests.algorithms.test_grpo_truth import LEAVES, TabularLM, build_algorithm, problem

TOKEN = {"level": schema.Level.token, "estimator": schema.Estimator.exact}


def test_the_way_by_hand():
    assert [moved("linear", step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [moved("cosine", step, 3) for step in range(3)] == pytest.approx([0, 0.5, 1])
    assert moved("cosine", 1, 5) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert moved("linear", 0, 1) == 0 and moved("linear", 9, 5) == 1
    led = BetaSchedule(kind="target_kl", target=4.0, horizon=10.0)
    assert controlled(0.5, 4.4, led) == pytest.approx(0.5 * 1.01)
    assert controlled(0.5, 400.0, led) == pytest.approx(0.5 * 1.02)  # the error is at most 0.2
    assert controlled(0.5, -4.0, led) == pytest.approx(0.5 * 0.98)


def gradient_of(algorithm, policy, step: int) -> torch.Tensor:
    """Of one step's loss."""
    policy.zero_grad()
    for micro in algorithm.batch(step).micros:
        algorithm.loss(policy, micro)[0].backward()
    return policy.head.weight.grad.clone()


@pytest.mark.parametrize("estimator", ["exact", "k2", "reward"])
def test_a_step_has_the_gradient_of_the_weights_it_stands_at(estimator):
    """Online: the middle and the last step of a schedule are, bitwise, those of runs with these very weights."""
    _, models, reward = problem()
    level = {"estimator": schema.Estimator[estimator]} | ({} if estimator == "reward" else {"level": TOKEN["level"]})
    moving = {
        "beta_schedule": BetaSchedule(kind="linear", end=0.25),
        "alpha_schedule": AlphaSchedule(kind="linear", end=[0.75, 0.25]),
    }
    for step, beta, alpha in [(0, 0.5, [0.25, 0.75]), (1, 0.375, [0.5, 0.5]), (2, 0.25, [0.75, 0.25])]:
        gradients = []
        for changes in ({"alpha": [0.25, 0.75], "beta": 0.5, **moving}, {"alpha": alpha, "beta": beta}):
            policy = TabularLM(4)
            made = build_algorithm(0.0, policy, models, reward, **level)
            experiment = replace(made.experiment, **changes)
            algorithm = type(made)(experiment, made.parts, 3)
            gradients.append(gradient_of(algorithm, policy, step))
            if "beta_schedule" in changes:
                logged = algorithm.batch(step).metrics
                assert logged["beta"] == beta and [logged["alpha/a"], logged["alpha/b"]] == alpha
        assert torch.equal(*gradients)


def test_the_controller_follows_the_measured_kl_and_its_state_goes_on():
    """Beta after two generations by hand from the logged distances; taken back from a checkpoint it stays the same."""
    _, models, _ = problem()
    policy = TabularLM(4)
    made = build_algorithm(0.0, policy, models, torch.zeros(LEAVES), **TOKEN)
    led = BetaSchedule(kind="target_kl", target=0.5, horizon=2.0)
    experiment = replace(made.experiment, beta_schedule=led)
    algorithm, beta = type(made)(experiment, made.parts, 5), made.experiment.beta
    for step in range(3):
        batch = algorithm.batch(step)
        assert batch.metrics["beta"] == pytest.approx(beta, rel=1e-12)
        found = {}
        for micro in batch.micros:
            found = algorithm.loss(policy, micro)[1].means()
        charge = sum(w * found[f"kl/{name}"] for w, name in zip(experiment.weights, "ab"))
        beta = controlled(beta, charge, led)
    resumed = type(made)(experiment, made.parts, 5)
    resumed.load_state_dict(algorithm.state_dict())
    assert resumed.batch(3).metrics["beta"] == algorithm.batch(3).metrics["beta"] == pytest.approx(beta, rel=1e-12)


def test_without_schedules_nothing_is_logged_and_constant_is_nothing():
    plain = compose(["experiment=online_toy"])
    constant = compose(["experiment=online_toy", "beta_schedule.kind=constant", "alpha_schedule.kind=constant"])
    assert constant.hash == plain.hash and constant.condition == plain.condition
    assert Scheduled(constant, 10).metrics() == {} and "beta_schedule" not in plain.content()
    still = Scheduled(plain, 10)
    still.at(7)
    assert (still.beta, still.terms) == (plain.beta, plain.terms_by_route)


def test_names_and_the_experiment_that_is_measured():
    found = compose(
        ["experiment=online_toy", "beta_schedule={kind: cosine, end: 0.1}", "alpha_schedule={kind: linear, end: 0}"]
    )
    assert found.condition == "grpo-rkl_token-a0.5_linear0-b1_cosine0.1"
    assert (found.final.beta, found.final.weights) == (0.1, [0.0, 1.0])
    assert found.final.alone == "math" and found.alone is None
    assert found.beta_at(59, 60) == 0.1 and found.beta_at(0, 60) == 1.0
    led = compose(["experiment=online_toy", "beta_schedule.kind=target_kl", "beta_schedule.target=6"])
    assert led.condition.endswith("-b1_kl6") and led.final.beta == 1.0
    assert len({one.hash for one in (found, led, compose(["experiment=online_toy"]))}) == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["beta_schedule.kind=exponential"], "allowed: constant, linear"),
        (["beta_schedule.kind=linear"], "needs beta_schedule.end"),
        (["beta_schedule.kind=target_kl"], "needs beta_schedule.target"),
        (["beta_schedule.kind=linear", "beta_schedule.end=-1"], "beta_schedule.end is -1"),
        (["beta_schedule={kind: target_kl, target: 6}", "experiment=offline_toy"], "policy's own responses"),
        (["beta_schedule={kind: target_kl, target: 6}", "rollout.top_p=0.9"], "leave nothing out"),
        (["beta_schedule={kind: linear, end: 0}", "experiment=offline_toy"], "nothing is left to learn"),
        (["beta=0", "beta_schedule={kind: linear, end: 1}"], "give beta above 0"),
        (["alpha_schedule.kind=linear"], "needs its end"),
        (["alpha_schedule={kind: linear, end: 1.5}"], "between 0 and 1"),
        (["alpha_schedule={kind: target_kl, end: 0.5}"], "alpha_schedule.kind"),
        (
            ["alpha_schedule={kind: linear, end: 0.5}", "regularizer=mrpo_full", "experiment=offline_toy"],
            "ctro and arwc",
        ),
        (
            ["alpha_schedule={kind: linear, end: 0.5}", "regularizer=rkl_token", "experiment=offline_toy"],
            "for every alpha",
        ),
    ],
)
def test_what_is_refused(overrides, words):
    given = (
        overrides if any(one.startswith("experiment=") for one in overrides) else ["experiment=online_toy", *overrides]
    )
    with pytest.raises(RequestError, match=words):
        compose(given)


def test_a_killed_dpo_run_goes_on_bitwise_and_says_where_beta_was(place, multiref, offline, killed_train, figures):
    more = ["beta_schedule={kind: linear, end: 0.5}", "alpha_schedule={kind: cosine, end: 0.9}", "steps=6"]
    more += ["hardware.checkpoint_every=1", "beta=0.1"]
    assert multiref("train", *offline, *more, "run.dir=whole", "--plain") == 0
    rows = figures(Path("whole"))
    assert [row["beta"] for row in rows] == pytest.approx([0.1, 0.18, 0.26, 0.34, 0.42, 0.5])
    assert rows[0]["alpha/first"] == 0.5 and rows[-1]["alpha/first"] == 0.9
    notes = read_json(Path("whole/results.json"))["notes"]
    assert "beta was 0.1 at first, 0.5 at last, 0.3 on average" in notes
    killed_train([*offline, *more, "run.dir=cut"], Path("cut"), 3)
    assert multiref("train", "--resume", "cut") == 0
    assert figures(Path("cut")) == rows
    assert "linear to 0.5" in Path("whole/report/report.md").read_text()
