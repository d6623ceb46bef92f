"""The alpha question of Remark D.4: the sum of divergences chooses a single reference, the normalized value may not."""

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import exact
from multiref_cli.theory.bandit import generator, random_references
from multiref_cli.theory.choosing import best_weights, normalized_value
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, metric
from multiref_cli.theory.sensitivity import gradient_ascent
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import bells, linear_setting, simplex

READS = ("problems", "responses", "beta", "reward_max", "dimension", "distance")

GRID = torch.linspace(0, 1, 41, dtype=torch.float64)
RKL = "A = 0, reverse KL"
ORDERS = {-1.0: "A = −1", 0.0: RKL, 0.5: "A = 1/2", 1.0: "A = 1, forward KL"}
CORNER = 0.999  # largest weight from which an ascent is called a single reference
RULES = {"normalized": "V_norm", "value": "V", "uniform": "equal weights"}


def values_along(references: Tensor, reward: Tensor, beta: float, order: float) -> Tensor:
    """Optimal value for alpha from 0 to 1 between two references.

    Args:
        references: (..., 2, Y) probabilities.
        reward: (..., Y).
        beta: weight of the divergence.
        order: A.

    Returns:
        (41, ...) values.
    """
    return torch.stack([exact.value(references, torch.stack([a, 1 - a]), reward, beta, order) for a in GRID])


def hidden_rewards(lab: Laboratory, order: float, problems: int) -> dict[str, Tensor]:
    """Held-out reward of the optimum for an imperfect reward, along alpha, for random problems.

    Args:
        lab: the laboratory's settings.
        order: A.
        problems: B.

    Returns:
        (G, B) each, G = 41: "held_out", expected true reward when optimizing truth plus noise; "objective", the optimal
        value; for order 0 "normalized", V_norm.
    """
    rng = generator(lab.seed, "hidden")
    references = random_references(rng, (problems, 2, 4 * lab.responses), 0.5)
    truth = torch.from_numpy(rng.random((problems, 4 * lab.responses))) * lab.reward_max
    seen = truth + lab.reward_max * torch.from_numpy(rng.normal(0, 0.5, truth.shape))
    found: dict[str, list[Tensor]] = {"held_out": [], "objective": [], "normalized": []}
    for a in GRID:
        args = (references, torch.stack([a, 1 - a]), seen, lab.beta)
        policy = exact.optimal_policy(*args, order)
        found["held_out"].append((policy * truth).sum(-1))
        found["objective"].append(exact.objectives(policy, *args, order))
        if order == 0:
            found["normalized"].append(normalized_value(*args))
    return {name: torch.stack(values) for name, values in found.items() if values}


def inside(values: Tensor) -> float:
    """How often the best alpha of the grid is neither 0 nor 1; (G, B) -> float."""
    best = values.argmax(0)
    return float(((best > 0) & (best < len(GRID) - 1)).double().mean())


