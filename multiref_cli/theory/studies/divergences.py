"""One problem under every divergence: exact optima, what each lets the policy do, and the price of taking another."""

import math

import torch
from torch import Tensor

from multiref_cli.config.terms import DIVERGENCES, OTHERS, START
from multiref_cli.errors import RequestError
from multiref_cli.objectives.divergence import divergence_of
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, listed, metric
from multiref_cli.theory.own import own_divergence
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.exact_solutions import DISTANCE, RESPONSES, WIDTH, landscape
from multiref_cli.theory.studies.setting import bells, simplex
from multiref_cli.theory.terms import (
    LEAST,
    Kind,
    Several,
    kkt_residual,
    objective_of_terms,
    optimal_policy_of_terms,
    parsed,
    total_score,
)

READS = ("alpha", "beta", "reward_max", "divergence", "order", "terms")

# Name -> the divergence from the first reference and from the others.
KINDS: dict[str, tuple[Kind, Kind]] = {
    "reverse KL": ("reverse_kl", "reverse_kl"),
    "forward KL": ("forward_kl", "forward_kl"),
    "Hellinger": (("amari", 0.5), ("amari", 0.5)),
    "chi-square": (("amari", -1.0), ("amari", -1.0)),
    "Jensen-Shannon": ("jensen_shannon", "jensen_shannon"),
    "chi-PO": ("chi_po", "chi_po"),
    "Jeffreys": ("jeffreys", "jeffreys"),
    "anchor": ("reverse_kl", "forward_kl"),
}
ROUNDING = 1e-9  # reward units


def run(lab: Laboratory) -> Study:
    """Solve the picture-book problem under each divergence and put each optimum into the others' objectives."""
    weights, reward = simplex(lab.alpha), landscape(lab.reward_max)
    kept = (weights > 0).nonzero().flatten().tolist()
    references = bells(len(weights), DISTANCE, RESPONSES, WIDTH)[kept]
    kinds = KINDS | asked(lab)
    terms = {name: [(pair[min(i, 1)], lab.beta * float(weights[i])) for i in kept] for name, pair in kinds.items()}
    policies = {name: optimal_policy_of_terms(references, one, reward) for name, one in terms.items()}
    mean = torch.log((weights[kept, None] * references).sum(0))
    rows, metrics = [], dict[str, dict[str, float]]()
    for name, policy in policies.items():
        value = float(objective_of_terms(policy, references, terms[name], reward))
        there = policy > 0
        rise = (policy.log() - mean)[there]
        fall = float(rise.min()) if bool(there.all()) else None
        cells = [name, value, float((policy * reward).sum()), float(rise.max()), fall, int(there.sum())]
        residual = float(kkt_residual(policy, references, terms[name], reward))
        metrics[f"residual/{name}"] = metric(residual)
        metrics[f"cut_off/{name}"] = metric(float((~there).double().mean()), n=RESPONSES)
        metrics[f"slack/{name}"] = metric(_slack(policy, references, terms[name], reward))
        rows.append([*cells, metrics[f"slack/{name}"]["mean"]])
    optima = Table(
        f"Exact optima on {RESPONSES} responses, beta = {lab.beta:g}, one problem. Rise and fall: largest and smallest "
        "log π/M₁ with M₁ the arithmetic mean of the references (no fall where responses are cut off). Slack: by how "
        "much DPO's equality fails at most on a response that is cut off, in reward units.",
        ["Divergence", "Value", "E[r]", "Rise (nats)", "Fall (nats)", "Responses kept", "Slack"],
        rows,
    )
    return Study(
        "divergences",
        "Any divergence: exact optima of sums of scores",
        [conclusion(metrics | (prices := _prices(policies, references, terms, reward)))],
        [optima, _price_table(list(policies), prices)],
        [_chart(policies, references, reward, lab.beta)],
        metrics | prices,
    )


def asked(lab: Laboratory) -> dict[str, tuple[Kind, Kind]]:
    """What the settings add to `KINDS`: a divergence by name or of one's own, an order, a sum of terms.

    Raises:
        RequestError: a term that is none, or terms that leave a reference without a divergence.
    """
    found: dict[str, tuple[Kind, Kind]] = {}
    if lab.divergence is not None:
        known = lab.divergence in DIVERGENCES
        one: Kind = lab.divergence if known else own_divergence(lab.divergence)
        found[lab.divergence] = (one, one)
    if lab.order is not None:
        found[f"order {lab.order:g}"] = (("amari", lab.order), ("amari", lab.order))
    for term in lab.terms:
        problem = term.problem()
        if problem is None and term.reference not in (None, START, OTHERS):
            problem = f"reference {term.reference!r} is unknown to the laboratory; allowed: {START}, {OTHERS}"
        if problem is not None:
            raise RequestError(f"terms: {problem}.")
    if lab.terms:
        sums = [
            Several(tuple((divergence_of(t.divergence, t.order), t.weight) for t in lab.terms if t.reference in which))
            for which in ((None, START), (None, OTHERS))
        ]
        if not all(one.parts for one in sums):
            raise RequestError("terms leave a reference without a divergence: the laboratory needs one for each.")
        found["+".join(term.title for term in lab.terms)] = (sums[0], sums[1])
    return found


