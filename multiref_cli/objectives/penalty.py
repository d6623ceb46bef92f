"""Estimators of the online penalty, each with the gradient that it really descends and the objective where it rests.

x = log pi - log M is the log ratio of the policy to the mixed reference, A the score order, rho the importance ratio of
the policy to the one that sampled. All on responses sampled from the policy; M normalized where tokens are mixed.

| estimator  | where                  | value                         | gradient on-policy       | objective at rest |
|------------|------------------------|-------------------------------|--------------------------|-------------------|
| `reward`   | reward, whole response | s_A(x); E is KL(pi‖M) at 0    | of D_A(M‖pi), exact      | over responses    |
| `exact`    | loss, every token      | sum over the vocabulary: D_A  | of D_A at each state     | token level (*)   |
| `topk`     | loss, every token      | k columns, sampled tail: D_A  | of D_A at each state     | token level (*)   |
| `k2`       | loss, every token      | integral of s_A; x²/2 at 0    | of D_A at each state     | token level (*)   |
| `k3`       | loss, every token      | e^-x - 1 + x; E is KL(pi‖M)   | of KL(M‖pi), FORWARD KL  | none but at A = 1 |
| `k3_ratio` | loss, every token      | rho f_A(e^-x); E is D_A       | of D_A at each state     | token level (*)   |
| `clipped`  | reward, whole response | s_A(x clipped to [-tau, tau]) | biased where |x| > tau   | biased likewise   |

(*) with `penalty_to_go`. Without it the states are taken as given: a token is not charged for the states that it leads
to, and the policy rests at the optimum of no objective (theory/estimators.py has the regrets). Token level means
E[r - beta sum_t F_t^A D_A(M_t‖pi_t)]; `exact` of order 0 with M not normalized (level sequence) rests at the optimum of
Theorem 5.1 of arXiv 2502.01203, as `reward` does. F_t^A is `mixing.mix_factor`. A scale of the advantages moves what is
a loss, see `advantages`.

`reward` is `total_score` of objectives/divergence.py with weight -beta in the reward, no gradient wanted:
grad of E_pi[r] - beta sum_i alpha_i D_A(pi_i‖pi) = E_pi[ grad log pi(y) (r(y) - beta s_A(log u(y))) ].
`exact` and `topk` live in models/logprobs.py and models/columns.py, where the logits are; `topk` is `exact` where its k
columns are the vocabulary and `k3_ratio` where there are none. For A = 0, `k2` and `k3` are Schulman's estimators, and
`k3_ratio` is the importance-weighted k3 that TRL calls bias correction. For A = 1, `k2` is k3: the very function that
GRPO descends, here under the divergence whose gradient it has. On the policy that sampled, `k2` and `k3_ratio` have the
same gradient sample by sample, s_A(x) grad log pi; they differ in value and off that policy.

Off the policy that sampled (later inner iterations) the states and what follows a token are those of that policy, and
each token is corrected for itself, as PPO does: `exact`, `topk`, `k3_ratio` descend sum_s d_old(s) [D_A(s) + E_pi[G]],
G the penalty to go along the old policy's continuations and held fixed. `k2` and `k3` have no correction of their own.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multiref_cli.config.regularizer import Estimator, Term
from multiref_cli.objectives.aggregate import widened
from multiref_cli.objectives.divergence import kind_of, ratio_estimate, score_integral, total, weighted
from multiref_cli.objectives.mixing import mix_factor


def clipped_penalty(terms: Sequence[Term], policy_logps: Tensor, mixed_logps: Tensor, threshold: float) -> Tensor:
    """Sum of the scores of the log ratios clipped to [-tau, tau], for the reward (clipped KL of arXiv 2602.21765).

    Lower variance for a bias of at most E[(|x| - tau)_+] in the value for A = 0.

    Args:
        terms: R summands.
        policy_logps: (B,) log-probs of whole responses in nats.
        mixed_logps: (R, B) of the terms' mixed references.
        threshold: tau in nats, above 0.

    Returns:
        (B,) the clipped scores' sum.
    """
    ratios = (policy_logps - mixed_logps).clamp(-threshold, threshold)
    return total(weighted(term.weight, kind_of(term.score).score(ratio)) for term, ratio in zip(terms, ratios))


def calibrated_threshold(log_ratios: Tensor, confidence: float = 0.05) -> float:
    """The tau that balances the bias of clipping against the sampling error of the clipped mean.

    With n samples, Hoeffding bounds the error of a mean in [-tau, tau] by tau sqrt(2 log(2 / delta) / n), and clipping
    costs E[(|x| - tau)_+]. The sum is least at P(|x| > tau) = sqrt(2 log(2 / delta) / n): tau is a quantile of |x|.
    This is our reading of the trade-off that arXiv 2602.21765 bounds; the paper's constants are not used.

    Args:
        log_ratios: (n,) log pi - log M of whole responses, in nats.
        confidence: delta, the probability with which the bound may fail.

    Returns:
        tau in nats, at least 1e-6.
    """
    magnitudes = widened(log_ratios.detach().abs())
    tail = math.sqrt(2.0 * math.log(2.0 / confidence) / len(magnitudes))
    return max(float(torch.quantile(magnitudes, max(0.0, 1.0 - tail))), 1e-6)


def k2(log_ratio: Tensor, order: float = 0.0, clip: float = 0.0) -> Tensor:
    """The integral of s_A from 0 to x: x²/2 for A = 0, e^-x - 1 + x for A = 1, e^x - 1 - x for A = -1.

    Its gradient is s_A(x) grad log pi, in expectation that of D_A at the state (arXiv 2510.01555 for A = 0). The value
    estimates nothing of use.

    Args:
        log_ratio: (B, T) log pi - log M in nats, differentiable.
        order: A.
        clip: |A x| in nats beyond which s_A goes on linearly; 0: off.

    Returns:
        (B, T), never negative.
    """
    return score_integral(log_ratio, order, clip)


def k3(log_ratio: Tensor) -> Tensor:
    """e^-x - 1 + x, an unbiased and never negative estimate of KL(pi‖M), whose gradient is that of KL(M‖pi).

    As a loss term (GRPO, arXiv 2402.03300) it descends the forward KL; see the table above.

    Args:
        log_ratio: (B, T) log pi - log M in nats, differentiable.

    Returns:
        (B, T).
    """
    return torch.expm1(-log_ratio) + log_ratio


def k3_ratio(log_ratio: Tensor, ratios: Tensor, order: float = 0.0) -> Tensor:
    """rho f_A(e^-x) with f_A(t) = (t^A - 1 - A (t - 1)) / (A (A - 1)): value and gradient are those of D_A.

    f_0(t) = t - 1 - log t gives the importance-weighted k3 (DeepSeek-V3.2, arXiv 2512.02556), f_1(t) = t log t - t + 1.
    Because rho is differentiable, grad E_pi[f] comes out whole, on the policy that sampled and off it.

    Args:
        log_ratio: (B, T) log pi - log M in nats, M normalized, differentiable.
        ratios: (B, T) importance ratios of the policy to the one that sampled, differentiable.
        order: A.

    Returns:
        (B, T), never negative.
    """
    return ratios * ratio_estimate(log_ratio, order)


def topk_divergence(
    score: float | str, mixed_logps: Tensor, policy_logps: Tensor, inside: Tensor, ratios: Tensor
) -> Tensor:
    """sum_{v in S} p_v h(x_v) + [y not in S] rho h(x_y), S the k columns: value and gradient are those of D_f.

    h(x) = (f(u) - f'(1) (u - 1)) / u at u = e^x is never negative and D_f = E_p[h(x)]. What S holds is summed and not
    sampled, so that only the rest has a variance; the rest is y ~ pi where it falls outside, with a ratio whose
    gradient is that of the probability of falling there.

    Args:
        score: which divergence, an order A or a name.
        mixed_logps: (N, k + 1) log M at the k columns and, last, at the sampled token y, in nats, M normalized.
        policy_logps: (N, k + 1) log pi there, differentiable.
        inside: (N,) bool, whether y is among the k columns.
        ratios: (N,) importance ratio of y to the policy that sampled it, differentiable.

    Returns:
        (N,) in nats, never negative up to rounding.
    """
    kind, tail = kind_of(score), policy_logps[:, -1] - mixed_logps[:, -1]
    # A token inside has a tail of 0 also where that of its log ratio overflows.
    sampled = ratios * kind.ratio_estimate(torch.where(inside, torch.zeros_like(tail), tail))
    summed = kind.columns(mixed_logps[:, :-1], policy_logps[:, :-1])
    return summed + torch.where(inside, torch.zeros_like(sampled), sampled)


def sampled_penalty(
    estimator: Estimator,
    terms: Sequence[Term],
    log_ratios: Tensor,
    ratios: Tensor,
    log_normalizers: Tensor | None = None,
    clip: float = 0.0,
) -> Tensor:
    """The penalty as a loss term on the sampled tokens, summed over the terms.

    Args:
        estimator: k2, k3 or k3_ratio.
        terms: R summands.
        log_ratios: (R, B, T) log pi - log M of every term in nats, differentiable.
        ratios: (B, T) importance ratios of the single tokens, differentiable.
        log_normalizers: (R, B, T) log F_t where M is normalized by it; None: it is not.
        clip: of the score that k2 integrates.

    Returns:
        (B, T) the penalty.
    """

    def one(log_ratio: Tensor, score: float | str) -> Tensor:
        if estimator is Estimator.k2:
            return kind_of(score).integral(log_ratio, clip)
        return k3(log_ratio) if estimator is Estimator.k3 else ratios * kind_of(score).ratio_estimate(log_ratio)

    return _summed(terms, [one(x, term.score) for term, x in zip(terms, log_ratios)], log_normalizers)


def sampled_charge(
    terms: Sequence[Term], log_ratios: Tensor, ratios: Tensor, log_normalizers: Tensor | None = None
) -> Tensor:
    """Unbiased estimates of each token's divergence, whatever the loss term is; (B, T), arguments as above."""
    found = [ratios * kind_of(term.score).ratio_estimate(x) for term, x in zip(terms, log_ratios)]
    return _summed(terms, found, log_normalizers).detach()


def _summed(terms: Sequence[Term], values: Sequence[Tensor], log_normalizers: Tensor | None) -> Tensor:
    parts = [weighted(term.weight, value) for term, value in zip(terms, values)]
    if log_normalizers is not None:
        parts = [mix_factor(term, log_f) * part for term, log_f, part in zip(terms, log_normalizers, parts)]
    return total(parts)


def penalty_to_go(penalty: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """What a response has still to pay after each token, sum_{t' > t} D_t', over what the others of its group have.

    A loss term at each token has the gradient of D_t where it stands, states taken as given. The gradient of
    E[sum_t D_t] is whole with beta E[ sum_t (G_t - b_t) grad log pi(y_t | s_t) ] beside it, G_t this sum (arXiv
    2504.10637 for one reference); b_t, the mean over the group's other responses at the same place, depends on no
    token of this one. For A = 0 and sum_i alpha_i KL(pi || pi_i), additive over tokens, it is the gradient of the
    sequence-level objective of arXiv 2502.01203, Theorem 5.1. On the policy that sampled; off it see above.

    Args:
        penalty: (B, T) D_t in nats or an unbiased estimate of it, groups one after the other; no gradient is wanted.
        mask: (B, T) bool, true at completion tokens.
        group_size: responses of a prompt, G; with 1 there is no baseline.

    Returns:
        (B, T) in nats, detached, 0 where masked.
    """
    paid = torch.where(mask, penalty.detach(), torch.zeros_like(penalty))
    after = paid.flip(1).cumsum(1).flip(1) - paid
    if group_size > 1:
        groups = after.reshape(-1, group_size, after.shape[1])
        others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
        after = (groups - others).reshape(after.shape)
    return torch.where(mask, after, torch.zeros_like(after))
