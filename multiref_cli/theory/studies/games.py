"""General preferences: regularized Nash equilibria with the same divergences and references (arXiv 2602.23116)."""

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import complexity, exact, learning, nash
from multiref_cli.theory.bandit import generator
from multiref_cli.theory.findings import (
    RATE_TOLERANCE,
    Chart,
    Line,
    Metrics,
    Panel,
    Study,
    Table,
    follows,
    interval,
    listed,
    metric,
)
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import bells, simplex

READS = ("draws", "responses", "alpha", "distance")

ORDERS = {-1.0: "A = −1", 0.0: "A = 0, reverse KL", 0.5: "A = 1/2", 1.0: "A = 1, forward KL"}
BETAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
ERRORS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
HORIZONS = tuple(2**k for k in range(6, 19))  # rounds of the learning part
LATE = 6  # horizons before it are burn-in
FEATURES = 4  # of a response, for preferences of rank 2 that are learned
STRENGTH = 2.0  # largest logit of a learned preference
PLAY_BETA = 0.2
WAYS = {"greedy": "greedy sampling", "commit": "explore, then commit"}


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


def learned(lab: Laboratory, references: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Cumulative regret of learning a preference of rank 2 while playing, reverse KL; (H, D) by the names of `WAYS`."""
    count, runs = references.shape[-1], max(2, min(lab.draws // 5, 16))
    rng = generator(lab.seed, "learned")
    phi = torch.from_numpy(rng.standard_normal((count, FEATURES)))
    one, other = torch.from_numpy(rng.standard_normal((2, FEATURES)))
    logits = phi @ (torch.outer(one, other) - torch.outer(other, one)) @ phi.T
    truth = torch.sigmoid(STRENGTH * logits / logits.abs().max())
    start = torch.softmax(exact.log_mixed(references, weights, 0.0), -1)
    setting = (truth, learning.skew_features(phi), start, list(HORIZONS), runs, references, weights, PLAY_BETA, 0.0)
    return {"greedy": learning.greedy_regret(rng, *setting), "commit": learning.committed_regret(rng, *setting)}


def _regret(lab: Laboratory, references: Tensor, weights: Tensor, metrics: Metrics) -> tuple[Table, list[Line]]:
    rows, lines, rng = [], [], generator(lab.seed, "regret slopes")
    found = {name: regret.numpy() for name, regret in learned(lab, references, weights).items()}
    rounds = np.array(HORIZONS, dtype=float)
    # Greedy sampling is held against a power of log T, explore-then-commit against one of T.
    for series, (name, x) in enumerate((("greedy", np.log(rounds)), ("commit", rounds))):
        slope = complexity.log_slope(x[LATE:], found[name][LATE:], rng)
        metrics[f"regret_slope/{name}"] = metric(slope.slope, slope.low, slope.high, found[name].shape[1])
        metrics |= {f"regret/{name}/T={t}": metric(float(r.mean())) for t, r in zip(HORIZONS, found[name])}
        lines.append(Line(WAYS[name], list(HORIZONS), found[name].mean(1).tolist(), "measured", series))
    rows = [[t, *(float(found[name][i].mean()) for name in WAYS)] for i, t in enumerate(HORIZONS)]
    table = Table(
        f"Regret, summed over T rounds, of learning preferences of rank 2 while playing; reverse KL, beta = "
        f"{PLAY_BETA:g}, mean of {found['greedy'].shape[1]} runs.",
        ["Rounds T", *WAYS.values()],
        rows,
    )
    return table, lines


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
    regrets, curves = _regret(lab, references, weights, metrics)
    charts = [_chart(gains, slopes, curves, metrics)]
    tables = [table, fits, regrets]
    return Study("games", "General preferences: Nash equilibria", [conclusion(metrics)], tables, charts, metrics)


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
        f"derived: the Jacobian is never singular). {_square(metrics)} {_learning(metrics)}"
    )


def _learning(metrics: Metrics) -> str:
    greedy, commit = (metrics[f"regret_slope/{name}"] for name in WAYS)
    ends = [metrics[f"regret/{name}/T={HORIZONS[-1]}"]["mean"] for name in WAYS]
    slow = greedy["ci_high"] <= 2 + RATE_TOLERANCE
    first = "within its (log T)²" if slow else "that it stays within its (log T)² is not seen at these settings"
    second = "its √T" if follows(commit, 0.5) else "its √T is not seen at these settings"
    return (
        f"Preferences of rank 2 that are learned while playing (2602.23116): the regret of greedy sampling grows as "
        f"log T to the power {interval(greedy, '.2f')}, {first}; that of explore-then-commit as T to the "
        f"power {interval(commit, '.2f')}, {second}; after {HORIZONS[-1]} rounds {ends[0]:.3g} against "
        f"{ends[1]:.3g}."
    )


def _square(metrics: Metrics) -> str:
    slopes = {name: metrics[f"dual_gap_slope/{name}"] for name in ORDERS.values()}
    shown = [name for name, slope in slopes.items() if follows(slope, 2.0)]
    span = f"slopes {min(s['mean'] for s in slopes.values()):.2f} to {max(s['mean'] for s in slopes.values()):.2f}"
    if len(shown) == len(slopes):
        return f"Errors in the preferences cost their **square** for every order shown ({span}), as derived."
    seen = f"is seen for {listed(shown)} only" if shown else "is not seen at these settings"
    return f"That errors in the preferences cost their square, as derived, {seen} ({span})."


def _chart(gains: list[Line], slopes: list[Line], curves: list[Line], metrics: Metrics) -> Chart:
    return Chart(
        "games",
        "Nash learning with several references. Left: dual gap, what two best-responding opponents gain, of the "
        "policy that treats the win rate against the mixed reference as a reward. Middle: dual gap of the equilibrium "
        "of "
        f"wrong preferences and the derived bound (dashed, reverse and forward KL). {_square(metrics)} Right: "
        "regret of learning preferences of rank 2 while playing, by greedy sampling and by explore-then-commit.",
        [
            Panel("Win rate as a reward", "beta", "dual gap", gains, x_scale="log", y_scale="log"),
            Panel("Errors in the preferences", "size of the preference error", "dual gap", slopes, x_scale="log",
                  y_scale="log"),
            Panel("Learning while playing", "rounds T", "regret", curves, x_scale="log", y_scale="log"),
        ],
        columns=3,
    )  # fmt: skip
