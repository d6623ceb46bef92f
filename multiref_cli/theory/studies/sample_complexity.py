"""Gaps of Theorems 5.2, 5.3, 6.2 and 6.3 against the number of pairs, with their bounds and log-log slopes."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import bounds, complexity
from multiref_cli.theory.bandit import generator
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, follows, interval, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import Setting, linear_setting

READS = ("n", "draws", "responses", "alpha", "beta", "reward_max", "dimension", "class_size", "delta", "distance")

RKL, FKL = 0.0, 1.0


@dataclass(frozen=True)
class Sweep:
    """Gaps over n: n (N,); the others (N, D): regularized; plain reward, signed; plain reward to the best response."""

    n: np.ndarray
    regularized: np.ndarray
    signed: np.ndarray
    to_best: np.ndarray

    @property
    def plain(self) -> np.ndarray:
        """Absolute gaps in plain reward; (N, D)."""
        return np.abs(self.signed)


def sizes(largest: int) -> np.ndarray:
    """Numbers of pairs: powers of two up to `largest`, at most ten; (N,) int."""
    top = int(np.log2(largest))
    return 2 ** np.arange(max(4, top - 9), top + 1)


def sweep(lab: Laboratory, setting: Setting, order: float, linear: bool, vanishing: bool = False) -> Sweep:
    """Simulate `draws` data sets for each n, fit, and measure every gap exactly.

    Args:
        lab: the laboratory's settings.
        setting: the problem.
        order: A.
        linear: linear class, else the finite one.
        vanishing: gamma = n (Theorem 6.3), else gamma = 1 / beta.

    Returns:
        Sweep; gaps (N, D), `signed` and `to_best` in plain reward to the regularized optimum and to the best response.
    """
    n, found = sizes(lab.n), []
    shifted = setting.reward - setting.reward.min()
    rivals = complexity.multiscale_class(
        generator(lab.seed, "class"), shifted, setting.reward_max, lab.class_size, scales=9
    )
    for size in n:
        at = replace(setting, beta=1.0 / float(size)) if vanishing else setting
        rng = generator(lab.seed, "pairs", str(order), linear, int(size))
        counts = complexity.preference_counts(rng, at.sampling(order), at.reward, int(size), lab.draws)
        if linear:
            estimates = complexity.linear_estimate(counts, at.features) @ at.features.T
        else:
            estimates = rivals[complexity.finite_estimate(counts, rivals)]
        policies = at.policy(estimates, order)
        optimum = at.policy(at.reward, order)
        lost = ((optimum - policies) * at.reward).sum(-1)
        missed = at.reward.max() - (policies * at.reward).sum(-1)
        found.append(torch.stack([at.gap(policies, order).clamp(min=0.0), lost, missed]))
    gaps = torch.stack(found, 1).numpy()
    return Sweep(n, *gaps)


def run(lab: Laboratory) -> Study:
    """Simulate, fit slopes with intervals, and set the bounds beside the gaps; every number is a float."""
    setting = linear_setting(lab)
    sweeps = {(a, linear): sweep(lab, setting, a, linear) for a in (RKL, FKL) for linear in (False, True)}
    vanishing = sweep(lab, setting, FKL, linear=True, vanishing=True)
    rng = generator(lab.seed, "slopes")
    series = {
        ("5.2", "reverse KL, regularized gap, finite class"): (sweeps[RKL, False].regularized, "−1", -1.0),
        ("5.2", "reverse KL, regularized gap, linear class"): (sweeps[RKL, True].regularized, "−1", -1.0),
        ("5.3", "reverse KL, reward gap, finite class"): (sweeps[RKL, False].plain, "−1/2", -0.5),
        ("5.3", "reverse KL, reward gap, linear class"): (sweeps[RKL, True].plain, "−1/2", -0.5),
        ("6.2", "forward KL, regularized gap, finite class"): (sweeps[FKL, False].regularized, "−1/2", -0.5),
        ("6.2", "forward KL, regularized gap, linear class"): (sweeps[FKL, True].regularized, "−1/2", -0.5),
        ("6.3", "forward KL, gap to the best reward, gamma = n"): (vanishing.to_best, "−1/2", -0.5),
    }
    metrics: Metrics = {}
    rows = []
    for (theorem, name), (gaps, promised, _) in series.items():
        slope = complexity.log_slope(vanishing.n, gaps, rng)
        half = complexity.log_slope(vanishing.n[len(vanishing.n) // 2 :], gaps[len(vanishing.n) // 2 :], rng)
        rows.append([theorem, name, promised, str(slope), str(half)])
        metrics[f"slope/{theorem}/{name}"] = metric(slope.slope, slope.low, slope.high, gaps.shape[1])
        metrics[f"late_slope/{theorem}/{name}"] = metric(half.slope, half.low, half.high, gaps.shape[1])
    table = Table(
        "Log-log slope in n of the mean gap (5.3: of the mean absolute gap), with 95 % bootstrap intervals over data "
        "sets.",
        ["Theorem", "Gap", "Slope of the bound", "All n", "Larger half of n"],
        rows,
    )
    constants = _constants(setting, sweeps, metrics)
    _bound_ratios(lab, setting, sweeps[RKL, True], metrics)
    return Study(
        "sample_complexity",
        "Sample complexity: gaps against the number of preference pairs",
        [conclusion(metrics)],
        [table, constants],
        [_chart(lab, setting, sweeps, vanishing, metrics)],
        metrics,
    )


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    known = "For one reference the 1/n rates are known (2502.06051, 2605.06977)."
    return " ".join([rates(metrics), _vanishing(metrics), known])


def rates(metrics: Metrics) -> str:
    """What is seen of the rates of Theorems 5.2, 5.3 and 6.2; metrics are scalars."""
    return " ".join([_reverse(metrics), _forward(metrics), _plain(metrics)])


def _late(metrics: Metrics, name: str) -> dict[str, float]:
    return metrics[f"late_slope/{name}"]


def _reverse(metrics: Metrics) -> str:
    slope = _late(metrics, "5.2/reverse KL, regularized gap, linear class")
    if follows(slope, -1.0):
        return (
            f"The reverse-KL gap falls as 1/n, as Theorem 5.2 says (linear class, larger n: slope {interval(slope)})."
        )
    return f"The 1/n of Theorem 5.2 for the reverse-KL gap is not seen at these settings (slope {interval(slope)})."


def _forward(metrics: Metrics) -> str:
    slope = _late(metrics, "6.2/forward KL, regularized gap, linear class")
    why = (
        "the optimal value is smooth in the reward for every order A, so the regret of a plug-in policy is quadratic "
        "in the "
        "reward error (derived: at most F U^(1+A) E / (4 beta))"
    )
    if follows(slope, -1.0):
        return (
            f"**The forward-KL gap falls as 1/n too** (slope {interval(slope)}), faster than the square-root bound of "
            f"Theorem 6.2: {why}."
        )
    return (
        f"That the forward-KL gap falls as 1/n is not seen at these settings (slope {interval(slope)}); derived: {why}."
    )


def _plain(metrics: Metrics) -> str:
    slope = _late(metrics, "5.3/reverse KL, reward gap, linear class")
    signed = metrics["signed_gap/reverse KL"]
    mean = (
        f"its signed mean, which is of order 1/n, is {interval(signed, '.2g')} divided by n at the largest n, not "
        "told apart "
        "from zero"
        if signed["ci_low"] <= 0 <= signed["ci_high"]
        else f"its signed mean, which is of order 1/n, is {interval(signed, '.2g')} divided by n at the largest n"
    )
    if follows(slope, -0.5):
        seen = "The mean absolute gap in plain reward to the regularized optimum is first order and falls as 1/√n"
        return f"{seen} (Theorem 5.3; slope {interval(slope)}); {mean}."
    return (
        f"The 1/√n of Theorem 5.3 for the plain reward is not seen at these settings (slope {interval(slope)}); {mean}."
    )


def _vanishing(metrics: Metrics) -> str:
    slope = _late(metrics, "6.3/forward KL, gap to the best reward, gamma = n")
    said = f"With gamma = n the forward-KL policy nears the best response with slope {interval(slope)}, "
    if slope["ci_high"] <= -0.75:
        return said + "at least as fast as its bias bound 1/n."
    if slope["ci_low"] > -0.75 and slope["ci_high"] <= -0.4:
        return said + "slower than its bias bound 1/n, no slower than the 1/√n of Theorem 6.3."
    return said + "and the rates 1/n and 1/√n are not seen at these settings."


def _constants(setting: Setting, sweeps: dict[tuple[float, bool], Sweep], metrics: Metrics) -> Table:
    rows = []
    for order, name in ((RKL, "reverse KL"), (FKL, "forward KL")):
        at = sweeps[order, True]
        n, draws = int(at.n[-1]), at.regularized.shape[1]
        for key, gaps in (("n_gap", at.regularized[-1]), ("signed_gap", at.signed[-1])):
            half = 1.96 * float(gaps.std()) / np.sqrt(draws)
            mean = float(gaps.mean())
            metrics[f"{key}/{name}"] = metric(n * mean, n * (mean - half), n * (mean + half), draws)
        measured, signed = metrics[f"n_gap/{name}"], metrics[f"signed_gap/{name}"]
        cells = [f"{m['mean']:.3f} ± {m['ci_high'] - m['mean']:.3f}" for m in (measured, signed)]
        rows.append([name, cells[0], setting.predicted(order), cells[1], setting.coverage(order)])
    return Table(
        f"n times the mean gap of the linear class at n = {int(at.n[-1])}, and the limit derived here, "
        "trace(I⁻¹ X' H X) / 2; n times the signed mean of the gap in plain reward; C is the coverage constant over "
        "all "
        "rewards in [0, R].",
        ["Regularizer", "Measured (95 % interval)", "Predicted", "Plain reward, signed", "C"],
        rows,
    )


def _bound_ratios(lab: Laboratory, setting: Setting, at: Sweep, metrics: Metrics) -> None:
    # Bounds of Theorem 5.2 over the measured mean gap at the largest n.
    cover, n, gap = torch.tensor(setting.coverage(RKL)), int(at.n[-1]), float(at.regularized[-1].mean())
    paper = bounds.pairs_error_paper(n, setting.reward_max, lab.class_size, lab.delta)
    sharp = bounds.pairs_error_derived(n, setting.reward_max, lab.class_size, lab.delta)
    metrics["bound_over_gap/paper"] = metric(float(bounds.rkl_gap(cover, paper, setting.beta)) / gap)
    metrics["bound_over_gap/derived"] = metric(float(bounds.rkl_gap(cover, sharp, setting.beta, 0.25)) / gap)


def _measured(label: str, n: np.ndarray, gaps: np.ndarray, series: int) -> Line:
    mean, error = gaps.mean(1), 1.96 * gaps.std(1) / np.sqrt(gaps.shape[1])
    low = np.maximum(mean - error, 0.2 * mean)
    return Line(label, n.tolist(), mean.tolist(), "measured", series, low.tolist(), (mean + error).tolist())


def _bound(label: str, n: np.ndarray, values: Tensor, series: int) -> Line:
    return Line(label, n.tolist(), values.tolist(), "bound", series)


def _panel(title: str, n: np.ndarray, gaps: list[np.ndarray], more: list[Line]) -> Panel:
    measured = [_measured(f"{name} class", n, g, i) for i, (name, g) in enumerate(zip(("finite", "linear"), gaps))]
    lines = [*measured, *more]
    return Panel(title, "preference pairs n", "gap (reward units)", lines, x_scale="log", y_scale="log")


def _chart(lab: Laboratory, setting: Setting, sweeps: dict, vanishing: Sweep, metrics: Metrics) -> Chart:
    n, size, r, beta = vanishing.n.astype(float), lab.class_size, setting.reward_max, setting.beta
    pairs = torch.from_numpy(n)
    paper = bounds.pairs_error_paper(pairs, r, size, lab.delta)
    sharp = bounds.pairs_error_derived(pairs, r, size, lab.delta)
    cover = {a: torch.tensor(setting.coverage(a)) for a in (RKL, FKL)}
    limit = {a: Line("derived limit", n.tolist(), (setting.predicted(a) / n).tolist(), "predicted", 1)
             for a in (RKL, FKL)}  # fmt: skip
    widest = torch.tensor(1 / float(setting.sampling(FKL).min()))
    last = [
        Line("gamma = n", n.tolist(), vanishing.to_best.mean(1).tolist(), "measured", 1),
        Line("bias: 1/n", n.tolist(), (1 / n).tolist(), "predicted", 1),
        _bound("Theorem 6.3", n, bounds.fkl_gap(widest, paper) + torch.log1p(pairs * r) / pairs, 2),
    ]
    rkl, fkl = ([sweeps[a, linear] for linear in (False, True)] for a in (RKL, FKL))
    panels = [
        _panel("Reverse KL: regularized gap", n, [s.regularized for s in rkl], [
            limit[RKL], _bound("Theorem 5.2", n, bounds.rkl_gap(cover[RKL], paper, beta), 2),
            _bound("derived bound", n, bounds.rkl_gap(cover[RKL], sharp, beta, 0.25), 3)]),
        _panel("Reverse KL: |gap in plain reward|", n, [s.plain for s in rkl], [
            _bound("Theorem 5.3", n, bounds.rkl_reward_gap(cover[RKL], paper, beta, r), 2),
            _bound("derived bound", n, bounds.rkl_reward_gap(cover[RKL], sharp, beta, r), 3)]),
        _panel("Forward KL: regularized gap", n, [s.regularized for s in fkl], [
            limit[FKL], _bound("Theorem 6.2", n, bounds.fkl_gap(cover[FKL], paper), 2),
            _bound("derived bound", n, cover[FKL] ** 2 * sharp / (4 * beta), 3)]),
        Panel("Forward KL with gamma = n", "preference pairs n", "gap to the best reward", last, x_scale="log",
              y_scale="log"),
    ]  # fmt: skip
    return Chart("sample_complexity", _caption(lab, metrics), panels)


def _caption(lab: Laboratory, metrics: Metrics) -> str:
    paper, derived = (metrics[f"bound_over_gap/{name}"]["mean"] for name in ("paper", "derived"))
    return (
        f"Theorems 5.2, 5.3, 6.2 and 6.3 of arXiv 2502.01203, simulated. Points: mean gap over {lab.draws} data sets "
        f"(bands: 95 %); dashed: bounds that hold with probability {1 - lab.delta:g}; thin black: the limit derived "
        f"here, with no free constant. {_reverse(metrics)} {_forward(metrics)} At the largest n the bound of Theorem "
        "5.2 is "
        f"{paper:.2g} times the measured gap, the derived one {derived:.2g} times."
    )
