"""Two-stage sampling (arXiv 2411.04625) and private labels (arXiv 2510.13512): other ways to spend n pairs."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from multiref_cli.theory import complexity, exact, privacy
from multiref_cli.theory.bandit import generator
from multiref_cli.theory.findings import Chart, Line, Metrics, Panel, Study, Table, follows, interval, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies.setting import Setting, linear_setting, tabular

READS = ("n", "draws", "responses", "alpha", "beta", "reward_max", "dimension", "distance")

RKL = 0.0
RARITIES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
PAIRS = tuple(2**k for k in range(12, 21))  # up to a million: a data set is one multinomial draw, whatever n
SHARP = 0.075  # beta of the two-stage part: low enough that the optimum leaves the reference
SETTLED = 1.25  # factor within which the last points of n * gap may lie to be called a constant
BUDGETS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
RARE = 0.001  # mass of each bad response in the data of the pessimistic part: only the good ones are covered
DISTRUST = 2.0  # standard errors that pessimism takes off
FEW, MANY = 2**14, 2**20  # pairs of the pessimistic part


def stages(lab: Laboratory, setting: Setting, pairs: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Gaps of one-stage and two-stage sampling with the same number of pairs.

    Args:
        lab: the laboratory's settings.
        setting: the problem.
        pairs: n in all; two-stage sampling draws the second half from the policy fitted to the first.
        label: for the seed.

    Returns:
        (D,) gaps with one stage, (D,) with two.
    """
    rng = generator(lab.seed, "stages", label)
    q = setting.sampling(RKL)
    halves = [complexity.preference_counts(rng, q, setting.reward, pairs // 2, lab.draws) for _ in range(2)]

    def _fitted(counts: Tensor) -> Tensor:
        return setting.policy(complexity.linear_estimate(counts, setting.features) @ setting.features.T, RKL)

    second = complexity.two_stage_counts(rng, halves[0], _fitted(halves[0]), setting.reward, pairs // 2)
    return setting.gap(_fitted(halves[0] + halves[1]), RKL).numpy(), setting.gap(_fitted(second), RKL).numpy()


def private(lab: Laboratory, setting: Setting, pairs: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaps with randomized-response labels: likelihood that knows the flips, and one that ignores them.

    Args:
        lab: the laboratory's settings.
        setting: the problem.
        pairs: n.
        epsilon: privacy budget.

    Returns:
        (D,) gaps of the aware fit, (D,) of the naive fit.
    """
    flip = privacy.flip_probability(epsilon)
    rng = generator(lab.seed, "private", str(epsilon))
    counts = complexity.preference_counts(rng, setting.sampling(RKL), setting.reward, pairs, lab.draws, flip)
    fits = [complexity.linear_estimate(counts, setting.features, f) @ setting.features.T for f in (flip, 0.0)]
    aware, naive = (setting.gap(setting.policy(fit, RKL), RKL).numpy() for fit in fits)
    return aware, naive


def pessimism(lab: Laboratory, pairs: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Reverse-KL gaps where the data cover two good responses well and each bad one with mass `RARE`, labels private.

    One uniform reference; the behavior that the pairs come from is another policy (single-policy concentrability).

    Args:
        lab: the laboratory's settings.
        pairs: n.
        epsilon: privacy budget.

    Returns:
        (D,) gaps of maximum likelihood, (D,) of the same less `DISTRUST` standard errors of every reward.
    """
    count, flip = lab.responses, privacy.flip_probability(epsilon)
    reward, behavior = torch.zeros(count, dtype=torch.float64), torch.full((count,), RARE, dtype=torch.float64)
    reward[:2] = lab.reward_max * torch.tensor([1.0, 0.8], dtype=torch.float64)
    behavior[:2] = (1 - RARE * (count - 2)) / 2
    rng = generator(lab.seed, "pessimism", pairs, str(epsilon))
    counts = complexity.preference_counts(rng, behavior, reward, pairs, lab.draws, flip)
    fitted = complexity.linear_estimate(counts, torch.eye(count, dtype=torch.float64), flip)
    careful = fitted - DISTRUST * privacy.standard_errors(counts, fitted, behavior, flip)
    args = torch.full((lab.draws, 1, count), 1 / count, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def _gaps(estimate: Tensor) -> np.ndarray:
        policy = exact.optimal_policy(*args, estimate, SHARP, RKL)
        return exact.regret(policy, *args, reward.expand_as(policy), SHARP, RKL).clamp(min=0.0).numpy()

    return _gaps(fitted), _gaps(careful)


def run(lab: Laboratory) -> Study:
    """Compare the sampling schemes, and count what private labels cost; every number is a float."""
    sharp = replace(linear_setting(lab), beta=SHARP)
    metrics: Metrics = {}
    stage_table = _over_pairs(lab, tabular(sharp, RARITIES[-1]), metrics)
    rarity_table = _over_rarity(lab, sharp, metrics)
    private_table = _private_table(lab, min(lab.n, 16384), metrics)
    pessimism_table = _pessimism_table(lab, metrics)
    return Study(
        "sampling",
        "Two-stage sampling and private labels",
        [conclusion(metrics)],
        [stage_table, rarity_table, private_table, pessimism_table],
        [_chart(lab, metrics)],
        metrics,
    )


def coverage_scale(setting: Setting) -> float:
    """eta^2 D^2 of arXiv 2411.04625, pairs until the second stage pays: eta = 1 / beta, D^2 of differences.

    With a free reward for each response D^2 = max_y (Delta(y) - mean)^2 / Var(Delta) = 1 / min q - 1 under q = M / F.
    """
    return (1 / float(setting.sampling(RKL).min()) - 1) / setting.beta**2


def _scaled(gaps: np.ndarray, pairs: int) -> dict[str, float]:
    mean, half = _summary(gaps, pairs)
    return metric(mean, mean - half, mean + half, len(gaps))


def _cell(value: dict[str, float]) -> str:
    return f"{value['mean']:.3g} ± {value['ci_high'] - value['mean']:.2g}"


def _over_pairs(lab: Laboratory, setting: Setting, metrics: Metrics) -> Table:
    metrics["two_stage/scale"] = metric(coverage_scale(setting))
    metrics["two_stage/one_stage_limit"] = metric(setting.predicted(RKL))
    rows = []
    for pairs in PAIRS:
        one, two = (_scaled(gaps, pairs) for gaps in stages(lab, setting, pairs, f"pairs {pairs}"))
        metrics |= {f"n_gap/one/n={pairs}": one, f"n_gap/two/n={pairs}": two}
        rows.append([pairs, _cell(one), _cell(two), one["mean"] / two["mean"]])
    return Table(
        f"n times the mean reverse-KL gap against n, tabular rewards, beta = {SHARP:g}, mass {RARITIES[-1]:g} on the "
        "best "
        f"response: η² D² = {metrics['two_stage/scale']['mean']:.3g}. Two-stage sampling draws half of the pairs "
        "from the "
        "policy fitted to the other half.",
        ["Pairs n", "One stage", "Two stages", "Ratio"],
        rows,
    )


def _over_rarity(lab: Laboratory, sharp: Setting, metrics: Metrics) -> Table:
    rows, pairs = [], PAIRS[-1]
    for mass in RARITIES:
        setting = tabular(sharp, mass)
        one, two = (_scaled(gaps, pairs) for gaps in stages(lab, setting, pairs, str(mass)))
        metrics |= {f"n_gap/one/mass={mass:g}": one, f"n_gap/two/mass={mass:g}": two}
        rows.append([mass, setting.coverage(RKL), _cell(one), _cell(two), one["mean"] / two["mean"],
                     setting.predicted(RKL)])  # fmt: skip
    return Table(
        f"The same at n = {pairs} pairs, against the mass of the best response.",
        ["Mass of the best response", "C", "One stage", "Two stages", "Ratio", "One stage, predicted"],
        rows,
    )


def _private_table(lab: Laboratory, pairs: int, metrics: Metrics) -> Table:
    setting = linear_setting(lab)
    clean, rows = setting.predicted(RKL), []
    for epsilon in BUDGETS:
        flip = privacy.flip_probability(epsilon)
        known, ignored = (_scaled(gaps, pairs) for gaps in private(lab, setting, pairs, epsilon))
        exact, law = setting.predicted(RKL, flip), clean * privacy.inflation(epsilon)
        both = {"known": known, "ignored": ignored, "predicted": metric(exact), "law": metric(law)}
        metrics |= {f"private/{name}/eps={epsilon:g}": value for name, value in both.items()}
        rows.append([epsilon, flip, _cell(known), _cell(ignored), exact, law])
    small = [epsilon for epsilon in BUDGETS if epsilon <= 1]
    strength = np.log(np.expm1(small))
    for name, key in (("known", "private/slope"), ("law", "private/law_slope")):
        costs = [np.log(metrics[f"private/{name}/eps={e:g}"]["mean"]) for e in small]
        metrics[key] = metric(float(np.polyfit(strength, costs, 1)[0]))
    return Table(
        f"n times the mean reverse-KL gap with labels flipped by randomized response, n = {pairs}, beta = "
        f"{lab.beta:g}.",
        ["ε", "Flip probability", "Flips known", "Flips ignored", "Predicted, known", "((e^ε+1)/(e^ε−1))² law"],
        rows,
    )


def _pessimism_table(lab: Laboratory, metrics: Metrics) -> Table:
    rows = []
    for pairs in (FEW, MANY):
        for epsilon in BUDGETS:
            cells = []
            for name, gaps in zip(("likelihood", "pessimism"), pessimism(lab, pairs, epsilon)):
                half = 1.96 * float(gaps.std()) / np.sqrt(len(gaps))
                mean = float(gaps.mean())
                found = metric(mean, mean - half, mean + half, len(gaps))
                metrics[f"{name}/n={pairs}/eps={epsilon:g}"] = found
                cells.append(_cell(found))
            rows.append([pairs, epsilon, *cells])
    small = [epsilon for epsilon in BUDGETS if epsilon <= 1]
    for name in ("likelihood", "pessimism"):
        costs = [np.log(metrics[f"{name}/n={MANY}/eps={e:g}"]["mean"]) for e in small]
        metrics[f"{name}/slope"] = metric(float(np.polyfit(np.log(np.expm1(small)), costs, 1)[0]))
    return Table(
        f"Mean reverse-KL gap where the data cover the two good responses and each bad one with mass {RARE:g}, labels "
        f"flipped and the flips known, beta = {SHARP:g}: maximum likelihood, and the same less {DISTRUST:g} standard "
        "errors of each reward.",
        ["Pairs n", "ε", "Likelihood", "Pessimism"],
        rows,
    )


def _summary(gaps: np.ndarray, pairs: int) -> tuple[float, float]:
    return float(pairs * gaps.mean()), float(1.96 * pairs * gaps.std() / np.sqrt(len(gaps)))


def conclusion(metrics: Metrics) -> str:
    """What the numbers say, each sentence with its other branch; metrics are scalars."""
    parts = (_stages, _coverage, _labels, _ignored, _pessimism)
    return " ".join(part(metrics) for part in parts)


def _pessimism(metrics: Metrics) -> str:
    plain, careful = (metrics[f"{name}/n={FEW}/eps=1"] for name in ("likelihood", "pessimism"))
    said = f"Where the data cover the good responses alone ({FEW} pairs, ε = 1), "
    if careful["ci_high"] >= plain["ci_low"]:
        said += "that pessimism loses less than maximum likelihood is not seen at these settings"
    else:
        said += f"pessimism loses {interval(careful, '.2g')}, maximum likelihood {interval(plain, '.2g')}"
    slopes = [metrics[f"{name}/slope"] for name in ("pessimism", "likelihood")]
    lawful = metrics["private/law_slope"]["mean"]
    seen = "as the law has it" if follows(slopes[0], lawful) else "where the law (not seen at these settings) has"
    return (
        f"{said}; with {MANY} pairs its gap follows e^ε − 1 with slope {slopes[0]['mean']:+.2f} for ε up to 1, {seen} "
        f"({lawful:+.2f}; −2 as ε → 0), that of maximum likelihood with {slopes[1]['mean']:+.2f}."
    )


def _means(metrics: Metrics, name: str, values: tuple, key: str) -> list[float]:
    return [metrics[f"{name}/{key}={value:g}" if key != "n" else f"{name}/n={value}"]["mean"] for value in values]


def _stages(metrics: Metrics) -> str:
    one, two = (_means(metrics, f"n_gap/{name}", PAIRS, "n") for name in ("one", "two"))
    ratio = [a / b for a, b in zip(one, two)]
    scale = metrics["two_stage/scale"]["mean"]
    said = (
        "Pairs drawn from the policy fitted to a first half ease poor coverage without any exploration bonus "
        "(2411.04625; "
        f"here the mixed reference is the first sampler): the gap of one stage is {ratio[0]:.1f} times that of two "
        "at n = "
        f"{PAIRS[0]} and {ratio[-1]:.1f} times at n = {PAIRS[-1]} (η² D² = {scale:.2g}); "
    )
    if ratio[-1] < 1.1:
        return said + "that two stages help is not seen at these settings."
    settled = max(two[-3:]) / min(two[-3:]) < SETTLED
    return said + (
        f"n × gap of two stages has come to a constant, {two[-1]:.2g}, so that smaller ratios at smaller n are burn-in."
        if settled
        else "n × gap of two stages has not come to a constant at these settings."
    )


def _coverage(metrics: Metrics) -> str:
    factor = [max(x) / min(x) for x in (_means(metrics, f"n_gap/{name}", RARITIES, "mass") for name in ("one", "two"))]
    less = "less" if factor[1] < factor[0] else "no less (not seen at these settings)"
    return (
        f"At n = {PAIRS[-1]} the mass of the best response changes n × gap by a factor {factor[0]:.1f} with one "
        "stage and "
        f"{factor[1]:.1f} with two: with two stages coverage matters {less}."
    )


def _labels(metrics: Metrics) -> str:
    known, law = (_means(metrics, f"private/{name}", BUDGETS, "eps") for name in ("known", "law"))
    worst = max(max(a / b, b / a) for a, b in zip(known, law))
    near = "multiplies" if worst < 1.3 else "is predicted, but not seen at these settings, to multiply"
    slope, lawful = metrics["private/slope"], metrics["private/law_slope"]["mean"]
    rate = "as the law has it there" if follows(slope, lawful) else "where the law (not seen at these settings) has"
    return (
        f"Randomized response {near} the pairs needed by ((e^ε+1)/(e^ε−1))² (derived for labels near coin flips; "
        "measured "
        f"within a factor {worst:.2f}) if the likelihood knows the flips; log-log slope in e^ε − 1 for ε up to 1: "
        f"{slope['mean']:+.2f}, {rate} ({lawful:+.2f}; the −2 of 2510.13512 as ε → 0; its optimism online is not "
        "measured here)."
    )


def _ignored(metrics: Metrics) -> str:
    known, ignored = (metrics[f"private/{name}/eps=1"] for name in ("known", "ignored"))
    if ignored["ci_low"] <= known["ci_high"]:
        return "That ignoring the flips costs more than knowing them is not seen at these settings."
    return (
        f"Ignoring them leaves a bias that n cannot remove: at ε = 1 n × gap is {interval(ignored, '.3g')} for "
        f"{interval(known, '.3g')}."
    )


def _band(label: str, metrics: Metrics, keys: list[str], x: list[float], series: int) -> Line:
    values = [metrics[key] for key in keys]
    low, high = [max(v["ci_low"], 0.2 * v["mean"]) for v in values], [v["ci_high"] for v in values]
    return Line(label, x, [v["mean"] for v in values], "measured", series, low, high)


def _chart(lab: Laboratory, metrics: Metrics) -> Chart:
    pairs, epsilon, scale = [float(n) for n in PAIRS], list(BUDGETS), metrics["two_stage/scale"]["mean"]
    first = [
        _band(f"{name} stage", metrics, [f"n_gap/{name}/n={n}" for n in PAIRS], pairs, i)
        for i, name in enumerate(("one", "two"))
    ]
    lowest = min(min(line.y) for line in first)
    first += [
        Line("one stage, limit", pairs, [metrics["two_stage/one_stage_limit"]["mean"]] * len(pairs), "predicted"),
        Line("η² D²", [scale, scale], [lowest, 2 * lowest], "predicted"),
    ]
    rarity = [1 / mass for mass in RARITIES]
    second = [
        _band(f"{name} stage", metrics, [f"n_gap/{name}/mass={mass:g}" for mass in RARITIES], rarity, i)
        for i, name in enumerate(("one", "two"))
    ]
    third = [
        _band(f"flips {name}", metrics, [f"private/{name}/eps={e:g}" for e in BUDGETS], epsilon, i)
        for i, name in enumerate(("known", "ignored"))
    ]
    third.append(Line("limit", epsilon, _means(metrics, "private/predicted", BUDGETS, "eps"), "predicted"))
    return Chart(
        "sampling",
        f"Two-stage sampling (arXiv 2411.04625), {lab.draws} data sets a point, beta = {SHARP:g}; left: against n, "
        "mass "
        f"{RARITIES[-1]:g} on the best response, η² D² marked; middle: against the mass of the best response, n = "
        f"{PAIRS[-1]}. {_coverage(metrics)} Right: labels made private by randomized response (arXiv 2510.13512). "
        f"{_ignored(metrics)}",
        [
            Panel("Two stages against n", "preference pairs n", "n × gap", first, x_scale="log", y_scale="log"),
            Panel("Two stages and coverage", "1 / probability of the best response", "n × gap", second,
                  x_scale="log", y_scale="log"),
            Panel("What private labels cost", "privacy budget ε", "n × gap", third, x_scale="log", y_scale="log"),
        ],
        columns=3,
    )  # fmt: skip
