"""The online algorithm with a sum of divergences, on a tree that can be enumerated: gradients and the exact optimum."""

import math
from pathlib import Path

import pytest
import torch

from multiref_cli.config import schema
from multiref_cli.config.terms import DivergenceTerm
from multiref_cli.files import read_json, read_lines
from multiref_cli.objectives.divergence import divergence_of
from multiref_cli.theory.terms import objective_of_terms, optimal_policy_of_terms
from tests.algorithms import test_grpo_truth
from tests.algorithms.test_grpo_truth import (
    BETA,
    LEAVES,
    NODES,
    VOCABULARY,
    WEIGHTS,
    TabularLM,
    build_algorithm,
    descend,
    problem,
    sampled_gradient,
)

# As regularizer.terms; what each reference of the tree then has.
PRESETS = {
    "js": ([DivergenceTerm("jensen_shannon")], ["jensen_shannon", "jensen_shannon"]),
    "chipo": ([DivergenceTerm("chi_po")], ["chi_po", "chi_po"]),
    "anchor": (
        [DivergenceTerm("reverse_kl", reference="a"), DivergenceTerm("forward_kl", reference="b")],
        ["reverse_kl", "forward_kl"],
    ),
}


@pytest.mark.parametrize(
    ("name", "estimator"), [("js", "exact"), ("js", "k2"), ("js", "k3_ratio"), ("anchor", "exact"), ("chipo", "k2")]
)
def test_token_level_estimators_have_the_gradient_of_the_sum_of_divergences(name, estimator):
    """With no reward: sum_i alpha_i D_i(pi(.|s) || pi_i(.|s)) at every state, weighted by its visits, states given."""
    (terms, kinds), weights = PRESETS[name], WEIGHTS.tolist()
    error = gradient_error(kinds, weights, level=schema.Level.token, estimator=schema.Estimator[estimator], terms=terms)
    assert error < (0.05 if estimator == "exact" else 0.2)


@pytest.mark.parametrize("estimator", ["exact", "k2"])
def test_signed_weights_have_the_gradient_of_their_signed_sum(monkeypatch, estimator):
    """-0.4 KL(pi || a) + 1.4 KL(pi || b), at every state."""
    weights = torch.tensor([-0.4, 1.4], dtype=torch.float64)
    monkeypatch.setattr(test_grpo_truth, "WEIGHTS", weights)
    settings = {"level": schema.Level.token, "estimator": schema.Estimator[estimator], "signed": True}
    error = gradient_error(["reverse_kl"] * 2, weights.tolist(), order=0.0, **settings)
    assert error < (0.05 if estimator == "exact" else 0.2)


def gradient_error(kinds, weights, order=None, **settings) -> float:
    """Distance of the sampled gradient of `Online` from that of sum_i w_i D_i at the visited states, relative."""
    _, models, _ = problem()
    policy = TabularLM(4, 0.5)
    algorithm = build_algorithm(order, policy, models, torch.zeros(LEAVES), to_go=False, **settings)
    found = sampled_gradient(algorithm, policy, 12)

    rows = policy.head.weight.T.log_softmax(-1)
    tables = [model.head.weight.T.log_softmax(-1).detach() for model in models]
    reach = torch.ones(NODES, dtype=torch.float64)
    for node in range(1, NODES):
        parent, token = divmod(node - 1, VOCABULARY)
        reach[node] = reach[parent] * rows[parent, token].exp().detach()
    parts = [w * divergence_of(kind).divergence(p, rows) for w, kind, p in zip(weights, kinds, tables)]
    (expected,) = torch.autograd.grad(BETA * (reach * sum(parts)).sum(), policy.head.weight)
    return ((found - expected).norm() / expected.norm()).item()


def test_in_the_reward_samples_reach_the_optimum_of_the_terms():
    (references, models, reward), (terms, kinds) = problem(), PRESETS["anchor"]
    policy = TabularLM(4, 0.0)
    algorithm = build_algorithm(None, policy, models, reward, terms=terms)
    weighted = [(kind, BETA * w) for kind, w in zip(kinds, WEIGHTS.tolist())]
    best = objective_of_terms(optimal_policy_of_terms(references, weighted, reward), references, weighted, reward)

    def regret_now() -> float:
        found = policy.token_logps().sum(-1).exp().detach()
        return float(best - objective_of_terms(found, references, weighted, reward))

    assert regret_now() > 0.02
    descend(algorithm, policy, steps=60)
    assert -1e-9 < regret_now() < 2e-3


def test_both_jobs_from_the_command_line(place, multiref, offline, online):
    """Finite, named after their terms, no `kl/mixed` where nothing is mixed."""
    more = ["regularizer.level=token", "steps=2", "evaluation.prompts=2"]
    jobs = {
        "dpo-anchor-a0.5-b0.3": [*offline, "regularizer=anchor", "steps=2", "evaluation.prompts=2"],
        "grpo-js_token-a0.5-b1": [*online, "regularizer=js", *more],
    }
    for number, (condition, overrides) in enumerate(jobs.items()):
        assert multiref("train", *overrides, f"run.name=r{number}", "--plain") == 0
        results = read_json(Path(f"runs/r{number}/results.json"))
        assert results["condition"] == condition and "kl/mixed" not in results["metrics"]
        distance = "log_ratio" if condition.startswith("dpo") else "kl"
        rows = read_lines(Path(f"runs/r{number}/metrics.jsonl"))
        assert all(math.isfinite(row["loss"]) and f"{distance}/mixed" not in row for row in rows)
        assert all(f"{distance}/first" in row for row in rows)
        assert (Path(f"runs/r{number}/report") / "index.html").is_file()
