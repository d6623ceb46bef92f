"""On a tree that can be enumerated (vocabulary 5, length 3) the online algorithm reaches the closed-form optimum."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from multiref_cli.algorithms.online import Online
from multiref_cli.algorithms.parts import Parts
from multiref_cli.config import schema
from multiref_cli.config.algorithms import GrpoSettings
from multiref_cli.data.prompts import Prompt
from multiref_cli.objectives.aggregate import StepSize, reduce
from multiref_cli.objectives.divergence import score
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.objectives.policy_gradient import clipped_surrogate, importance_ratios
from multiref_cli.rewards.combine import RewardBatch
from multiref_cli.rollouts.engine import Completion
from multiref_cli.theory.exact import objectives, regret
from tests.local import live

VOCABULARY, LENGTH, LEAVES, NODES = 5, 3, 125, 31
ORDERS = {"rkl": 0.0, "fkl": 1.0, "hellinger": 0.5, "chi2": -1.0}
WEIGHTS, BETA = torch.tensor([0.35, 0.65], dtype=torch.float64), 0.5
SEQUENCES = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * LENGTH)


class TabularLM(nn.Module):
    """A language model with one row of logits for every prefix: its hidden state is the one-hot of the prefix."""

    def __init__(self, seed: int, spread: float = 1.0):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=NODES)
        self.config.get_text_config = lambda: self.config
        self.head = nn.Linear(NODES, VOCABULARY, bias=False, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        self.head.weight.data = spread * torch.randn(VOCABULARY, NODES, generator=generator, dtype=torch.float64)

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        return self.decode

    def decode(self, input_ids, use_cache, **rest):
        """Rows are one prompt token and the completion's first tokens; children of node n are 5 n + 1 + token."""
        nodes = torch.zeros_like(input_ids)
        for t in range(1, input_ids.shape[1]):
            nodes[:, t] = VOCABULARY * nodes[:, t - 1] + 1 + input_ids[:, t]
        hidden = nn.functional.one_hot(nodes.clamp(max=NODES - 1), NODES).double()
        return SimpleNamespace(last_hidden_state=hidden)

    def token_logps(self):
        """(125, 3) log-probs of the tokens of every leaf, differentiable."""
        rows = self.head.weight.T.log_softmax(-1)
        nodes = torch.stack([torch.zeros(LEAVES, dtype=torch.long), 1 + SEQUENCES[:, 0]])
        nodes = torch.cat([nodes, (VOCABULARY * nodes[1] + 1 + SEQUENCES[:, 1])[None]]).T
        return rows[nodes, SEQUENCES]


def problem():
    """References as probabilities (2, 125), as models, and a reward for every leaf."""
    models = [TabularLM(1, 0.6), TabularLM(2, 0.6)]
    with torch.no_grad():
        references = torch.stack([m.token_logps().sum(-1).exp() for m in models])
    reward = torch.rand(LEAVES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return references, models, reward


@pytest.mark.parametrize("name", ORDERS)
def test_exact_expectations_reach_the_optimum(name):
    """All leaves, weighted by probability: the surrogate has the gradient of J and the regret falls under 1e-8."""
    order, (references, _, reward) = ORDERS[name], problem()
    mixed, policy = power_mean(references.log(), WEIGHTS, order), TabularLM(4)
    mask = torch.ones(LEAVES, LENGTH, dtype=torch.bool)
    step = StepSize(LEAVES, LEAVES * LENGTH, 1)

    def gradient() -> torch.Tensor:
        logps = policy.token_logps()
        whole = logps.sum(-1).detach()
        advantage = reward - BETA * score(whole - mixed, order)
        loss, _ = clipped_surrogate(importance_ratios(logps, logps.detach(), mask), advantage)
        total = reduce(loss, mask, "dr_grpo", step, weights=LEAVES * whole.exp())
        return torch.autograd.grad(total, policy.head.weight)[0]

    def negative_value() -> torch.Tensor:
        return -objectives(policy.token_logps().sum(-1).exp(), references, WEIGHTS, reward, BETA, order)

    torch.testing.assert_close(gradient(), torch.autograd.grad(negative_value(), policy.head.weight)[0])
    optimizer = torch.optim.LBFGS(
        [policy.head.weight], lr=1, max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure():
        policy.head.weight.grad = gradient().contiguous()
        return negative_value().detach()

    optimizer.step(closure)
    found = policy.token_logps().sum(-1).exp().detach()
    assert regret(found, references, WEIGHTS, reward, BETA, order).item() < 1e-8


class TreeEngine:
    """Samples leaves of the tabular policy by inverse CDF."""

    exact_logps = True

    def __init__(self, policy):
        self.policy = policy

    @torch.no_grad()
    def generate(self, prompts, group_size, sampling, seeds):
        logps = self.policy.token_logps()
        generator = torch.Generator().manual_seed(seeds[0])
        leaves = torch.multinomial(logps.sum(-1).exp(), group_size, replacement=True, generator=generator)
        return [[Completion(SEQUENCES[i].tolist(), logps[i].tolist(), False) for i in leaves.tolist()]]


def leaf_of(sample) -> int:
    """The number of the leaf that a decoded response names."""
    a, b, c = map(int, sample.completion.split())
    return 25 * a + 5 * b + c


def build_algorithm(order: float, policy, models, reward, **regularizer) -> Online:
    """`Online` on the tree, unbiased: leave-one-out baseline, no scale, constant length."""
    settings = {
        "baseline": "leave_one_out",
        "advantage_scale": "none",
        "loss_reduction": "dr_grpo",
        "max_length_constant": 1,
    }
    config = schema.Experiment(
        algorithm=GrpoSettings(name="grpo", batch_prompts=1, **settings),
        regularizer=schema.Regularizer(mean_order=order, score_order=order, **regularizer),
        references=[schema.ReferenceSpec(name=n, path=n) for n in ("a", "b")],
        alpha=WEIGHTS.tolist(),
        beta=BETA,
        rollout=schema.Rollout(group_size=256, max_new_tokens=LENGTH),
    )
    parts = Parts(
        model=policy,
        tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids))),
        prompts=[Prompt((0,), [{"role": "user", "content": ""}], None, 0)],
        end_ids=[],
        engine=TreeEngine(policy),
        reward=None if reward is None else lambda s: RewardBatch([float(reward[leaf_of(one)]) for one in s], {}),
        references=live(config, models),
        may_share=False,
    )
    return Online(config, parts)


