"""The alpha question of Remark D.4: the value is convex in alpha, so the objective cannot choose it; validation can."""

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import exact
from multiref_cli.theory.bandit import generator, random_references
from multiref_cli.theory.findings import Chart, Line, Panel, Study, Table, metric
from multiref_cli.theory.sensitivity import gradient_ascent
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import linear_setting

GRID = torch.linspace(0, 1, 41, dtype=torch.float64)
ORDERS = {-1.0: "A = −1", 0.0: "A = 0, reverse KL", 0.5: "A = 1/2", 1.0: "A = 1, forward KL"}


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


def hidden_rewards(lab: Laboratory, order: float, problems: int) -> tuple[Tensor, Tensor]:
    """Held-out reward of the optimum for an imperfect reward, along alpha, for random problems.

    Args:
        lab: the laboratory's settings.
        order: A.
        problems: B.

    Returns:
        (G, B) expected true reward when optimizing truth plus noise, and (G, B) values of the objective, G = 41.
    """
    rng = generator(lab.seed, "hidden")
    references = random_references(rng, (problems, 2, 4 * lab.responses), 0.5)
    truth = torch.from_numpy(rng.random((problems, 4 * lab.responses))) * lab.reward_max
    seen = truth + lab.reward_max * torch.from_numpy(rng.normal(0, 0.5, truth.shape))
    held_out, values = [], []
    for a in GRID:
        args = (references, torch.stack([a, 1 - a]), seen, lab.beta, order)
        policy = exact.optimal_policy(*args)
        held_out.append((policy * truth).sum(-1))
        values.append(exact.objectives(policy, *args))
    return torch.stack(held_out), torch.stack(values)


def run(lab: Laboratory) -> Study:
    """Values and held-out rewards along alpha, and where each is largest; every number is a float."""
    problems = max(20, lab.problems // 4)
    setting = linear_setting(lab)
    rows, metrics, curves = [], {}, {}
    for order, name in ORDERS.items():
        held_out, values = hidden_rewards(lab, order, problems)
        curves[order] = held_out
        inner = [(x.argmax(0) > 0) & (x.argmax(0) < len(GRID) - 1) for x in (values, held_out)]
        by_value, by_reward = (float(i.double().mean()) for i in inner)
        rows.append([name, f"{100 * by_value:.1f} %", f"{100 * by_reward:.1f} %"])
        metrics[f"interior_alpha/objective/{name}"] = metric(by_value, n=problems)
        metrics[f"interior_alpha/held_out/{name}"] = metric(by_reward, n=problems)
    references = random_references(generator(lab.seed, "ascent"), (1, 3, 4 * lab.responses), 0.5)[0]
    reward = torch.from_numpy(generator(lab.seed, "ascent reward").random(4 * lab.responses)) * lab.reward_max
    path = gradient_ascent(references, torch.full((3,), 1 / 3, dtype=torch.float64), reward, lab.beta)
    shares = Table(
        f"How often the best of 41 values of alpha mixes both references, over {problems} random pairs: chosen by the "
        "objective's own optimal value, and by held-out reward of the policy trained on a noisy reward.",
        ["Order", "Best by the objective", "Best by held-out reward"],
        rows,
    )
    steps = [[i, *(float(a) for a in path[i])] for i in (0, 2, 5, 10, 20, 200)]
    ascent = Table(
        "Gradient ascent on alpha itself, three references, reverse KL: it always ends in a corner.",
        ["Step", "alpha 1", "alpha 2", "alpha 3"],
        steps,
    )
    return Study(
        "alpha",
        "Choosing alpha: never by the objective",
        [_conclusion()],
        [shares, ascent],
        [_chart(setting.references, setting.reward, lab.beta, curves)],
        metrics,
    )


def _conclusion() -> str:
    return (
        "For a fixed policy the objective is linear in alpha, so its maximum over policies is **convex** in alpha "
        "(derived, every order A). Maximizing it over alpha, the question left by Remark D.4, therefore always returns "
        "a single reference; a mixture is worth at most the weighted mean of the single-reference values (the Hölder "
        "bounds of D.3 and E.2 are this convexity). That is no argument against several "
        "references: what the policy is worth on a reward it was not trained on often peaks inside. Alpha has to be "
        "chosen by validation."
    )


def _chart(references: Tensor, reward: Tensor, beta: float, curves: dict[float, Tensor]) -> Chart:
    grid, values, rewards = GRID.tolist(), [], []
    for i, (order, name) in enumerate(ORDERS.items()):
        below = _above_chord(values_along(references, reward, beta, order)).tolist()
        values.append(Line(name, grid, below, "shape", i, at_peak=True))
        gain = _above_chord(curves[order])
        mean, error = gain.mean(1), 1.96 * gain.std(1) / np.sqrt(gain.shape[1])
        low, high = (mean - error).tolist(), (mean + error).tolist()
        rewards.append(Line(name, grid, mean.tolist(), "shape", i, low, high, at_peak=True))
    return Chart(
        "alpha",
        "Remark D.4 of arXiv 2502.01203, answered. Left: optimal value along alpha minus the straight line between "
        "the two single-reference values. It is never above zero, for any order: the value is convex in alpha, so the "
        "objective's best alpha is always 0 or 1. Right: the same difference for the true reward of the policy, when "
        "it was trained on a noisy one, averaged over random pairs of references (bands: 95 %). What mixing is worth "
        "shows only on reward that was not trained on.",
        [
            Panel("The objective: convex, ends win", "alpha (weight of reference 1)", "value − straight line", values),
            Panel("Held-out reward: another question", "alpha (weight of reference 1)", "reward − straight line",
                  rewards),
        ],
    )  # fmt: skip


def _above_chord(values: Tensor) -> Tensor:
    line = GRID.reshape(-1, *[1] * (values.ndim - 1))
    return values - values[0] * (1 - line) - values[-1] * line
