"""Exact optima of every order, the surrogates that are used in their place, and what the surrogates cost."""

from itertools import pairwise

import torch
from torch import Tensor

from multiref_cli.objectives.divergence import score
from multiref_cli.theory import exact
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, listed, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import bells, simplex

READS = ("alpha", "beta", "reward_max")

RESPONSES = 81
ORDERS = {-1.0: "A = −1, chi-square", 0.0: "A = 0, reverse KL", 0.5: "A = 1/2, Hellinger", 1.0: "A = 1, forward KL"}
WIDTH = 0.12  # of a reference, as a share of the line
DISTANCE = 0.4  # of the two references that are shown
SURROGATES = ("harmonic (MRPO)", "arithmetic", "one reference only")
ROUNDING = 1e-9  # reward units
DISTANCES = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def landscape(reward_max: float) -> Tensor:
    """A smooth reward with a hill between the references and a higher one beside them; (Y,) = (81,) in [0, R_max]."""
    line = torch.linspace(0, 1, RESPONSES, dtype=torch.float64)
    hills = 0.7 * torch.exp(-0.5 * ((line - 0.5) / 0.07) ** 2) + torch.exp(-0.5 * ((line - 0.92) / 0.07) ** 2)
    return reward_max * hills / hills.max()


def run(lab: Laboratory) -> Study:
    """Solve the picture-book problem for each order and measure the surrogates' regrets; numbers are floats."""
    weights, beta, reward = simplex(lab.alpha), lab.beta, landscape(lab.reward_max)
    references = bells(len(weights), DISTANCE, RESPONSES, WIDTH)
    rows, metrics = [], {}
    for order, name in ORDERS.items():
        found = exact.solution(references, weights, reward, beta, order)
        expected = float((found.policy * reward).sum())
        best = float(exact.value(references, weights, reward, beta, order))
        kept = found.policy > 0
        multiplier = float(found.normalizer) + beta / order if order else None
        rows.append([name, best, expected, float(found.normalizer), multiplier, f"{int(kept.sum())} of {RESPONSES}"])
        left = (beta * score(found.log_ratio, order) - (reward - found.normalizer)).abs()[kept]
        metrics[f"residual/{name}"] = metric(float(left.max()))
        metrics[f"cut_off/{name}"] = metric(float((~kept).double().mean()), n=RESPONSES)
    optima = Table(
        f"Exact optima on {RESPONSES} responses, beta = {beta:g}. λ = ν + beta/A is the multiplier of Theorem 6.1; at "
        "A = 0 only ν exists, beta log Z of Theorem 5.1, and it equals the value.",
        ["Order", "Value", "E[r]", "ν", "λ", "Responses kept"],
        rows,
    )
    regrets, table = surrogate_regrets(weights, reward, beta)
    for name, values in regrets.items():
        metrics |= {f"regret/{name}/distance={d:g}": metric(value) for d, value in zip(DISTANCES, values)}
    return Study(
        "exact_solutions",
        "Exact solutions: one family of regularizers",
        [conclusion(metrics)],
        [optima, table],
        [_chart(references, weights, reward, beta, regrets, metrics)],
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
    found: dict[str, list[float]] = {name: [] for name in SURROGATES}
    alone = torch.nn.functional.one_hot(torch.tensor(0), len(weights)).double()
    for distance in DISTANCES:
        references = bells(len(weights), distance, RESPONSES, WIDTH)
        args = (references, weights, reward, beta)
        first = exact.optimal_policy(references, alone, reward, beta, 0.0)
        policies = (exact.surrogate_policy(*args, -1.0, 0.0), exact.surrogate_policy(*args, 1.0, 0.0), first)
        for name, policy in zip(found, policies):
            found[name].append(max(float(exact.regret(policy, *args, 0.0)), 0.0))
    rows = [[d, *(values[i] for values in found.values())] for i, d in enumerate(DISTANCES)]
    caption = (
        f"Regret in the reverse-KL objective of {len(weights)} references (Theorem 5.1), in reward units, of three "
        f"stand-ins; beta = {beta:g}."
    )
    return found, Table(caption, ["Distance of the references", *found], rows)


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    return " ".join([_one_family(metrics), _cut_off(metrics), _price(metrics)])


def _one_family(metrics: Metrics) -> str:
    worst = max(m["mean"] for key, m in metrics.items() if key.startswith("residual/"))
    precise = "to machine precision" if worst < ROUNDING else "not to machine precision at these settings"
    return (
        "Theorem 5.1 (A = 0) and Theorem 6.1 (A = 1) are two points of one line: for every order A the optimum is "
        f"M_A u with the score s_A(log u) = (r − ν)/beta, found {precise} (largest residual {worst:.0e}; derived; the "
        "paper's future work, item b, for this family)."
    )


def _cut_off(metrics: Metrics) -> str:
    cut = [name for order, name in ORDERS.items() if metrics[f"cut_off/{name}"]["mean"] > 0 and order < 0]
    said = "An order A < 0 can cut responses off; DPO's equality is then an inequality, and DPO is exact only while "
    if not cut:
        return said + "nothing is cut off (nothing is at these settings)."
    shares = [f"{name} drops {100 * metrics[f'cut_off/{name}']['mean']:.0f} %" for name in cut]
    return said + f"nothing is: here {listed(shares)}."


def growing(metrics: Metrics, name: str) -> bool:
    """Whether a surrogate's regret (scalars) is above rounding and never falls as the references move apart."""
    values = [metrics[f"regret/{name}/distance={d:g}"]["mean"] for d in DISTANCES]
    return values[-1] > ROUNDING and all(a <= b + ROUNDING for a, b in pairwise(values))


def _price(metrics: Metrics) -> str:
    near, far = (metrics[f"regret/{SURROGATES[0]}/distance={d:g}"]["mean"] for d in (DISTANCES[0], DISTANCES[-1]))
    said = "MRPO maximizes a lower bound of the reverse-KL objective; its policy "
    if max(near, far) <= ROUNDING:
        return said + "costs nothing at these settings."
    ends = f"from {near:.2g} to {far:.2g}"
    if growing(metrics, SURROGATES[0]):
        return said + f"is not the optimum, and the price grows with the distance of the references, {ends}."
    return said + f"is not the optimum; that its price grows with the distance ({ends}) is not seen at these settings."


def _chart(references: Tensor, weights: Tensor, reward: Tensor, beta: float, regrets: dict, metrics: Metrics) -> Chart:
    x = torch.linspace(0, 1, RESPONSES).tolist()
    shapes = [
        Line(f"reference {i + 1}", x, one.tolist(), "shape", look, at_peak=True)
        for i, (one, look) in enumerate(zip(references, (5, 4, 3, 2)))
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
        "Theorems 5.1 and 6.1 of arXiv 2502.01203 and the orders between and beyond. Upper left: the references. "
        "Upper right: their mixed references before normalization; the harmonic mean is about the worst reference, "
        f"the arithmetic about the best. Lower left: the exact optima for one reward, beta = {beta:g}. Lower right: "
        f"what it costs in the reverse-KL objective to follow a surrogate instead. {_price(metrics)}",
        [
            Panel("The references", where, "probability", [*shapes, hill]),
            Panel("Mixed references M_A", where, "mass", means, y_scale="log", y_limits=(1e-9, 0.1)),
            Panel("Exact optimal policies", where, "probability", optima, y_scale="log", y_limits=(1e-7, 1.0)),
            Panel("Regret of the surrogates", "distance of the references", "regret (reward units)", costs,
                  y_scale="log"),
        ],
    )  # fmt: skip
