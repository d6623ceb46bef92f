"""Clipped log-ratios, reward shift, the split of a budget (arXiv 2602.21765); what a clamp does to the optimum."""

import torch
from torch import Tensor

from multiref_cli.objectives.penalty import calibrated_threshold
from multiref_cli.theory import clipping, exact
from multiref_cli.theory.bandit import generator, pushed_apart
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import simplex

READS = ("reward_max", "delta")

BETA = 0.1  # low enough that optima have log-ratios of several nats

THRESHOLDS = [0.25 * 2 ** (0.25 * i) for i in range(25)]
SAMPLES = (16, 256, 4096, 65536)
CLIPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
ORDERS = {0.0: "reverse KL", 0.5: "Hellinger", 1.0: "forward KL"}
FLOOR = 1e-12  # regrets below are rounding
GROUP = 8  # rollouts a prompt, for the rule that counts prompts
SHIFTS = (1.0, 0.3, 0.1)  # beta of the optima that leave the reference
ERRORS = 1000  # random errors of a reward
COSTS = (1.0, 8.0, 64.0, 512.0)  # c_p / c_d


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


def estimates(lab: Laboratory, policy: Tensor, log_ratio: Tensor) -> tuple[list[Line], list[list[float | None]]]:
    """Error of the clipped estimate over thresholds, and the best, no, and the calibrated threshold.

    Args:
        lab: the laboratory's settings.
        policy: (Y,) probabilities.
        log_ratio: (Y,) log pi / q.

    Returns:
        Lines for the chart and rows of floats for the table; None where the printed rule has no threshold.
    """
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64)
    bias, variance = clipping.clipped_moments(policy, log_ratio, thresholds)
    lines: list[Line] = []
    rows: list[list[float | None]] = []
    for i, n in enumerate(SAMPLES):
        lines.append(Line(f"{n} rollouts", THRESHOLDS, (bias**2 + variance / n).sqrt().tolist(), "shape", i))
        drawn = generator(lab.seed, "rollouts", n).choice(len(policy), n, p=policy.numpy())
        rule = torch.tensor([calibrated_threshold(log_ratio[torch.from_numpy(drawn)])], dtype=torch.float64)
        calibrated = _error(policy, log_ratio, float(rule), n)
        best = clipping.best_threshold(policy, log_ratio, thresholds, n)
        printed = clipping.printed_threshold(log_ratio[torch.from_numpy(drawn)], n // GROUP, GROUP, lab.delta)
        error = None if printed is None else _error(policy, log_ratio, printed, n)
        rows.append([n, *best, float((variance[-1] / n).sqrt()), float(rule), calibrated, printed, error])
    limit = clipping.clip_bias_bound(policy, log_ratio, thresholds)
    return [*lines, Line("bias bound", THRESHOLDS, limit.tolist(), "bound", 4)], rows


def _error(policy: Tensor, log_ratio: Tensor, threshold: float, samples: int) -> float:
    bias, variance = clipping.clipped_moments(policy, log_ratio, torch.tensor([threshold], dtype=torch.float64))
    return float((bias**2 + variance / samples).sqrt())


def reward_shift(
    lab: Laboratory, references: Tensor, weights: Tensor, reward: Tensor, metrics: Metrics
) -> list[list[float]]:
    """How far errors of a reward grow from the reference to optima that leave it, beside C.

    Args:
        lab: the laboratory's settings.
        references: (K, Y) probabilities.
        weights: (K,) alpha.
        reward: (Y,).
        metrics: written to.

    Returns:
        Rows of floats: beta, chi^2, C, largest growth over random errors, growth of the worst error.
    """
    reference, rows = exact.generalized_escort(references, weights), []
    errors = torch.from_numpy(generator(lab.seed, "shift").standard_normal((ERRORS, len(reward))))
    for beta in SHIFTS:
        policy = exact.optimal_policy(references, weights, reward, beta, 0.0)
        constant = clipping.shift_constant(policy, reference)
        every = torch.cat([errors, (policy / reference)[None]])
        growth = (every.abs() @ policy) / (every**2 @ reference).sqrt()
        numbers = [float(constant), float(growth[:-1].max()), float(growth[-1])]
        metrics |= {f"shift/{k}/beta={beta:g}": metric(v) for k, v in zip(("constant", "random", "worst"), numbers)}
        rows.append([beta, numbers[0] ** 2 - 1, *numbers])
    return rows


def budget(metrics: Metrics) -> list[list[float]]:
    """The split of a budget; rows of floats: c_p / c_d, K*, best whole K, what K = 1 and K = 8 cost above it."""
    rollouts, rows = torch.arange(1, 1025, dtype=torch.float64), []
    for ratio in COSTS:
        found = clipping.deviation(rollouts, ratio)
        best = float(rollouts[found.argmin()])
        metrics |= {f"budget/printed/costs={ratio:g}": metric(clipping.best_rollouts(ratio))}
        metrics |= {f"budget/best/costs={ratio:g}": metric(best)}
        excess = [float(found[k - 1] / found.min() - 1) for k in (1, GROUP)]
        rows.append([ratio, clipping.best_rollouts(ratio), best, *excess])
    return rows


def optima(references: Tensor, weights: Tensor, reward: Tensor, beta: float, order: float) -> list[list[float]]:
    """Regrets of the clamped optima and of the linearly continued ones over the thresholds `CLIPS`.

    Args:
        references: (K, Y) probabilities.
        weights: (K,) alpha.
        reward: (Y,).
        beta: weight of the divergence.
        order: A.

    Returns:
        Two lists of floats; for A = 0, whose score needs no continuation, the second is all NaN.
    """
    args = (exact.log_mixed(references, weights, order), reward, beta, order)

    def _regret(policy: Tensor) -> float:
        return max(float(exact.regret(policy, references, weights, reward, beta, order)), 0.0)

    clamped = [_regret(clipping.clamped_policy(*args, clip)) for clip in CLIPS]
    continued = [_regret(clipping.continued_policy(*args, clip)) if order else float("nan") for clip in CLIPS]
    return [clamped, continued]


def run(lab: Laboratory) -> Study:
    """Error of the clipped estimate over thresholds, and regrets of clipped optima; every number is a float."""
    references, weights = pushed_apart(0.6, 60), simplex(0.5)
    reward = lab.reward_max * torch.from_numpy(generator(lab.seed, "clipped").random(60))
    errors, rows = estimates(lab, *departing_policy(references, weights, reward, BETA))
    names = ("best_threshold", "best_error", "unclipped_error", "calibrated_threshold", "calibrated_error",
             "printed_threshold", "printed_error")  # fmt: skip
    metrics: Metrics = {
        f"{name}/n={row[0]}": metric(value) for row in rows for name, value in zip(names, row[1:]) if value is not None
    }
    optima_rows, lines = [], []
    for i, (order, name) in enumerate(ORDERS.items()):
        clamped, continued = optima(references, weights, reward, BETA, order)
        optima_rows += [[name, *row] for row in zip(CLIPS, clamped, continued)]
        metrics |= {f"clamp_regret/{name}/c={c:g}": metric(regret) for c, regret in zip(CLIPS, clamped)}
        if order:
            metrics |= {f"continued_regret/{name}/c={c:g}": metric(regret) for c, regret in zip(CLIPS, continued)}
        if order != 0.5:  # Hellinger lies between the two and stands in the table
            shown = [max(r, FLOOR) if r != float("inf") else float("nan") for r in clamped]
            lines.append(Line(f"{name}, clamped", CLIPS, shown, "measured", i, at_peak=True))
        if order == 1:
            shown = [max(r, FLOOR) for r in continued]
            lines.append(Line(f"{name}, continued linearly", CLIPS, shown, "bound", 1, at_peak=True))
    tables = [
        Table(
            "Threshold with the least root mean squared error of the clipped divergence estimate, the one that "
            "objectives.penalty.calibrated_threshold takes from one set of rollouts, and the one by the rule that the "
            f"paper prints, {GROUP} rollouts a prompt, delta = {lab.delta:g}.",
            [
                "Rollouts",
                "Best threshold (nats)",
                "Its error",
                "Unclipped error",
                "Calibrated threshold",
                "Its error",
                "Printed rule",
                "Its error",
            ],
            rows,
        ),
        Table(
            "Errors of a reward where the optimum samples, E_π|e|, over their root mean square where the reference "
            f"does: C = √(1 + χ²) bounds it; largest of {ERRORS} random errors, and the error proportional to π / q.",
            ["beta", "χ²", "C", "Random errors", "Worst error"],
            reward_shift(lab, references, weights, reward, metrics),
        ),
        Table(
            "Rollouts a prompt that make 1/√P + 1/√(PK) least at a given budget P (c_p + c_d K), and what one or "
            f"{GROUP} rollouts a prompt cost above it.",
            ["c_p / c_d", "K* = (c_p/c_d)^(2/3)", "Best whole K", "K = 1", f"K = {GROUP}"],
            budget(metrics),
        ),
        Table(
            f"Regret of the policy that a clipped penalty leads to, beta = {BETA:g}; infinite where it gives up a "
            "response that forward KL may not give up.",
            ["Score", "Threshold (nats)", "Clamped", "Linear continuation"],
            optima_rows,
        ),
    ]
    return Study(
        "clipped", "Clipped log-ratios", [conclusion(metrics)], tables, [_chart(errors, lines, metrics)], metrics
    )


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    parts = (_threshold, _printed, _clamp, _continuation, _shift, _budget)
    return " ".join(part(metrics) for part in parts)


def _printed(metrics: Metrics) -> str:
    known = [n for n in SAMPLES if f"printed_error/n={n}" in metrics]
    said = "The clip rule that 2602.21765 prints, the (1 − 2a)-quantile of |log u|, "
    missing = [str(n) for n in SAMPLES if n not in known]
    none = f" (no quantile is left at {' and '.join(missing)} rollouts)" if missing else ""
    if not known:
        return f"{said}gives no threshold at these settings{none}; the calibrated one is this project's own reading."
    n = known[-1]
    printed, calibrated, plain = (metrics[f"{k}_error/n={n}"]["mean"] for k in ("printed", "calibrated", "unclipped"))
    better = "larger than" if printed > plain else "no larger than"
    return (
        f"{said}clips at {metrics[f'printed_threshold/n={n}']['mean']:.2g} nats with {n} rollouts{none}: an error of "
        f"{printed:.2g}, {better} the {plain:.2g} without a clip; the calibrated threshold, this project's own "
        f"reading, has {calibrated:.2g}."
    )


def _shift(metrics: Metrics) -> str:
    constant, random, worst = (
        [metrics[f"shift/{k}/beta={b:g}"]["mean"] for b in SHIFTS] for k in ("constant", "random", "worst")
    )
    kept = all(max(r, w) <= c * (1 + 1e-9) for r, w, c in zip(random, worst, constant))
    holds = "bounds" if kept else "does not bound at these settings"
    reached = min(w / c for w, c in zip(worst, constant))
    tight = "is reached by the error proportional to π / q" if reached > 1 - 1e-9 else f"is reached to {reached:.2f}"
    share = max(r / c for r, c in zip(random, constant))
    return (
        f"A reward that is fitted on the reference and used by the optimum: C = √(1 + χ²) {holds} the growth of its "
        f"errors and {tight}; random errors come to at most {share:.2f} of it (C is {constant[0]:.2g} at beta = "
        f"{SHIFTS[0]:g}, {constant[-1]:.2g} at {SHIFTS[-1]:g})."
    )


def _budget(metrics: Metrics) -> str:
    pairs = [[metrics[f"budget/{k}/costs={c:g}"]["mean"] for k in ("printed", "best")] for c in COSTS]
    agree = "is" if all(abs(a - b) <= 0.5 for a, b in pairs) else "is not, at these costs,"
    return (
        f"Of a budget the best number of rollouts a prompt, K* = (c_p/c_d)^(2/3), {agree} where the sum of deviations "
        "over prompts and rollouts is least (to the next whole number)."
    )


def _threshold(metrics: Metrics) -> str:
    best = [metrics[f"best_threshold/n={n}"]["mean"] for n in SAMPLES]
    ends = f"{best[0]:.3g} nats at {SAMPLES[0]} rollouts, {best[-1]:.3g} at {SAMPLES[-1]}"
    said = "Clipping the log-ratio trades bias for variance (2602.21765); "
    if best[0] < best[-1] and best == sorted(best):
        return f"{said}the best threshold grows with the number of rollouts: {ends}."
    return f"{said}that the best threshold grows with the number of rollouts is not seen at these settings ({ends})."


def _clamp(metrics: Metrics) -> str:
    costs = {name: metrics[f"clamp_regret/{name}/c=2"]["mean"] for name in ORDERS.values()}
    shown = ", ".join(f"{name} {'infinite' if cost == float('inf') else f'{cost:.2g}'}" for name, cost in costs.items())
    if max(costs.values()) <= FLOOR:
        return "That a clamp in the penalty moves the optimum is not seen at these settings."
    return (
        "In the penalty itself a clamp moves the optimum: responses past −c lose all mass and the best ones take "
        "what is "
        f"left over for free (derived); regret at c = 2: {shown}."
    )


def _continuation(metrics: Metrics) -> str:
    costs = [metrics[f"continued_regret/forward KL/c={c:g}"]["mean"] for c in CLIPS]
    enough = next((c for c, _ in enumerate(CLIPS) if max(costs[c:]) < 1e-9), None)
    covered = f"here from c = {CLIPS[enough]:g} nats on" if enough is not None else "none of these thresholds does here"
    return (
        "Going on linearly past the threshold, as this project's score does, leaves the forward-KL optimum exact "
        "once the "
        f"threshold covers the log-ratios that it needs, {covered}."
    )


def _chart(errors: list[Line], optima: list[Line], metrics: Metrics) -> Chart:
    return Chart(
        "clipped",
        "arXiv 2602.21765 on a finite space. Left: a policy with 3 % of its samples far off; root mean squared error "
        "of a clipped estimate of the divergence; dashed: the derived bound E[(log u)²] / 4c of the bias. "
        f"{_threshold(metrics)} Right: regret of the policy at rest under a clipped penalty, beta = {BETA:g}: clamped "
        "(solid) or continued linearly (dashed); missing points are infinite.",
        [
            Panel("Error of a clipped estimate", "threshold c (nats)", "error (nats)", errors, x_scale="log",
                  y_scale="log"),
            Panel("Regret under a clip", "threshold c (nats)", "regret (reward units)", optima, y_scale="log",
                  y_limits=(1e-8, 10.0)),
        ],
    )  # fmt: skip