def losses(curves: dict[str, Tensor]) -> dict[str, float]:
    """Mean held-out reward that each rule for alpha loses to the best alpha of the grid, by the keys of `RULES`.

    Args:
        curves: (G, B) each, for G values of alpha and B prompts: `held_out` reward, `objective`, and `normalized`.

    Returns:
        Rule -> loss in units of reward, averaged over the prompts; never negative.
    """
    held_out, prompts = curves["held_out"], torch.arange(curves["held_out"].shape[1])
    chosen = {"normalized": curves["normalized"].argmax(0), "value": curves["objective"].argmax(0)}
    chosen["uniform"] = torch.full_like(prompts, len(GRID) // 2)
    return {name: float((held_out.amax(0) - held_out[at, prompts]).mean()) for name, at in chosen.items()}


def rule_against_grid(lab: Laboratory, problems: int = 10, steps: int = 10) -> float:
    """Largest shortfall of the rule `best_weights` against a grid on the simplex, three references; a float.

    Args:
        lab: the laboratory's settings.
        problems: number of random problems.
        steps: of the grid along each edge.
    """
    grid = [torch.tensor([i, j, steps - i - j], dtype=torch.float64) / steps
            for i in range(steps + 1) for j in range(steps + 1 - i)]  # fmt: skip
    rng = generator(lab.seed, "rule")
    short = []
    for _ in range(problems):
        references = random_references(rng, (1, 3, 4 * lab.responses), 0.5)[0]
        reward = torch.from_numpy(rng.random(4 * lab.responses)) * lab.reward_max
        best = max(float(normalized_value(references, w, reward, lab.beta)) for w in grid)
        chosen = best_weights(references, reward, lab.beta)
        short.append(best - float(normalized_value(references, chosen, reward, lab.beta)))
    return max(short)


def run(lab: Laboratory) -> Study:
    """Values and held-out rewards along alpha, and where each is largest; every number is a float."""
    problems = max(20, lab.problems // 4)
    setting = linear_setting(lab, bells(2, lab.distance, lab.responses), simplex(0.5))
    metrics: Metrics = {}
    rows, curves = [], {}
    for order, name in ORDERS.items():
        found = hidden_rewards(lab, order, problems)
        curves[order] = found["held_out"]
        shares = {key: inside(values) for key, values in found.items()}
        metrics |= {f"interior_alpha/{key}/{name}": metric(share, n=problems) for key, share in shares.items()}
        cells = [
            f"{100 * shares[key]:.1f} %" if key in shares else None for key in ("objective", "normalized", "held_out")
        ]
        rows.append([name, *cells])
        if order == 0:
            metrics |= {f"lost/{rule}": metric(value, n=problems) for rule, value in losses(found).items()}
    path = _ascent(lab)
    metrics["ascent/largest_weight"] = metric(float(path[-1].max()))
    metrics["rule/shortfall"] = metric(rule_against_grid(lab), n=10)
    curve = torch.stack([normalized_value(setting.references, w, setting.reward, lab.beta) for w in _weights()])
    metrics["normalized/best_alpha"] = metric(float(GRID[curve.argmax()]))
    return Study(
        "alpha",
        "Choosing alpha: two values of one problem",
        [conclusion(metrics)],
        _tables(rows, problems, path, metrics),
        [_chart(setting.references, setting.reward, lab.beta, curves, metrics)],
        metrics,
    )


def _weights() -> list[Tensor]:
    return [torch.stack([a, 1 - a]) for a in GRID]


def _ascent(lab: Laboratory) -> Tensor:
    references = random_references(generator(lab.seed, "ascent"), (1, 3, 4 * lab.responses), 0.5)[0]
    reward = torch.from_numpy(generator(lab.seed, "ascent reward").random(4 * lab.responses)) * lab.reward_max
    return gradient_ascent(references, torch.full((3,), 1 / 3, dtype=torch.float64), reward, lab.beta)


def _tables(rows: list, problems: int, path: Tensor, metrics: Metrics) -> list[Table]:
    shares = Table(
        f"How often the best of 41 values of alpha mixes both references, over {problems} random pairs: chosen by the "
        "value V of the sum of divergences, by V_norm = V − β log F (A = 0 only), and by held-out reward of the policy "
        "trained on a noisy reward.",
        ["Order", "Best by V", "Best by V_norm", "Best by held-out reward"],
        rows,
    )
    lost = Table(
        "Held-out reward that a rule for alpha loses to the best alpha in hindsight, reverse KL, mean over the pairs.",
        ["Rule", "Lost (reward units)"],
        [[name, metrics[f"lost/{rule}"]["mean"]] for rule, name in RULES.items()],
    )
    steps = [[i, *(float(a) for a in path[i])] for i in (0, 2, 5, 10, 20, 200)]
    ascent = Table(
        f"Gradient ascent on alpha in V, three references, reverse KL: {_ends(metrics)}.",
        ["Step", "alpha 1", "alpha 2", "alpha 3"],
        steps,
    )
    return [shares, lost, ascent]


def _ends(metrics: Metrics) -> str:
    largest = metrics["ascent/largest_weight"]["mean"]
    if largest > CORNER:
        return "it ends in a corner, a single reference"
    return f"after these steps no corner is reached (largest weight {largest:.3f})"


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    return " ".join([_convex(metrics), _normalized(metrics), _held_out(metrics)])


def _convex(metrics: Metrics) -> str:
    share = max(m["mean"] for key, m in metrics.items() if key.startswith("interior_alpha/objective/"))
    seen = "never inside" if share == 0 else f"inside in up to {100 * share:.1f} % (equal values: rounding decides)"
    return (
        "For a fixed policy the objective E[r] − β Σ α_i D_A(π_i‖π) is linear in alpha, so its optimal value V is "
        "**convex** in alpha (derived, every order A; the Hölder bounds of D.3 and E.2 are this convexity): maximizing "
        f"V, the question left by Remark D.4, returns a single reference. Measured: its best alpha is {seen}."
    )


def _normalized(metrics: Metrics) -> str:
    share = metrics[f"interior_alpha/normalized/{RKL}"]["mean"]
    said = (
        "That is no verdict on mixing: V charges −β log F, the references' disagreement, which no policy can change. "
        "The same policy maximizes E[r] − β KL(π‖M_0/F), with value V_norm = V − β log F, "
    )
    if share == 0:
        return said + "whose best alpha lies inside the simplex in none of these problems (not seen at these settings)."
    return said + f"whose best alpha lies inside the simplex in {100 * share:.0f} % of these problems."


def _held_out(metrics: Metrics) -> str:
    share = max(m["mean"] for key, m in metrics.items() if key.startswith("interior_alpha/held_out/"))
    lost = {rule: metrics[f"lost/{rule}"]["mean"] for rule in RULES}
    best = min(lost, key=lambda rule: lost[rule])
    shortfall = metrics["rule/shortfall"]["mean"]
    rule = "never below" if shortfall < 1e-9 else f"up to {shortfall:.1e} below"
    return (
        f"On reward that was not trained on the best alpha is inside in up to {100 * share:.0f} % of pairs. Of the "
        f"rules for alpha {RULES[best]} loses least to the best alpha in hindsight: "
        f"{', '.join(f'{RULES[r]} {x:.3g}' for r, x in lost.items())}. The rule for more than two references, ascent "
        f"in V_norm, is {rule} a grid on the simplex."
    )


def _chart(references: Tensor, reward: Tensor, beta: float, curves: dict[float, Tensor], metrics: Metrics) -> Chart:
    grid, values, rewards = GRID.tolist(), [], []
    for i, (order, name) in enumerate(ORDERS.items()):
        below = _above_chord(values_along(references, reward, beta, order)).tolist()
        values.append(Line(name, grid, below, "shape", i, at_peak=True))
        gain = _above_chord(curves[order])
        mean, error = gain.mean(1), 1.96 * gain.std(1) / np.sqrt(gain.shape[1])
        low, high = (mean - error).tolist(), (mean + error).tolist()
        rewards.append(Line(name, grid, mean.tolist(), "shape", i, low, high, at_peak=True))
    curve = _above_chord(torch.stack([normalized_value(references, w, reward, beta) for w in _weights()]))
    normalized = [Line("V_norm, " + RKL, grid, curve.tolist(), "shape", 1, at_peak=True)]
    highest = max(max(line.y) for line in values)
    above = "never above zero" if highest < 1e-9 else f"up to {highest:.2g} above zero"
    return Chart(
        "alpha",
        "Remark D.4 of arXiv 2502.01203. Left: the optimal value V along alpha minus the straight line between the two "
        f"single-reference values, {above}. Middle: the same for V_norm = V − β log F, whose best alpha here is "
        f"{metrics['normalized/best_alpha']['mean']:.3g}. Right: the same for the true reward of the policy trained on "
        "a noisy one, averaged over random pairs of references (bands: 95 %).",
        [
            Panel("V, the sum of divergences", "alpha (weight of reference 1)", "value − straight line", values),
            Panel("V_norm", "alpha (weight of reference 1)", "value − straight line", normalized),
            Panel("Held-out reward", "alpha (weight of reference 1)", "reward − straight line", rewards),
        ],
        columns=3,
    )  # fmt: skip


def _above_chord(values: Tensor) -> Tensor:
    line = GRID.reshape(-1, *[1] * (values.ndim - 1))
    return values - values[0] * (1 - line) - values[-1] * line
