"""General preferences: regularized Nash equilibria with the same divergences and references (arXiv 2602.23116)."""

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import exact, nash
from multiref_cli.theory.bandit import generator
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, follows, listed, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import bells, simplex

READS = ("responses", "alpha", "distance")

ORDERS = {-1.0: "A = −1", 0.0: "A = 0, reverse KL", 0.5: "A = 1/2", 1.0: "A = 1, forward KL"}
BETAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
ERRORS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def cyclic_preferences(responses: int, strength: float = 0.45) -> Tensor:
    """A circle in which every response beats the third of the circle that follows it; (Y, Y), P + P^T = 1."""
    angle = 2 * torch.pi * torch.arange(responses, dtype=torch.float64) / responses
    return 0.5 + strength * torch.sin(angle - angle[:, None])


def win_rate_gaps(preferences: Tensor, references: Tensor, weights: Tensor, order: float) -> list[tuple[float, float]]:
    """Dual gaps of the equilibrium, and of the optimum for the win rate against the mixed reference as a reward.

    Args:
        preferences: (Y, Y) P.
        references: (K, Y) probabilities.
        weights: (K,) alpha.
        order: A.

    Returns:
        Two floats for each beta.
    """
    against = preferences @ torch.softmax(exact.log_mixed(references, weights, order), -1)
    found = []
    for beta in BETAS:
        args = (references, weights, beta, order)
        policies = (
            nash.nash_equilibrium(preferences, *args).policy,
            exact.optimal_policy(*args[:2], against, beta, order),
        )
        gaps = [float(nash.dual_gap(policy, preferences, *args)) for policy in policies]
        found.append((max(gaps[0], 0.0), gaps[1]))
    return found


def error_gaps(
    preferences: Tensor, errors: list[Tensor], references: Tensor, weights: Tensor, order: float
) -> tuple[list[float], list[float]]:
    """Mean dual gap of the equilibria of wrong preferences P + size E, and the mean of its bound.

    Args:
        preferences: (Y, Y) P.
        errors: (Y, Y) each, skew.
        references: (K, Y) probabilities.
        weights: (K,) alpha.
        order: A.

    Returns:
        Two lists of floats, one entry for each size in `ERRORS`; beta is 0.2.
    """
    args, mixed = (references, weights, 0.2, order), exact.log_mixed(references, weights, order)
    means, limits = [], []
    for size in ERRORS:
        found = [nash.nash_equilibrium(preferences + size * e, *args).policy for e in errors]
        means.append(float(torch.stack([nash.dual_gap(p, preferences, *args) for p in found]).mean()))
        bound = [nash.dual_gap_bound(p, size * e, mixed, 0.2, order) for p, e in zip(found, errors)]
        limits.append(float(torch.stack(bound).mean()))
    return means, limits


def run(lab: Laboratory) -> Study:
    """Solve cyclic games for each order, and perturb the preferences; every number is a float."""
    responses, weights = 3 * lab.responses // 2, simplex(lab.alpha)
    preferences, references = cyclic_preferences(responses), bells(len(weights), lab.distance, responses)
    rng = generator(lab.seed, "games")
    skews = [torch.from_numpy(np.triu(rng.uniform(-0.5, 0.5, (responses,) * 2), 1)) for _ in range(4)]
    errors = [0.5 + s - s.T - preferences for s in skews]
    metrics: Metrics = {}
    rows, gains, slopes = [], [], []
    for series, (order, name) in enumerate(ORDERS.items()):
        gaps = win_rate_gaps(preferences, references, weights, order)
        metrics[f"dual_gap/equilibrium/{name}"] = metric(max(gap for gap, _ in gaps))
        metrics[f"dual_gap/win_rate/{name}"] = metric(max(naive for _, naive in gaps))
        rows += [[name, beta, *pair] for beta, pair in zip(BETAS, gaps)]
        gains.append(Line(name, BETAS, [naive for _, naive in gaps], "measured", series))
        means, limits = error_gaps(preferences, errors, references, weights, order)
        slopes += [Line(name, ERRORS, means, "measured", series)]
        slopes += [Line("its bound", ERRORS, limits, "bound", series)] if order in (0.0, 1.0) else []
        metrics[f"dual_gap_slope/{name}"] = metric(float(np.polyfit(np.log(ERRORS), np.log(means), 1)[0]))
    table = Table(
        "Cyclic preferences: dual gap of the computed equilibrium, and of the policy that treats the "
        "win rate against the mixed reference as a reward.",
        ["Order", "beta", "Equilibrium", "Win rate as reward"],
        rows,
    )
    fitted = [[name, metrics[f"dual_gap_slope/{name}"]["mean"]] for name in ORDERS.values()]
    fits = Table("Log-log slope of the dual gap in the size of the preference error; 2 is derived.", ["Order", "Slope"],
                 fitted)  # fmt: skip
    charts = [_chart(gains, slopes, metrics)]
    return Study("games", "General preferences: Nash equilibria", [conclusion(metrics)], [table, fits], charts, metrics)


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    worst = max(metrics[f"dual_gap/equilibrium/{name}"]["mean"] for name in ORDERS.values())
    naive = max(metrics[f"dual_gap/win_rate/{name}"]["mean"] for name in ORDERS.values())
    found = "to rounding" if worst < 1e-9 else "not to rounding at these settings"
    cost = (
        f"treating the win rate against the mixed reference as one leaves a dual gap of up to {naive:.2g}"
        if naive > 1e-9
        else "that a reward made of win rates costs something is not seen at these settings"
    )
    return (
        f"Preferences that go round in a circle have no reward: {cost}. The equilibrium of the regularized game is the "
        f"exact optimum for its own win rates; Newton finds it {found} for every order (largest dual gap {worst:.0e}; "
        f"derived: the Jacobian is never singular). {_square(metrics)} Here the preferences are perturbed; arXiv "
        "2602.23116 "
        "is about preferences that are learned (rank-2r skew, greedy sampling against explore-then-commit), and "
        "proves the "
        "quadratic rate for strongly convex regularizers."
    )


def _square(metrics: Metrics) -> str:
    slopes = {name: metrics[f"dual_gap_slope/{name}"] for name in ORDERS.values()}
    shown = [name for name, slope in slopes.items() if follows(slope, 2.0)]
    span = f"slopes {min(s['mean'] for s in slopes.values()):.2f} to {max(s['mean'] for s in slopes.values()):.2f}"
    if len(shown) == len(slopes):
        return f"Errors in the preferences cost their **square** for every order shown ({span}), as derived."
    seen = f"is seen for {listed(shown)} only" if shown else "is not seen at these settings"
    return f"That errors in the preferences cost their square, as derived, {seen} ({span})."


def _chart(gains: list[Line], slopes: list[Line], metrics: Metrics) -> Chart:
    return Chart(
        "games",
        "Nash learning with several references. Left: dual gap, what two best-responding opponents gain, of the "
        "policy that treats the win rate against the mixed reference as a reward. Right: dual gap of the equilibrium "
        "of "
        f"wrong preferences and the derived bound (dashed, reverse and forward KL). {_square(metrics)}",
        [
            Panel("Win rate as a reward", "beta", "dual gap", gains, x_scale="log", y_scale="log"),
            Panel("Errors in the preferences", "size of the preference error", "dual gap", slopes, x_scale="log",
                  y_scale="log"),
        ],
    )  # fmt: skip
