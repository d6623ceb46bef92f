"""What each estimator of the online penalty rests at, on enumerable responses: its expected update and its regret.

The expected loss of one step, with y ~ pi and (sg: no gradient), is that of training with the functions of objectives/:

    E_y[ -sg(A(y)) log pi(y) + beta sum_t ( penalty_t + sg( sum_{t' > t} D_t' - b_t ) log pi(y_t | s_t) ) ]

A(y) is reward minus its mean, over its standard deviation with scale `group` (a group of infinitely many responses);
the estimators `reward` and `exact`, `k2`, `k3`, `k3_ratio` put the penalty into A or into the loss, and the penalty to
go, the sum over later tokens of the exact divergence, is there or is not. Tokens are summed (dr_grpo, dapo).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.objectives import penalty
from multiref_cli.objectives.divergence import amari_divergence, score
from multiref_cli.objectives.mixing import mix_factor, power_mean
from multiref_cli.theory import exact
from multiref_cli.theory.responses import Responses

EPSILON = 1e-4  # added to the standard deviation, as objectives.advantages does
NEVER = -300.0  # log-probability of a token that no run will ever draw
ITERATIONS = 200
ESTIMATORS = ("reward", "exact", "k2", "k3", "k3_ratio")


@dataclass(frozen=True)
class Problem:
    """N problems over the same responses.

    references (K, N, S, V) log-probabilities, weights (K,) alpha, reward (N, Y), beta > 0, order A. With level `token`
    the mixed reference is normalized at every state; with `sequence` it is not, as in Theorems 5.1 and 6.1. At level
    `token` a state's divergence is F^A D_A(M / F || pi), sum_i alpha_i D_A(pi_i || pi) less its least value.
    """

    responses: Responses
    references: Tensor
    weights: Tensor
    reward: Tensor
    beta: float
    order: float = 0.0

    def log_mixed(self, level: str) -> Tensor:
        """Log of the mixed conditionals; (N, S, V). At level sequence their sums are log M for order 0 only."""
        mixed = power_mean(self.references, self.weights, self.order)
        return mixed.log_softmax(-1) if level == "token" else mixed

    def factor(self, level: str) -> Tensor:
        """F^A at every state, by which a normalized mix pulls more than D_A(M / F || pi) says; (N, S)."""
        mixed = power_mean(self.references, self.weights, self.order)
        term = Term(self.order, Mix(self.order, tuple(self.weights.tolist())))
        log_f = mixed.logsumexp(-1)
        return mix_factor(term, log_f) if level == "token" else torch.ones_like(log_f)

    def response_mixed(self, level: str) -> Tensor:
        """Log M of whole responses; (N, Y)."""
        if level == "token":
            return self.responses.logps(self.log_mixed("token"))
        return power_mean(self.responses.logps(self.references), self.weights, self.order)

    def rows(self, level: str) -> Tensor:
        """Log of the mixed conditionals along each response; (N, Y, T, V)."""
        return self.log_mixed(level)[:, self.responses.states]


@dataclass(frozen=True)
class Estimator:
    """One way to estimate the penalty: name, level, scale of the advantages (none or group), penalty to go or not."""

    name: str
    level: str = "token"
    scale: str = "none"
    to_go: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            ValueError: an unknown word, or a penalty to go beside a penalty that charges the whole response.
        """
        if (
            self.name not in ESTIMATORS
            or self.level not in ("token", "sequence")
            or self.scale not in ("none", "group")
        ):
            raise ValueError(f"no such estimator: {self}")
        if self.name == "reward" and self.to_go:
            raise ValueError("a penalty in the reward charges the whole response: it has no penalty to go")

    def score_order(self, order: float) -> float:
        """Order of the divergence that a state's tokens are pulled by: k3 descends the forward KL, whatever A."""
        return 1.0 if self.name == "k3" else order


def token_penalty(problem: Problem, policy: Tensor, estimator: Estimator) -> Tensor:
    """Penalty of each token as the loss has it, differentiable; (N, Y, T, V) log-probabilities -> (N, Y, T).

    `exact` at level sequence, order 0, is sum_i alpha_i KL(pi || pi_i) = KL(pi || M) with M unnormalized.
    """
    mixed, along = problem.rows(estimator.level), problem.responses
    factor = torch.where(along.mask, problem.factor(estimator.level)[:, along.states], 0.0)
    if estimator.name == "exact":
        return factor * amari_divergence(mixed, policy, problem.order)
    log_ratio, chosen = along.chosen(policy - mixed), along.chosen(policy)
    # Tokens that are never drawn would give 0 times infinity.
    log_ratio = torch.where(chosen > NEVER, log_ratio, 0.0)
    if estimator.name == "k2":
        return factor * penalty.k2(log_ratio, problem.order)
    if estimator.name == "k3":
        return factor * penalty.k3(log_ratio)
    return factor * penalty.k3_ratio(log_ratio, (chosen - chosen.detach()).exp(), problem.order)


