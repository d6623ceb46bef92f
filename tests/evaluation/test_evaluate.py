"""Distances of an evaluation against plain forward passes, one response at a time."""

import numpy as np
import pytest
import torch

from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Model
from multiref_cli.models.load import load_causal_lm
from multiref_cli.rollouts.engine import Completion
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.runs.job import prepare
from multiref_cli.runs.measure import build_evaluator
from multiref_cli.tracking.progress import Silent

ORDERS = {"rkl": 0.0, "mrpo": -1.0, "fkl": 1.0, "rkl_token": 0.0, "mrpo_token": -1.0, "fkl_token": 1.0}


def _mean(logps: torch.Tensor, weights: torch.Tensor, order: float) -> torch.Tensor:
    """(K, ...) -> (...) log of the power mean, written out."""
    shape = (-1,) + (1,) * (logps.ndim - 1)
    if order == 0:
        return (weights.reshape(shape) * logps).sum(0)
    return torch.log((weights.reshape(shape) * torch.exp(order * logps)).sum(0)) / order


@pytest.fixture
def setting(place, offline, monkeypatch):
    """(evaluator, policy, engine) of an offline job on the tiny world, for some overrides."""

    def make(*overrides):
        config = compose([*offline, "evaluation.scorer=null", "evaluation.samples_per_prompt=2", *overrides])
        evaluator, _ = build_evaluator(prepare(config, config, Silent()))
        policy = load_causal_lm(Model(path=f"{place}/two"))
        with torch.no_grad():
            policy.model.layers[0].mlp.down_proj.weight.mul_(1.5)  # neither of the references
        return evaluator, policy, TransformersEngine(policy, 0, vocabulary=evaluator.vocabulary)

    return make


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("regularizer", list(ORDERS))
def test_kl_of_every_regularizer_is_that_of_plain_passes(setting, place, regularizer, alpha):
    """E over samples of log pi - log pi_i, and of log pi - log M, where M is mixed by response or token by token."""
    evaluator, policy, engine = setting(f"regularizer={regularizer}", f"alpha={alpha}")
    prompts, vocabulary = [p.ids for p in evaluator.prompts], evaluator.vocabulary
    groups = engine.generate(prompts, 2, evaluator.sampling(), evaluator.seeds())
    models = [policy, *(load_causal_lm(Model(path=f"{place}/{name}")) for name in ("one", "two"))]
    weights, token = torch.tensor([alpha, 1 - alpha], dtype=torch.float64), regularizer.endswith("_token")
    expected = {"first": [], "second": [], "mixed": []}
    for prompt, group in zip(prompts, groups):
        for one in group:
            ids, places = torch.tensor([[*prompt, *one.ids]]), slice(len(prompt) - 1, -1)
            with torch.no_grad():
                full = torch.stack(
                    [m(input_ids=ids).logits[0, places, :vocabulary].double().log_softmax(-1) for m in models]
                )
            own, *references = full.gather(-1, torch.tensor(one.ids)[None, :, None].expand(3, -1, 1))[..., 0]
            kept = weights > 0
            mixed = _mean(torch.stack(references)[kept], weights[kept], ORDERS[regularizer])
            if token:
                mixed = (mixed - _mean(full[1:][kept], weights[kept], ORDERS[regularizer]).logsumexp(-1)).sum()
            else:
                sums = torch.stack([r.sum() for r in references])
                mixed = _mean(sums[kept], weights[kept], ORDERS[regularizer])
            for name, value in zip(expected, (*(r.sum() for r in references), mixed)):
                expected[name].append(float(own.sum() - value))
    found, _ = evaluator.evaluate(policy, engine, Silent())
    for name, values in expected.items():
        assert found[f"kl/{name}"]["mean"] == pytest.approx(np.mean(values), abs=2e-5)
    assert abs(np.mean(expected["first"]) - np.mean(expected["second"])) > 0.1


def test_an_engine_with_other_numbers_is_not_believed(setting):
    """Where the engine's log-probabilities are not the policy's own, the policy is asked again."""
    evaluator, policy, engine = setting("regularizer=rkl", "alpha=0.3")
    found, _ = evaluator.evaluate(policy, engine, Silent())

    class Other:
        exact_logps = False

        def generate(self, *arguments):
            groups = engine.generate(*arguments)
            return [[type(one)(one.ids, [0.0] * len(one.ids), one.finished) for one in group] for group in groups]

    again, _ = evaluator.evaluate(policy, Other(), Silent())
    assert again["kl/mixed"]["mean"] == pytest.approx(found["kl/mixed"]["mean"], abs=1e-5)


def test_greedy_scores_stand_beside_sampled_ones(setting):
    """The score of the response that is decoded by hand, most probable token by token; samples and KL as without it."""
    evaluator, policy, engine = setting("regularizer=rkl", "evaluation.greedy=true")
    plain, _, _ = setting("regularizer=rkl")
    scores = {name: scorer for name, scorer in evaluator.scorers.items()}
    assert scores
    found, _ = evaluator.evaluate(policy, engine, Silent())
    without, _ = plain.evaluate(policy, engine, Silent())
    assert {name: found[name] for name in without} == without
    assert sorted(set(found) - set(without)) == sorted(f"greedy/{name}" for name in scores)
    texts = []
    for prompt in evaluator.prompts:
        ids = list(prompt.ids)
        for _ in range(evaluator.settings.max_new_tokens):
            with torch.no_grad():
                logits = policy(input_ids=torch.tensor([ids])).logits[0, -1, : evaluator.vocabulary]
            ids.append(int(logits.argmax()))
            if ids[-1] in evaluator.end_ids:
                break
        texts.append(ids[len(prompt.ids) :])
    groups = [[Completion(text, [], text[-1] in evaluator.end_ids)] for text in texts]
    for name, scorer in scores.items():
        assert found[f"greedy/{name}"]["mean"] == pytest.approx(np.mean(scorer(evaluator.samples(groups))))
