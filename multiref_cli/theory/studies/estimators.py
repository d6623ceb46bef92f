"""What the estimators of the online penalty rest at, and what that costs, on enumerable responses."""

from dataclasses import dataclass, replace

import torch

from multiref_cli.theory.bandit import generator
from multiref_cli.theory.estimators import (
    EPSILON,
    Estimator,
    Problem,
    expected_update,
    length_weighted_gap,
    resting_point,
    sequence_regret,
    spread,
    token_regret,
    update_variance,
)
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, listed, metric
from multiref_cli.theory.responses import enumerate_responses, random_policies
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import simplex

READS = ("alpha", "vocabulary", "length", "trees")

BETAS = (0.1, 0.2, 0.3, 0.5, 1.0)
BETA = 0.3  # of the tables
DISTANCE = 1.0  # standard deviation of the references' logits around a common policy, nats
CORRECT = 1 / 3  # share of responses that the verifier accepts
AT_REST = 1e-6  # regret, reward units, below which a policy is called the optimum
LOSSES = ("exact", "k2", "k3_ratio")  # loss-type penalties with the gradient of the divergence
OBJECTIVES = {"token": "the token-level objective", "sequence": "Theorem 5.1", "forward": "token-level forward KL"}


@dataclass(frozen=True)
class Resting:
    """Where one estimator rests: means over N problems, `objective` a key of `OBJECTIVES` or None, `update` the largest
    expected update left there (0: it is at rest)."""

    estimator: Estimator
    regrets: dict[str, float]
    reward: float
    divergence: float
    effective_beta: float
    objective: str | None
    update: float


def variants() -> list[Estimator]:
    """Every estimator: level token, all names with and without penalty to go; level sequence where that is exact."""
    loss_types = [Estimator(name, to_go=on) for name in ("exact", "k2", "k3", "k3_ratio") for on in (False, True)]
    every = [
        Estimator("reward"),
        *loss_types,
        Estimator("reward", "sequence"),
        Estimator("exact", "sequence", to_go=True),
    ]
    return [replace(estimator, scale=scale) for scale in ("none", "group") for estimator in every]


def random_problem(lab: Laboratory, beta: float = BETA) -> Problem:
    """`trees` random problems with a verifier's reward, 0 or 1; policies (K, N, S, V), reward (N, Y)."""
    rng, weights = generator(lab.seed, "estimators"), simplex(lab.alpha)
    responses = enumerate_responses(lab.vocabulary, lab.length)
    references = random_policies(rng, responses, lab.trees, len(weights), DISTANCE)
    reward = torch.from_numpy(rng.random((lab.trees, len(responses.mask))) < CORRECT).double()
    return Problem(responses, references, weights, reward, beta)


def resting(problem: Problem, estimator: Estimator) -> Resting:
    """Find where an estimator rests, and measure it in three objectives.

    Args:
        problem: N problems.
        estimator: what is estimated how.

    Returns:
        Resting; every number is a float.
    """
    policy = resting_point(problem, estimator)
    logps = problem.responses.logps(policy)
    chance = logps.exp()
    each = {
        "token": token_regret(problem, policy, problem.order),
        "sequence": sequence_regret(problem, policy),
        "forward": token_regret(problem, policy, 1.0),
    }
    return Resting(
        estimator,
        {name: float(regret.mean()) for name, regret in each.items()},
        float((chance * problem.reward).sum(-1).mean()),
        float((chance * (logps - problem.response_mixed("token"))).sum(-1).mean()),
        problem.beta * float((spread(chance, problem.reward) + EPSILON).mean()),
        next((name for name, regret in each.items() if float(regret.max()) < AT_REST), None),
        float(expected_update(problem, policy, estimator).abs().max()),
    )


def resting_table(problem: Problem) -> list[Resting]:
    """All of `variants` on the same problems (N, ...), scale none first."""
    return [resting(problem, estimator) for estimator in variants()]


def variances(problem: Problem) -> dict[str, tuple[float, float]]:
    """Variance of the update of one response where training starts, at the first reference.

    Args:
        problem: N problems.

    Returns:
        By level, (penalty alone, with the reward) for `reward` over that for `exact` with penalty to go: two ratios.
    """
    start, found = problem.references[0], {}
    for level in ("token", "sequence"):
        pair = (Estimator("reward", level), Estimator("exact", level, to_go=True))
        ratios = []
        for rewards in (torch.zeros_like(problem.reward), problem.reward):
            noise = [update_variance(replace(problem, reward=rewards), start, one) for one in pair]
            ratios.append(float(noise[0].mean() / noise[1].mean()))
        found[level] = (ratios[0], ratios[1])
    return found


