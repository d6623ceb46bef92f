"""Exact optima of every order, the surrogates that are used in their place, and what the surrogates cost."""

import torch
from torch import Tensor

from multiref_cli.theory import exact
from multiref_cli.theory.bandit import pushed_apart
from multiref_cli.theory.findings import Chart, Line, Panel, Study, Table, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import simplex

RESPONSES = 81
ORDERS = {-1.0: "A = −1, chi-square", 0.0: "A = 0, reverse KL", 0.5: "A = 1/2, Hellinger", 1.0: "A = 1, forward KL"}
DISTANCES = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def landscape(reward_max: float) -> Tensor:
    """A smooth reward with a hill between the references and a higher one beside them; (Y,) = (81,) in [0, R_max]."""
    line = torch.linspace(0, 1, RESPONSES, dtype=torch.float64)
    hills = 0.7 * torch.exp(-0.5 * ((line - 0.5) / 0.07) ** 2) + torch.exp(-0.5 * ((line - 0.92) / 0.07) ** 2)
    return reward_max * hills / hills.max()


def run(lab: Laboratory) -> Study:
    """Solve the picture-book problem for each order and measure the surrogates' regrets; numbers are floats."""
    weights = simplex(0.5)
    references, reward, beta = pushed_apart(0.4, RESPONSES), landscape(lab.reward_max), 0.4 * lab.beta
    rows = []
    for order, name in ORDERS.items():
        found = exact.solution(references, weights, reward, beta, order)
        expected = float((found.policy * reward).sum())
        best = float(exact.value(references, weights, reward, beta, order))
        kept = f"{int((found.policy > 0).sum())} of {RESPONSES}"
        multiplier = float(found.normalizer) + beta / order if order else None
        rows.append([name, best, expected, float(found.normalizer), multiplier, kept])
    optima = Table(
        f"Exact optima on {RESPONSES} responses, beta = {beta:g}. λ = ν + beta/A is the multiplier of Theorem 6.1; at "
        "A = 0 only ν exists, beta log Z of Theorem 5.1, and it equals the value.",
        ["Order", "Value", "E[r]", "ν", "λ", "Responses kept"],
        rows,
    )
    regrets, table = surrogate_regrets(weights, reward, beta)
    at = DISTANCES.index(0.4)
    metrics = {f"regret/{name}": metric(values[at]) for name, values in regrets.items()}
    return Study(
        "exact_solutions",
        "Exact solutions: one family of regularizers",
        [_conclusion()],
        [optima, table],
        [_chart(references, weights, reward, beta, regrets)],
        metrics,
    )


def surrogate_regrets(weights: Tensor, reward: Tensor, beta: float) -> tuple[dict[str, list[float]], Table]:
    """Regret in the reverse-KL problem of policies that solve something else, as the references move apart.

    Args:
        weights: (K,) alpha.
        reward: (Y,).
        beta: weight of the divergence.

    Returns:
        Regrets by name, one float for each distance, and the table.
    """
    found: dict[str, list[float]] = {"harmonic (MRPO)": [], "arithmetic": [], "one reference only": []}
    for distance in DISTANCES:
        references = pushed_apart(distance, RESPONSES)
        args = (references, weights, reward, beta)
        first = exact.optimal_policy(references, torch.tensor([1.0, 0.0], dtype=torch.float64), reward, beta, 0.0)
        policies = (exact.surrogate_policy(*args, -1.0, 0.0), exact.surrogate_policy(*args, 1.0, 0.0), first)
        for name, policy in zip(found, policies):
            found[name].append(float(exact.regret(policy, *args, 0.0)))
    rows = [[d, *(values[i] for values in found.values())] for i, d in enumerate(DISTANCES)]
    caption = "Regret in the two-reference reverse-KL objective (Theorem 5.1), in reward units, of three stand-ins."
    return found, Table(caption, ["Distance of the references", *found], rows)


def _conclusion() -> str:
    return (
        "Theorem 5.1 (A = 0) and Theorem 6.1 (A = 1) are two points of one line: for every order A the optimum is "
        "M_A u with the score s_A(log u) = (r − ν)/beta, found to machine precision (derived; the paper's future work, "
        "item b, for this family). MRPO maximizes a lower bound of the reverse-KL objective; its policy is not the "
        "optimum, and the price grows with the distance of the references."
    )


def _chart(references: Tensor, weights: Tensor, reward: Tensor, beta: float, regrets: dict) -> Chart:
    x = torch.linspace(0, 1, RESPONSES).tolist()
    shapes = [
        Line(f"reference {i + 1}", x, one.tolist(), "shape", look, at_peak=True)
        for i, (one, look) in enumerate(zip(references, (5, 4)))
    ]
    names = {1.0: "arithmetic, A = 1", 0.0: "geometric, A = 0", -1.0: "harmonic, A = −1"}
    means = [
        Line(name, x, exact.log_mixed(references, weights, a).exp().tolist(), "shape", i)
        for i, (a, name) in enumerate(names.items())
    ]
    optima = [
        Line(name, x, exact.optimal_policy(references, weights, reward, beta, a).tolist(), "shape", i)
        for i, (a, name) in enumerate(ORDERS.items())
    ]
    hill = Line("reward (scaled)", x, (0.06 * reward / reward.max()).tolist(), "predicted", at_peak=True)
    costs = [Line(name, DISTANCES, values, "measured", i) for i, (name, values) in enumerate(regrets.items())]
    where = "response (81 of them, on a line)"
    return Chart(
        "one_family",
        "Theorems 5.1 and 6.1 of arXiv 2502.01203 and the orders between and beyond. Upper left: two references. "
        "Upper right: their mixed references before normalization; the harmonic mean keeps what the worst reference "
        "allows, the arithmetic what the best does. Lower left: the exact optima for one reward; forward KL keeps "
        "the mass of both references and spikes at the best responses, reverse KL and chi-square stay where both "
        "references agree. Lower right: what it costs in the reverse-KL objective to follow a surrogate instead.",
        [
            Panel("Two references", where, "probability", [*shapes, hill]),
            Panel("Mixed references M_A", where, "mass", means, y_scale="log", y_limits=(1e-9, 0.1)),
            Panel("Exact optimal policies", where, "probability", optima, y_scale="log", y_limits=(1e-7, 1.0)),
            Panel("Regret of the surrogates", "distance of the references", "regret (reward units)", costs,
                  y_scale="log"),
        ],
    )  # fmt: skip
