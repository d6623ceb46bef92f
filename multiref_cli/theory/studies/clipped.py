"""Clipped log-ratios (arXiv 2602.21765): the best threshold, and what a clamp does to the optimum."""

import torch
from torch import Tensor

from multiref_cli.theory import clipping, exact
from multiref_cli.theory.bandit import generator, pushed_apart
from multiref_cli.theory.findings import Chart, Line, Panel, Study, Table, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import simplex

THRESHOLDS = [0.25 * 2 ** (0.25 * i) for i in range(25)]
SAMPLES = (16, 256, 4096, 65536)
CLIPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
ORDERS = {0.0: "reverse KL", 0.5: "Hellinger", 1.0: "forward KL"}
FLOOR = 1e-12  # regrets below are rounding


def departing_policy(references: Tensor, weights: Tensor, reward: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """A policy that has begun to leave the mixed reference: 3 % of its samples have log-ratios of several nats.

    Args:
        references: (K, Y) probabilities.
        weights: (K,) alpha.
        reward: (Y,).
        beta: weight of the divergence.

    Returns:
        (Y,) probabilities and (Y,) log pi / q with q the normalized geometric mean.
    """
    reference = exact.generalized_escort(references, weights)
    policy = 0.97 * reference + 0.03 * exact.optimal_policy(references, weights, reward, beta, 1.0)
    return policy, (policy / reference).log()


def run(lab: Laboratory) -> Study:
    """Error of the clipped estimate over thresholds, and regrets of clipped optima; every number is a float."""
    references, weights = pushed_apart(0.6, 60), simplex(0.5)
    reward = lab.reward_max * torch.from_numpy(generator(lab.seed, "clipped").random(60))
    beta = 0.2 * lab.beta
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64)
    policy, log_ratio = departing_policy(references, weights, reward, beta)
    bias, variance = clipping.clipped_moments(policy, log_ratio, thresholds)
    limit = clipping.clip_bias_bound(policy, log_ratio, thresholds)
    errors, rows = [], []
    for i, n in enumerate(SAMPLES):
        errors.append(Line(f"{n} rollouts", THRESHOLDS, (bias**2 + variance / n).sqrt().tolist(), "shape", i))
        best = clipping.best_threshold(policy, log_ratio, thresholds, n)
        unclipped = float((variance[-1] / n).sqrt())
        rows.append([n, best[0], best[1], unclipped])
    bound = Line("bias bound", THRESHOLDS, limit.tolist(), "bound", 4)
    optima_rows, lines, metrics = [], [], {}
    for i, (order, name) in enumerate(ORDERS.items()):
        args = (exact.log_mixed(references, weights, order), reward, beta, order)
        policies = [(clipping.clamped_policy(*args, c), clipping.continued_policy(*args, c) if order else None)
                    for c in CLIPS]  # fmt: skip
        regrets = [[None if p is None else float(exact.regret(p, references, weights, *args[1:])) for p in pair]
                   for pair in policies]  # fmt: skip
        optima_rows += [[name, c, *pair] for c, pair in zip(CLIPS, regrets)]
        clamped = [max(r[0], FLOOR) if r[0] != float("inf") else float("nan") for r in regrets]
        if order != 0.5:  # Hellinger lies between the two and stands in the table
            lines.append(Line(f"{name}, clamped", CLIPS, clamped, "measured", i, at_peak=True))
        if order == 1:
            linear = [max(r[1], FLOOR) for r in regrets]
            lines.append(Line(f"{name}, continued linearly", CLIPS, linear, "bound", 1, at_peak=True))
        metrics[f"clamp_regret/{name}/c=2"] = metric(regrets[CLIPS.index(2.0)][0])
    tables = [
        Table("Threshold with the least root mean squared error of the clipped divergence estimate.",
              ["Rollouts", "Best threshold (nats)", "Its error", "Error without clipping"], rows),
        Table("Regret of the policy that a clipped penalty leads to; infinite where it gives up a response that "
              "forward KL may not give up.", ["Score", "Threshold (nats)", "Clamped", "Linear continuation"],
              optima_rows),
    ]  # fmt: skip
    return Study("clipped", "Clipped log-ratios", [_conclusion()], tables, [_chart([*errors, bound], lines)], metrics)


def _conclusion() -> str:
    return (
        "Clipping the log-ratio trades bias for variance, and the best threshold grows with the number of rollouts, as "
        "2602.21765 says. In the penalty itself a clamp moves the optimum: responses past −c lose all mass and the best "
        "ones take what is left over for free (derived). Under forward KL that can cost infinitely much. Going on "
        "linearly past the threshold, as this project's score does, leaves the optimum exact once the threshold covers "
        "the log-ratios that it needs."
    )


def _chart(errors: list[Line], optima: list[Line]) -> Chart:
    return Chart(
        "clipped",
        "arXiv 2602.21765 on a finite space. Left: a policy with 3 % of its samples far off; root mean squared error of a clipped estimate of the divergence; "
        "few rollouts want a low threshold, many a high one; dashed: the bias never exceeds E[(log u)²] / 4c "
        "(derived). Right: regret of the policy at rest under a clipped penalty: clamped (solid) or continued linearly "
        "(dashed); missing points are infinite.",
        [
            Panel("Best threshold grows with rollouts", "threshold c (nats)", "error (nats)", errors, x_scale="log",
                  y_scale="log"),
            Panel("A clamp moves the optimum", "threshold c (nats)", "regret (reward units)", optima, y_scale="log",
                  y_limits=(1e-8, 10.0)),
        ],
    )  # fmt: skip
