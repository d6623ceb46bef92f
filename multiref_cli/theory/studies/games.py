"""General preferences: regularized Nash equilibria with the same divergences and references (arXiv 2602.23116)."""

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import exact, nash
from multiref_cli.theory.bandit import generator
from multiref_cli.theory.findings import Chart, Line, Panel, Study, Table, metric
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
    rows, gains, slopes, metrics = [], [], [], {}
    for series, (order, name) in enumerate(ORDERS.items()):
        gaps = win_rate_gaps(preferences, references, weights, order)
        rows += [[name, beta, *pair] for beta, pair in zip(BETAS, gaps)]
        gains.append(Line(name, BETAS, [naive for _, naive in gaps], "measured", series))
        means, limits = error_gaps(preferences, errors, references, weights, order)
        slopes += [Line(name, ERRORS, means, "measured", series)]
        slopes += [Line("its bound", ERRORS, limits, "bound", series)] if order in (0.0, 1.0) else []
        metrics[f"dual_gap_slope/{name}"] = metric(float(np.polyfit(np.log(ERRORS), np.log(means), 1)[0]))
    table = Table(
        "Cyclic preferences: dual gap of the computed equilibrium (rounding only), and of the policy that treats the "
        "win rate against the mixed reference as a reward.",
        ["Order", "beta", "Equilibrium", "Win rate as reward"],
        rows,
    )
    fitted = [[name, metrics[f"dual_gap_slope/{name}"]["mean"]] for name in ORDERS.values()]
    fits = Table("Log-log slope of the dual gap in the size of the preference error; 2 is derived.", ["Order", "Slope"],
                 fitted)  # fmt: skip
    charts = [_chart(gains, slopes)]
    return Study("games", "General preferences: Nash equilibria", [_conclusion()], [table, fits], charts, metrics)


def _conclusion() -> str:
    return (
        "Preferences that go round in a circle have no reward. The equilibrium of the regularized game is the exact "
        "optimum for its own win rates; Newton finds it to rounding for every order (derived: the Jacobian is never "
        "singular). Estimated preferences cost the **square** of their error for every order from −1 up, by the same "
        "Bregman argument as for rewards; 2602.23116 proves it for strongly convex regularizers."
    )


def _chart(gains: list[Line], slopes: list[Line]) -> Chart:
    return Chart(
        "games",
        "Nash learning with several references. Left: dual gap, what two best-responding opponents gain, of the "
        "policy that treats the win rate against the mixed reference as a reward; the equilibrium has none. Right: "
        "dual gap of the equilibrium of wrong preferences; slope 2 for every order, below the derived bound (dashed, "
        "reverse and forward KL), as arXiv 2602.23116 has it for strongly convex regularizers.",
        [
            Panel("A reward cannot hold a cycle", "beta", "dual gap", gains, x_scale="log", y_scale="log"),
            Panel("Errors cost their square", "size of the preference error", "dual gap", slopes, x_scale="log",
                  y_scale="log"),
        ],
    )  # fmt: skip
