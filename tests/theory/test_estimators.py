"""Where estimators rest: responses of variable length, expected updates of the training functions, regrets."""

from dataclasses import replace

import pytest
import torch

from multiref_cli.errors import RequestError
from multiref_cli.theory import estimators, exact, laboratory
from multiref_cli.theory.bandit import generator
from multiref_cli.theory.estimators import Estimator, Problem
from multiref_cli.theory.responses import END, enumerate_responses, random_policies
from multiref_cli.theory.settings import Laboratory, Selection
from multiref_cli.theory.studies import estimators as study

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
LAB = Laboratory(trees=6, vocabulary=3, length=4)


def problem(order=0.0, count=3, length=3, beta=0.3):
    rng = generator(0, "estimators test")
    responses = enumerate_responses(3, length)
    references = random_policies(rng, responses, count, 2, 1.0)
    reward = torch.from_numpy(rng.random((count, len(responses.mask))))
    return Problem(responses, references, WEIGHTS, reward, beta, order)


def test_responses_are_all_sequences_that_end_once_or_run_into_the_limit():
    responses = enumerate_responses(3, 3)
    assert len(responses.child) == 1 + 2 + 4 and len(responses.mask) == 1 + 2 + 4 + 8
    for tokens, mask in zip(responses.tokens, responses.mask):
        kept = tokens[mask].tolist()
        assert END not in kept[:-1] and (kept[-1] == END or len(kept) == 3)
    policy = random_policies(generator(0, "sum"), responses, 2, 1, 1.0)[0]
    torch.testing.assert_close(responses.logps(policy).exp().sum(-1), torch.ones(2, dtype=torch.float64))
    by_hand = policy[0, 0, 1] + policy[0, int(responses.child[0, 1]), END]  # the response (1, END)
    index = next(y for y in range(15) if responses.tokens[y, :2].tolist() == [1, END] and responses.lengths[y] == 2)
    torch.testing.assert_close(responses.logps(policy)[0, index], by_hand)


