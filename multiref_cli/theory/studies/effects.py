"""What the sample complexity depends on: K, alpha, gamma, coverage and R_max, measured and predicted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from multiref_cli.theory import bounds, complexity, exact
from multiref_cli.theory.bandit import generator
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, listed, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import Setting, bells, linear_setting, simplex, tabular

READS = ("n", "draws", "responses", "alpha", "beta", "reward_max", "dimension", "distance")

ORDERS = {0.0: "reverse KL", 1.0: "forward KL"}
REFERENCES = (1, 2, 3, 4, 6, 8)
ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RARITIES = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
TITLES = {
    "K references": "More references",
    "alpha": "Weight of reference 1",
    "gamma = 1/beta": "Inverse temperature",
    "1 / mass of the best response": "Rare best response",
    "R_max": "Larger rewards",
}
SCALES = {"K references": ("linear", "linear"), "alpha": ("linear", "linear"), "R_max": ("log", "linear")}
REWARDS = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0)


def settings(lab: Laboratory) -> dict[str, tuple[tuple[float, ...], Callable[[float], Setting]]]:
    """The values of each quantity and the problem at each value; the other quantities stay as the laboratory has them.

    Args:
        lab: the laboratory's settings.

    Returns:
        Values and a function value -> Setting, by name; values are scalars.
    """

    def _count(k: float) -> Setting:
        weights = torch.full((int(k),), 1 / int(k), dtype=torch.float64)
        return linear_setting(lab, bells(int(k), 2 * lab.distance, lab.responses), weights)

    return {
        "K references": (REFERENCES, _count),
        "alpha": (ALPHAS, lambda a: linear_setting(lab, bells(2, 0.6, lab.responses), simplex(a))),
        "gamma = 1/beta": (GAMMAS, lambda g: replace(linear_setting(lab), beta=1.0 / g)),
        "1 / mass of the best response": (RARITIES, lambda x: tabular(linear_setting(lab), 1 / x)),
        "R_max": (REWARDS, lambda r: linear_setting(replace(lab, reward_max=r))),
    }


def measure(lab: Laboratory, setting: Setting, order: float, name: str) -> tuple[float, float, float]:
    """n times the mean gap of the linear class, its 95 % half width, and the prediction.

    Args:
        lab: the laboratory's settings.
        setting: the problem.
        order: A.
        name: what the data are for, for the seed.

    Returns:
        three floats, reward units times pairs.
    """
    pairs = min(lab.n, 8192)
    rng = generator(lab.seed, "effects", name, str(order))
    counts = complexity.preference_counts(rng, setting.sampling(order), setting.reward, pairs, lab.draws)
    estimates = complexity.linear_estimate(counts, setting.features) @ setting.features.T
    gaps = pairs * setting.gap(setting.policy(estimates, order), order).numpy()
    return float(gaps.mean()), float(1.96 * gaps.std() / np.sqrt(len(gaps))), setting.predicted(order)


def run(lab: Laboratory) -> Study:
    """Measure and predict along each quantity; every number is a float."""
    metrics: Metrics = {}
    panels, rows = [], []
    for quantity, (values, problem) in settings(lab).items():
        lines = []
        for series, (order, name) in enumerate(ORDERS.items()):
            problems = [problem(v) for v in values]
            found = [measure(lab, p, order, f"{quantity}/{v}") for v, p in zip(values, problems)]
            means, widths, expected = (list(x) for x in zip(*found))
            low, high = [m - w for m, w in zip(means, widths)], [m + w for m, w in zip(means, widths)]
            lines += [Line("", values, expected, "predicted"), Line(name, values, means, "measured", series, low, high)]
            for v, p, m, w, e in zip(values, problems, means, widths, expected):
                cover = float(bounds.normalized(exact.log_mixed(p.references, p.weights, order)).min()) ** -1
                rows.append([quantity, v, name, f"{m:.3g} ± {w:.2g}", e, p.coverage(order), cover])
                key = f"{quantity}={v:g}/{name}"
                metrics |= {f"n_gap/{key}": metric(m, m - w, m + w, lab.draws), f"predicted/{key}": metric(e)}
        scales = SCALES.get(quantity, ("log", "log"))
        panels.append(Panel(TITLES[quantity], quantity, "n × gap", lines, x_scale=scales[0], y_scale=scales[1]))
    table = Table(
        f"n times the mean gap at n = {min(lab.n, 8192)} with its 95 % interval, the derived limit, the coverage "
        "constant over all rewards in [0, R], and 1 / min q, the most it can be.",
        ["Quantity", "Value", "Regularizer", "Measured", "Predicted", "C", "1 / min q"],
        rows,
    )
    return Study(
        "effects",
        "What the number of pairs depends on",
        [conclusion(metrics)],
        [table],
        [Chart("effects", _caption(lab, metrics), panels, columns=3)],
        metrics,
    )


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    return " ".join([_limit(metrics), _gamma(metrics), *(_factor(metrics, q) for q in TITLES if q != "gamma = 1/beta")])


def _limit(metrics: Metrics) -> str:
    keys = [key.removeprefix("n_gap/") for key in metrics if key.startswith("n_gap/")]
    off = {key: misses(metrics, key) for key in keys}
    held = sum(x <= 1 for x in off.values())
    far = [key for key, x in off.items() if x > 2]
    said = f"The limit trace(I⁻¹ X' H X) / 2 lies inside {held} of {len(keys)} intervals of 95 %; "
    if not far:
        return said + "none is missed by more than twice its half width."
    return said + f"missed by more than twice the half width: {listed(far)} (n may not be large there)."


def misses(metrics: Metrics, key: str) -> float:
    """Distance of measurement and prediction in half widths of the 95 % interval; a float."""
    found = metrics[f"n_gap/{key}"]
    return abs(found["mean"] - metrics[f"predicted/{key}"]["mean"]) / max(found["ci_high"] - found["mean"], 1e-300)


def _gamma(metrics: Metrics) -> str:
    means = {n: [metrics[f"n_gap/gamma = 1/beta={g:g}/{n}"]["mean"] for g in GAMMAS] for n in ORDERS.values()}
    slope = float(np.polyfit(np.log(GAMMAS), np.log(means["reverse KL"]), 1)[0])
    last = means["forward KL"][-1] / means["forward KL"][-2]
    kind = (
        "in proportion to γ, as in Theorem 5.2" if abs(slope - 1) < 0.25 else "not in proportion to γ at these settings"
    )
    return (
        f"The reverse-KL gap grows {kind} (log-log slope {slope:.2f}); the forward-KL gap changes by a factor "
        f"{last:.2f} "
        f"from γ = {GAMMAS[-2]:g} to {GAMMAS[-1]:g}."
    )


def _factor(metrics: Metrics, quantity: str) -> str:
    found = {}
    for name in ORDERS.values():
        means = [m["mean"] for k, m in metrics.items() if k.startswith(f"n_gap/{quantity}=") and k.endswith(f"/{name}")]
        found[name] = max(means) / min(means)
    spread = " and ".join(f"{factor:.1f} ({name})" for name, factor in found.items())
    said = f"Over the values of {quantity} n × gap varies by a factor {spread}"
    if quantity == "R_max":
        return f"{said}, where the e^(4 R_max) of the bounds varies by {np.exp(4 * (REWARDS[-1] - REWARDS[0])):.0e}."
    return said + "."


def _caption(lab: Laboratory, metrics: Metrics) -> str:
    return (
        "What the constants of Theorems 5.2 and 6.2 stand for: n times the mean sub-optimality gap, linear class, "
        f"{lab.draws} data sets of n = {min(lab.n, 8192)} pairs for each point (bands: 95 %), against one quantity at "
        "a time (the panel on the mass of the best response: one parameter a response). Black lines: the limit "
        f"derived here, nothing fitted. {_limit(metrics)}"
    )