def descend(algorithm, policy, steps: int) -> None:
    """Adam from 0.2, annealed to 0 along a half cosine."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        for micro in algorithm.batch(step).micros:
            algorithm.loss(policy, micro)[0].backward()
        optimizer.step()


def sampled_gradient(algorithm, policy, count: int) -> torch.Tensor:
    """Mean gradient of `count` batches, the policy standing still."""
    found = torch.zeros_like(policy.head.weight)
    for step in range(count):
        policy.zero_grad()
        for micro in algorithm.batch(step).micros:
            algorithm.loss(policy, micro)[0].backward()
        found += policy.head.weight.grad / count
    return found


@pytest.mark.parametrize("name", ORDERS)
def test_samples_reach_the_optimum(name):
    """Groups of 256 sampled responses through `Online`: regret under 1e-3, from a uniform start far above that."""
    order, (references, models, reward) = ORDERS[name], problem()
    policy = TabularLM(4, 0.0)
    algorithm = build_algorithm(order, policy, models, reward, estimator=schema.Estimator.reward)

    def regret_now() -> float:
        found = policy.token_logps().sum(-1).exp().detach()
        return regret(found, references, WEIGHTS, reward, BETA, order).item()

    assert regret_now() > 0.05
    descend(algorithm, policy, steps=120)
    assert regret_now() < 1e-3


@pytest.mark.parametrize("estimator", ["exact", "k2", "k3", "k3_ratio"])
def test_token_level_estimators_through_the_algorithm(estimator):
    """With no reward, the sampled gradient is that of the divergence at each state, weighted by its visits.

    For k3 it is the gradient of the forward KL under the reverse-KL regularizer.
    """
    _, models, _ = problem()
    policy, silent = TabularLM(4), torch.zeros(LEAVES)
    kind = schema.Estimator[estimator]
    algorithm = build_algorithm(0.0, policy, models, silent, level=schema.Level.token, estimator=kind, to_go=False)
    found = sampled_gradient(algorithm, policy, 16)

    rows = policy.head.weight.T.log_softmax(-1)
    with torch.no_grad():
        tables = torch.stack([m.head.weight.T.log_softmax(-1) for m in models])
        mixed = power_mean(tables, WEIGHTS, 0.0).log_softmax(-1)
        reach = torch.ones(NODES, dtype=torch.float64)
        for node in range(1, NODES):
            parent, token = divmod(node - 1, VOCABULARY)
            reach[node] = reach[parent] * rows[parent, token].exp()
    reverse = (rows.exp() * (rows - mixed)).sum(-1)
    forward = (mixed.exp() * (mixed - rows)).sum(-1)
    target = BETA * (reach * (forward if estimator == "k3" else reverse)).sum()
    (expected,) = torch.autograd.grad(target, policy.head.weight, retain_graph=True)
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < (0.05 if estimator == "exact" else 0.15)
    other = BETA * (reach * (reverse if estimator == "k3" else forward)).sum()
    (wrong,) = torch.autograd.grad(other, policy.head.weight)
    assert (found - wrong).norm() / wrong.norm() > 0.3