@pytest.mark.slow
@pytest.mark.parametrize("order", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("estimator", [e for e in study.variants() if e.level == "token"], ids=study.label)
def test_the_expected_update_of_training_vanishes_at_the_resting_point_and_not_elsewhere(estimator, order):
    setting = problem(order)
    rest = estimators.resting_point(setting, estimator)
    assert estimators.expected_update(setting, rest, estimator).abs().max() < 1e-6
    if estimator.scale == "none" or order > 0:
        elsewhere = (0.7 * rest).log_softmax(-1)
        assert estimators.expected_update(setting, elsewhere, estimator).abs().max() > 1e-3


@pytest.mark.parametrize("scale", ["none", "group"])
def test_the_exact_sum_with_penalty_to_go_and_the_penalty_in_the_reward_solve_theorem_5_1(scale):
    setting = problem()
    by_reward = estimators.resting_point(setting, Estimator("reward", "sequence", scale))
    assert estimators.sequence_regret(setting, by_reward).abs().max() < 1e-12
    chance = setting.responses.logps(setting.references).exp().movedim(0, -2)
    best = exact.optimal_policy(chance, WEIGHTS, setting.reward, setting.beta, 0.0)
    torch.testing.assert_close(setting.responses.logps(by_reward).exp(), best)
    complete = Estimator("exact", "sequence", to_go=True)
    torch.testing.assert_close(estimators.resting_point(setting, complete), by_reward)
    assert estimators.expected_update(setting, by_reward, complete).abs().max() < 1e-15


def test_states_given_is_the_optimum_of_nothing_and_the_penalty_to_go_of_the_token_level():
    setting = problem()
    given, complete = (estimators.resting_point(setting, Estimator("exact", to_go=on)) for on in (False, True))
    assert (estimators.token_regret(setting, given, 0.0) > 1e-4).all()
    assert (estimators.sequence_regret(setting, given) > 1e-4).all()
    assert estimators.token_regret(setting, complete, 0.0).abs().max() < 1e-14
    forward = replace(setting, order=1.0)
    for name in ("exact", "k2", "k3_ratio"):
        rest = estimators.resting_point(forward, Estimator(name, to_go=True))
        assert estimators.token_regret(forward, rest, 1.0).abs().max() < 1e-12


@pytest.mark.slow
def test_the_table_holds_what_is_known_of_every_estimator():
    rows = {
        study.label(row.estimator): row for row in study.resting_table(study.random_problem(replace(LAB, trees=20)))
    }
    assert len(rows) == 22 and all(row.update < 1e-8 for row in rows.values())
    for name in ("exact", "k2", "k3_ratio"):
        given, complete = rows[f"{name}/token/none"], rows[f"{name}/token/none/to_go"]
        assert given.objective is None and 0.030 < given.regrets["token"] < 0.060
        assert complete.objective == "token" and abs(complete.regrets["token"]) < 5e-5
    assert rows["k3/token/none"].objective is rows["k3/token/none/to_go"].objective is None
    assert rows["k3/token/none"].regrets["forward"] < rows["k3/token/none"].regrets["token"]
    assert rows["exact/sequence/none/to_go"].objective == rows["reward/sequence/none"].objective == "sequence"
    # Group scale: nothing changes where the penalty is in the reward, the penalty vanishes where it is a loss.
    assert rows["reward/token/group"].objective == "token" and rows["reward/sequence/group"].objective == "sequence"
    solved, best = rows["exact/token/group"], rows["reward/token/none"]
    assert solved.reward > 0.999 and best.reward < 0.9 and solved.divergence > 2 * best.divergence
    assert solved.effective_beta < 1e-3 * study.BETA


def test_updates_of_single_responses_have_the_expected_update_as_mean_and_their_own_variance():
    setting = problem()
    policy, estimator = setting.references[0], Estimator("exact", to_go=True)
    states, chance = setting.responses.states, setting.responses.logps(policy).exp()

    def losses(logits):
        return estimators.response_losses(setting, logits[:, states], estimator)

    jacobian = torch.autograd.functional.jacobian(losses, policy)  # (N, Y, N, S, V)
    each = torch.stack([jacobian[i, :, i] for i in range(3)])
    mean = torch.einsum("ny,nysv->nsv", chance, each)
    torch.testing.assert_close(mean, estimators.expected_update(setting, policy, estimator))
    variance = torch.einsum("ny,nysv->n", chance, (each - mean.unsqueeze(1)) ** 2)
    torch.testing.assert_close(variance, estimators.update_variance(setting, policy, estimator))


def test_the_exact_penalty_has_several_times_less_variance_than_the_penalty_in_the_reward():
    ratios = study.variances(study.random_problem(LAB))
    assert ratios["token"][0] > 5 and ratios["sequence"][0] > 2
    assert all(1 < whole < alone for alone, whole in ratios.values())


def test_one_over_length_moves_the_forward_kl_of_stored_responses():
    setting = problem(order=1.0)
    along, mixture = setting.responses, setting.response_mixed("sequence")
    skewed = (mixture - along.lengths.double().log()).log_softmax(-1)
    conditionals = estimators._conditionals(along, skewed).requires_grad_()
    logps = along.logps(conditionals.log_softmax(-1))
    for weight, at_rest in ((1 / along.lengths.double(), True), (torch.ones(len(along.lengths)).double(), False)):
        loss = -(mixture.exp() * weight * logps).sum()
        (gradient,) = torch.autograd.grad(loss, conditionals, retain_graph=True)
        assert bool(gradient.abs().max() < 1e-15) is at_rest
    apart = (mixture.exp() * (mixture - skewed)).sum(-1)
    torch.testing.assert_close(estimators.length_weighted_gap(setting), apart)
    assert (apart > 0.01).all()


def test_senseless_estimators_and_too_large_trees_are_refused():
    for wrong in ({"name": "k1"}, {"name": "exact", "scale": "batch"}, {"name": "reward", "to_go": True}):
        with pytest.raises(ValueError):
            Estimator(**wrong)
    with pytest.raises(ValueError, match="reverse KL"):
        estimators.resting_point(problem(order=1.0), Estimator("exact", "sequence", to_go=True))
    with pytest.raises(RequestError, match="vocabulary=100"):
        laboratory.check(Laboratory(study=Selection("estimators", ["estimators"]), vocabulary=100, length=2))


@pytest.mark.slow
def test_sentences_follow_the_numbers_to_either_side():
    (found,) = laboratory.run(replace(LAB, study=Selection("estimators", ["estimators"])))
    assert found.texts == [study.conclusion(found.metrics)]
    assert "is the optimum of none" in found.texts[0] and "has vanished" in found.texts[0]
    zero = {key: {**value, "mean": 0.0} for key, value in found.metrics.items() if key.startswith("regret/")}
    beta = {"effective_beta/exact/token/group": {**found.metrics["kl/exact/token/group"], "mean": 0.2}}
    other = {"stored_states/grpo": {"mean": 0.0}, "variance_ratio/token/penalty": {"mean": 0.5}}
    said = study.conclusion(found.metrics | zero | beta | other)
    assert said.count("not seen at these settings") == 2 and "not vanished at these settings" in said
    assert "not less gradient variance" in said