def _slack(policy: Tensor, references: Tensor, terms: list, reward: Tensor) -> float:
    """max over cut-off responses of lambda + S_y(-inf) - r(y), never negative; 0 where nothing is cut off."""
    pairs, logps = parsed(terms, references), references.log()
    charged = total_score(policy.log().clamp(min=LEAST), logps, pairs)
    there = policy > 0
    level = (policy * torch.where(there, reward - charged, 0.0)).sum()
    return float(torch.where(there, 0.0, level + charged - reward).max().clamp(min=0.0))


def _prices(policies: dict[str, Tensor], references: Tensor, terms: dict[str, list], reward: Tensor) -> Metrics:
    """Regret of every optimum in every other divergence's objective; infinite ones are left out."""
    found: Metrics = {}
    for judged, one in terms.items():
        best = float(objective_of_terms(policies[judged], references, one, reward))
        for trained, policy in policies.items():
            regret = best - float(objective_of_terms(policy, references, one, reward))
            if trained != judged and math.isfinite(regret):
                found[f"regret/{trained}/in {judged}"] = metric(max(regret, 0.0))
    return found


def _price_table(names: list[str], prices: Metrics) -> Table:
    def cell(trained: str, judged: str) -> float | str:
        one = prices.get(f"regret/{trained}/in {judged}")
        return "–" if trained == judged else "∞" if one is None else one["mean"]

    return Table(
        "Regret in reward units of the optimum under one divergence (row) in the objective of another (column), at the "
        "same beta; ∞ where it leaves out a response that the other may not lose.",
        ["Optimum of", *(f"in {name}" for name in names)],
        [[trained, *(cell(trained, judged) for judged in names)] for trained in names],
    )


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    return " ".join([_solved(metrics), _equality(metrics), _price(metrics)])


def _solved(metrics: Metrics) -> str:
    residuals = {key: m["mean"] for key, m in metrics.items() if key.startswith("residual/")}
    worst = max(residuals.values())
    precise = "to machine precision" if worst < ROUNDING else "not to machine precision at these settings"
    return (
        "The optimum of a sum of divergences, one for each reference, is the policy whose sum of scores is the reward "
        f"up to a constant: found {precise} for all {len(residuals)} (largest violation of the optimality conditions "
        f"{worst:.0e} reward units)."
    )


def _equality(metrics: Metrics) -> str:
    cut = {key.split("/")[1]: m["mean"] for key, m in metrics.items() if key.startswith("cut_off/") and m["mean"] > 0}
    said = "DPO's implicit reward equals the reward, up to a constant, "
    if not cut:
        return said + "on every response: nothing is cut off at these settings."
    shares = listed([f"{name} ({100 * share:.0f} %)" for name, share in cut.items()])
    slack = max(metrics[f"slack/{name}"]["mean"] for name in cut)
    return (
        said
        + f"on every response that is kept; cut off are responses under {shares}, where it is above by up to "
        + (f"{slack:.2g} reward units: an inequality there.")
    )


def _price(metrics: Metrics) -> str:
    prices = {key: m["mean"] for key, m in metrics.items() if key.startswith("regret/")}
    highest, lowest = max(prices, key=lambda k: prices[k]), min(prices, key=lambda k: prices[k])

    def named(key: str) -> str:
        _, trained, judged = key.split("/")
        return f"{prices[key]:.2g} (that of {trained} {judged})"

    return (
        f"At one beta the optimum under one divergence costs up to {named(highest)} in the objective of another, at "
        f"least {named(lowest)}."
    )


def _chart(policies: dict[str, Tensor], references: Tensor, reward: Tensor, beta: float) -> Chart:
    x, where = torch.linspace(0, 1, RESPONSES).tolist(), "response (81 of them, on a line)"
    shapes = [
        Line(f"reference {i + 1}", x, one.tolist(), "shape", look, at_peak=True)
        for i, (one, look) in enumerate(zip(references, (5, 4, 3, 2)))
    ]
    hill = Line("reward (scaled)", x, (0.06 * reward / reward.max()).tolist(), "predicted", at_peak=True)
    halves = [list(policies.items())[:4], list(policies.items())[4:]]
    panels = [
        Panel(
            "Exact optimal policies", where, "probability",
            [Line(name, x, policy.tolist(), "shape", i) for i, (name, policy) in enumerate(half)],
            y_scale="log", y_limits=(1e-7, 1.0),
        )
        for half in halves
    ]  # fmt: skip
    return Chart(
        "divergences",
        f"One reward, one set of references, beta = {beta:g}: the exact optimum under each divergence. One whose score "
        "is bounded below may cut responses off; one whose score is bounded above lets the policy rise furthest.",
        [Panel("The references", where, "probability", [*shapes, hill]), *panels],
    )