def response_losses(problem: Problem, logits: Tensor, estimator: Estimator) -> Tensor:
    """Loss of each response; its mean under the policy has the expected update as its gradient.

    Args:
        problem: N problems.
        logits: (N, Y, T, V) of the policy at the states along each response, differentiable.
        estimator: what is estimated how.

    Returns:
        (N, Y), with baselines that are means under the policy (of the advantage; of the penalty to go at a position).
    """
    policy, along = logits.log_softmax(-1), problem.responses
    chosen = along.chosen(policy)
    logps = chosen.sum(-1)
    chance, signal = logps.detach().exp(), problem.reward
    if estimator.name == "reward":
        mixed = problem.response_mixed(estimator.level)
        signal = signal - problem.beta * score((logps - mixed).detach(), problem.order)
    losses = -_advantages(signal, chance, estimator.scale) * logps
    if estimator.name == "reward":
        return losses
    losses = losses + problem.beta * token_penalty(problem, policy, estimator).sum(-1)
    if not estimator.to_go:
        return losses
    factor = problem.factor(estimator.level)[:, along.states] * along.mask
    each = factor * amari_divergence(problem.rows(estimator.level), policy.detach(), problem.order)
    later = each.flip(-1).cumsum(-1).flip(-1) - each
    alive = chance.unsqueeze(-1) * along.mask
    baseline = (alive * later).sum(-2, keepdim=True) / alive.sum(-2, keepdim=True).clamp(min=1e-300)
    return losses + problem.beta * ((later - baseline) * chosen).sum(-1)


def _advantages(signal: Tensor, chance: Tensor, scale: str) -> Tensor:
    centered = signal - (chance * signal).sum(-1, keepdim=True)
    return centered / (spread(chance, signal) + EPSILON).unsqueeze(-1) if scale == "group" else centered


def spread(chance: Tensor, values: Tensor) -> Tensor:
    """Standard deviation under probabilities; (N, Y), (N, Y) -> (N,)."""
    mean = (chance * values).sum(-1, keepdim=True)
    return (chance * (values - mean) ** 2).sum(-1).sqrt()


def updates(problem: Problem, policy: Tensor, estimator: Estimator) -> Tensor:
    """Gradient of each response's loss in the logits of the states that it passes; (N, S, V) -> (N, Y, T, V)."""
    logits = policy.detach()[:, problem.responses.states].clone().requires_grad_()
    return torch.autograd.grad(response_losses(problem, logits, estimator).sum(), logits)[0]


def expected_update(problem: Problem, policy: Tensor, estimator: Estimator) -> Tensor:
    """Gradient of the expected loss in the logits, over all responses; (N, S, V) -> (N, S, V), zero at rest."""
    along = problem.responses
    chance = along.logps(policy).exp()[..., None, None]
    weighed = (chance * updates(problem, policy, estimator)).flatten(1, 2)
    return torch.zeros_like(policy).index_add(1, along.states.flatten(), weighed)


def update_variance(problem: Problem, policy: Tensor, estimator: Estimator) -> Tensor:
    """Variance of the update of a single response, summed over all logits.

    Args:
        problem: N problems.
        policy: (N, S, V) log-probabilities, where it is measured.
        estimator: what is estimated how.

    Returns:
        (N,) trace of the covariance, squared reward units.
    """
    chance = problem.responses.logps(policy).exp()
    square = (chance * updates(problem, policy, estimator).square().sum((-2, -1))).sum(-1)
    return square - expected_update(problem, policy, estimator).square().sum((-2, -1))