def run(lab: Laboratory) -> Study:
    """Rest every estimator, compare objectives and variances, and weigh stored responses; every number is a float."""
    problem = random_problem(lab)
    rows = resting_table(problem)
    noise = variances(problem)
    metrics: Metrics = {}
    for row in rows:
        key = label(row.estimator)
        metrics |= {f"regret/{name}/{key}": metric(value, n=lab.trees) for name, value in row.regrets.items()}
        metrics |= {f"reward/{key}": metric(row.reward, n=lab.trees), f"kl/{key}": metric(row.divergence, n=lab.trees),
                    f"effective_beta/{key}": metric(row.effective_beta, n=lab.trees),
                    f"update/{key}": metric(row.update, n=lab.trees)}  # fmt: skip
    for level, (alone, whole) in noise.items():
        metrics |= {f"variance_ratio/{level}/penalty": metric(alone), f"variance_ratio/{level}/whole": metric(whole)}
    metrics["stored_states/grpo"] = metric(float(length_weighted_gap(problem).mean()), n=lab.trees)
    tables = [_table(rows[: len(rows) // 2], lab, "none"), _table(rows[len(rows) // 2 :], lab, "group"), _noise(noise)]
    return Study(
        "estimators",
        "Estimators of the penalty and where they rest",
        [conclusion(metrics)],
        tables,
        [_chart(lab)],
        metrics,
    )


def label(estimator: Estimator) -> str:
    """An estimator as one word of a metric's name, as in exact/token/none/to_go."""
    return "/".join([estimator.name, estimator.level, estimator.scale, *(["to_go"] if estimator.to_go else [])])


def rests_at(metrics: Metrics, key: str) -> str | None:
    """The objective whose optimum a row is, by its mean regret; a key of `OBJECTIVES`, or None (scalars compared)."""
    return next((name for name in OBJECTIVES if metrics[f"regret/{name}/{key}"]["mean"] < AT_REST), None)


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    return " ".join([_states_given(metrics), _complete(metrics), _k3(metrics), _scaled(metrics), _rest(metrics)])


def _regret(metrics: Metrics, key: str, objective: str = "token") -> float:
    return metrics[f"regret/{objective}/{key}"]["mean"]


def _states_given(metrics: Metrics) -> str:
    at_sequence = _regret(metrics, "exact/token/none", "sequence")
    given, mismatch = _regret(metrics, "exact/token/none"), _regret(metrics, "reward/token/none", "sequence")
    alike = [n for n in LOSSES if abs(_regret(metrics, f"{n}/token/none") - given) < AT_REST]
    said = (
        f"A loss at each token that takes the states as given ({listed([f'`{n}`' for n in alike])}) has regret "
        f"{given:.4f} in the token-level objective and {at_sequence:.4f} in Theorem 5.1's, "
    )
    if rests_at(metrics, "exact/token/none"):
        return said + "no more than rounding: that states matter is not seen at these settings."
    than = "more than" if given > mismatch else "no more than"
    return said + f"and is the optimum of none; that is {than} the {mismatch:.4f} which mixing per token costs."


def _complete(metrics: Metrics) -> str:
    keys = [f"{name}/token/none/to_go" for name in LOSSES]
    done = [f"`{key.split('/')[0]}`" for key in keys if rests_at(metrics, key) == "token"]
    at_sequence = rests_at(metrics, "exact/sequence/none/to_go") == "sequence"
    return (
        f"With the penalty to go {listed(done)} {'rest' if len(done) > 1 else 'rests'} at the token-level optimum, and "
        "`exact` summed over the references "
        f"{'at' if at_sequence else 'not at'} the optimum of Theorem 5.1, as the penalty in the reward "
        f"{'does' if rests_at(metrics, 'reward/sequence/none') == 'sequence' else 'does not'}: regret "
        f"{abs(_regret(metrics, 'exact/sequence/none/to_go', 'sequence')):.4f}."
    )


def _k3(metrics: Metrics) -> str:
    keys = ("k3/token/none", "k3/token/none/to_go")
    found = [rests_at(metrics, key) for key in keys]
    nearest = ["forward" if _regret(metrics, k, "forward") < _regret(metrics, k) else "reverse" for k in keys]
    if found == [None, None]:
        near = f"; both are nearest to the {nearest[0]}-KL one" if nearest[0] == nearest[1] else ""
        return f"`k3` rests at the optimum of no objective, with the penalty to go or without{near}."
    return f"`k3` rests at {listed([OBJECTIVES[f] if f else 'no objective' for f in found])}, without and with it."


def _scaled(metrics: Metrics) -> str:
    key = "exact/token/group"
    kept = rests_at(metrics, "reward/sequence/group") == "sequence"
    beta, reward, best = (metrics[f"{n}/{k}"]["mean"] for n, k in (("effective_beta", key), ("reward", key),
                          ("reward", "reward/token/none")))  # fmt: skip
    words = f"`exact` under group scale rests at E[r] = {reward:.3f}, KL {metrics[f'kl/{key}']['mean']:.2f}, where the "
    words += f"optimum has {best:.3f} and {metrics['kl/reward/token/none']['mean']:.2f}"
    vanished = f": its effective beta, beta sigma, has vanished ({beta:.1e})" if beta < 0.01 * BETA else (
        f"; its effective beta is {beta:.2g} of {BETA:g}, not vanished at these settings")  # fmt: skip
    return (
        f"Dividing advantages by the group's standard deviation {'leaves' if kept else 'moves'} the resting point of a "
        f"penalty in the reward; {words}{vanished}."
    )


def _rest(metrics: Metrics) -> str:
    alone, whole = (metrics[f"variance_ratio/token/{part}"]["mean"] for part in ("penalty", "whole"))
    price = metrics["stored_states/grpo"]["mean"]
    forward = (
        f"Stored responses of the references weighed by 1/|y|, as the `grpo` reduction would, miss the forward KL by "
        f"{price:.3f} nats; a run of `states: reference` weighs them whole."
        if price > AT_REST
        else "That weights 1/|y| move the forward KL of stored responses is not seen at these settings."
    )
    less = "less" if alone > 1 else "not less"
    return (
        f"Where training starts, the penalty of `exact` with penalty to go has {less} gradient variance than that of "
        f"`reward` (ratio {alone:.1f}; with the reward's own noise {whole:.2f}). {forward}"
    )


def _table(rows: list[Resting], lab: Laboratory, scale: str) -> Table:
    cells = []
    for row in rows:
        to_go = "whole" if row.estimator.name == "reward" else "yes" if row.estimator.to_go else "no"
        regrets = [f"{abs(row.regrets[name]):.4f}" for name in OBJECTIVES]
        rests = OBJECTIVES[row.objective] if row.objective else "none"
        beta = row.effective_beta if scale == "group" and row.estimator.name != "reward" else BETA
        cells.append([row.estimator.name, row.estimator.level, to_go, *regrets, f"{row.reward:.3f}",
                      f"{row.divergence:.2f}", f"{beta:.2g}", rests])  # fmt: skip
    return Table(
        f"Where each estimator rests with advantage scale {scale}, A = 0, beta = {BETA:g}, means over {lab.trees} "
        f"trees of up to {lab.length} tokens with a reward of 0 or 1; largest expected update at rest "
        f"{max(row.update for row in rows):.0e}. KL: to the token-level mixed reference.",
        ["Estimator", "Level", "To go", "Regret, token", "Regret, 5.1", "Regret, forward", "E[r]", "KL", "beta at rest",
         "Optimum of"],
        cells,
    )  # fmt: skip


def _noise(noise: dict[str, tuple[float, float]]) -> Table:
    return Table(
        "Gradient variance of one response at the first reference: `reward` over `exact` with penalty to go.",
        ["Level", "Penalty alone", "With the reward"],
        [[level, *(f"{x:.2f}" for x in pair)] for level, pair in noise.items()],
    )


def _chart(lab: Laboratory) -> Chart:
    shown = {
        "exact, states given": Estimator("exact"),
        "k3 (GRPO)": Estimator("k3"),
        "mixing per token": Estimator("reward"),
    }
    lines = []
    for series, (name, estimator) in enumerate(shown.items()):
        objective = "sequence" if estimator.name == "reward" else "token"
        values = [resting(random_problem(lab, beta), estimator).regrets[objective] for beta in BETAS]
        lines.append(Line(name, BETAS, [max(v, 1e-12) for v in values], "measured", series))
    worst = max(lines[:2], key=lambda line: max(line.y))
    return Chart(
        "estimators",
        f"Regret of resting points against beta, {lab.trees} trees of up to {lab.length} tokens, advantages not "
        "scaled: losses at each token in the token-level objective, and for comparison the token-level optimum in the "
        f"objective of Theorem 5.1. The largest regret of a loss at each token is {max(worst.y):.3g} ({worst.label}, "
        f"beta = {worst.x[worst.y.index(max(worst.y))]:g}).",
        [Panel("Taking the states as given", "beta", "regret (reward units)", lines, x_scale="log", y_scale="log")],
        columns=1,
    )