def resting_point(problem: Problem, estimator: Estimator) -> Tensor:
    """The policy at which the expected update vanishes, by backward induction; (N, S, V) log-probabilities.

    At rest a state's tokens solve Q(s, a) - beta s(log pi - log M) = const, Q being what the token leads to: reward
    alone, or reward less the later divergences with the penalty to go. `reward` rests at the optimum over responses,
    whatever the scale. With scale `group` a loss-type penalty meets Q_r / sigma, sigma the reward's standard deviation
    at rest: found by iteration from the mixed reference, as training would come to it.

    Args:
        problem: N problems.
        estimator: what is estimated how.

    Returns:
        (N, S, V).

    Raises:
        ValueError: a penalty to go at level sequence with an order other than 0, which is not additive over tokens.
    """
    if estimator.name == "reward":
        mixed = problem.response_mixed(estimator.level)
        found = exact.solve(mixed, problem.reward, problem.beta, problem.order)
        return _conditionals(problem.responses, mixed + found.log_ratio)
    if estimator.level == "sequence" and problem.order != 0:
        raise ValueError("only the reverse KL of whole responses is a sum over tokens")
    scale = torch.ones(len(problem.reward), dtype=torch.float64)
    if estimator.scale == "none":
        return _induced(problem, estimator, scale)
    start = problem.responses.logps(problem.log_mixed("token")).exp()
    scale = spread(start, problem.reward) + EPSILON
    for _ in range(ITERATIONS):
        policy = _induced(problem, estimator, scale)
        new = spread(problem.responses.logps(policy).exp(), problem.reward) + EPSILON
        if bool(((new - scale).abs() < 1e-10).all()):
            break
        scale = new
    return policy


def _induced(problem: Problem, estimator: Estimator, scale: Tensor) -> Tensor:
    mixed, order = problem.log_mixed(estimator.level), estimator.score_order(problem.order)
    rest, factor = torch.zeros_like(mixed), problem.factor(estimator.level)

    def _value(at: Tensor, worth: Tensor) -> Tensor:
        found = exact.solve(mixed[:, at], worth / factor[:, at, None], problem.beta, order)
        rest[:, at] = mixed[:, at] + found.log_ratio
        charged = torch.zeros_like(worth[..., 0])
        if estimator.to_go:
            charged = factor[:, at] * amari_divergence(mixed[:, at], rest[:, at], problem.order)
        return (rest[:, at].exp() * worth).sum(-1) - problem.beta * charged

    problem.responses.backward(problem.reward / scale.unsqueeze(-1), _value)
    return rest.log_softmax(-1)


def _conditionals(along: Responses, log_mass: Tensor) -> Tensor:
    children = along.backward(log_mass, lambda _, worth: torch.logsumexp(worth, -1))
    return children.log_softmax(-1)


def token_regret(problem: Problem, policy: Tensor, order: float) -> Tensor:
    """Regret in the token-level objective E_pi[r - beta sum_t F^A D_A(M(. | s_t) || pi(. | s_t))], M normalized.

    Args:
        problem: N problems; their own order is that of the mean.
        policy: (N, S, V) log-probabilities.
        order: A of the divergence; without the factor where it is not that of the mean.

    Returns:
        (N,) reward units.
    """
    mixed, factor = problem.log_mixed("token"), problem.factor("token")
    factor = factor if order == problem.order else torch.ones_like(factor)

    def _best(at: Tensor, worth: Tensor) -> Tensor:
        found = exact.solve(mixed[:, at], worth / factor[:, at, None], problem.beta, order)
        log_policy = mixed[:, at] + found.log_ratio
        apart = factor[:, at] * amari_divergence(mixed[:, at], log_policy, order)
        return (found.policy * worth).sum(-1) - problem.beta * apart

    def _own(at: Tensor, worth: Tensor) -> Tensor:
        apart = factor[:, at] * amari_divergence(mixed[:, at], policy[:, at], order)
        return (policy[:, at].exp() * worth).sum(-1) - problem.beta * apart

    root = torch.tensor([0])
    best, own = (f(root, problem.responses.backward(problem.reward, f)[:, :1]).squeeze(-1) for f in (_best, _own))
    return best - own


def sequence_regret(problem: Problem, policy: Tensor) -> Tensor:
    """Regret in the objective over whole responses, Theorem 5.1's own for order 0; (N, S, V) -> (N,) reward units."""
    along = problem.responses
    references = along.logps(problem.references).exp().movedim(0, -2)
    chance = along.logps(policy).exp()
    return exact.regret(chance, references, problem.weights, problem.reward, problem.beta, problem.order)


def length_weighted_gap(problem: Problem) -> Tensor:
    """Price of the `grpo` reduction with states from the references: KL(M_1 || pi) at rest, reward zero.

    Every stored response then weighs 1 / |y|: the loss -E_{y ~ M_1}[log pi(y) / |y|] rests at pi ~ M_1(y) / |y|, while
    the forward KL rests at M_1. In closed form log E[1 / |y|] + E[log |y|] under M_1.

    Args:
        problem: N problems.

    Returns:
        (N,) nats, zero only if all responses have one length.
    """
    logps = problem.responses.logps(problem.references)
    mixture = power_mean(logps, problem.weights, 1.0)
    log_length = problem.responses.lengths.double().log()
    return torch.logsumexp(mixture - log_length, -1) + (mixture.exp() * log_length).sum(-1)
