"""The laboratory: runs the chosen studies one after the other; every number depends on the settings alone."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import fields

from multiref_cli.config.ranges import check_numbers
from multiref_cli.errors import RequestError
from multiref_cli.theory.findings import Metrics, Study
from multiref_cli.theory.settings import Laboratory

STUDIES = {
    "exact_solutions": "one family of regularizers, surrogates and their regret (Theorems 5.1, 6.1)",
    "divergences": "any divergence, or your own: exact optima, shape, support, DPO's equality, regrets",
    "alpha": "choosing alpha by the value, the normalized value, held-out reward (Remark D.4)",
    "autoregressive": "sequence level against token level on enumerable trees",
    "estimators": "estimators of the online penalty: where they rest, regret, gradient variance",
    "violations": "every bound over random problems",
    "sample_complexity": "gaps against n with their bounds and slopes (Theorems 5.2, 5.3, 6.2, 6.3)",
    "effects": "K, alpha, gamma, coverage, R_max",
    "sampling": "two-stage sampling (2411.04625), private labels and pessimism (2510.13512)",
    "clipped": "clipped log-ratios, reward shift, budget (2602.21765)",
    "games": "Nash equilibria of general preferences, given and learned (2602.23116)",
}


def check(lab: Laboratory) -> None:
    """Refuse settings that no study can work with; every number in them is a scalar.

    Raises:
        RequestError: naming the key, what was given and what is allowed.
    """
    unknown = [part for part in lab.study.parts if part not in STUDIES]
    if unknown:
        raise RequestError(f"study.parts has {unknown[0]!r}; allowed: {', '.join(STUDIES)}.")
    check_numbers(lab)
    if lab.vocabulary**lab.length > 20_000:
        raise RequestError(
            f"vocabulary={lab.vocabulary} and length={lab.length} make {lab.vocabulary**lab.length} sequences to "
            "enumerate; keep vocabulary^length at 20000 or less."
        )
    entries = lab.trees * lab.vocabulary ** (lab.length + 1) * lab.length
    if "estimators" in (lab.study.parts or STUDIES) and entries > 30_000_000:
        raise RequestError(
            f"trees={lab.trees}, vocabulary={lab.vocabulary} and length={lab.length} make {entries} "
            "probabilities for the study estimators; keep trees * length * vocabulary^(length + 1) at 30000000 or less."
        )
    _check_alpha(lab.alpha)
    _check_reads(lab)
    if lab.divergence is not None or lab.terms:
        from multiref_cli.theory.studies.divergences import asked

        asked(lab)


def reads(study: str) -> tuple[str, ...]:
    """Settings that a study reads, by name, as it says itself; every study has the seed."""
    return importlib.import_module(f"multiref_cli.theory.studies.{study}").READS


def _check_reads(lab: Laboratory) -> None:
    # A setting that was changed and acts on nothing would be a silent lie in the report.
    chosen = lab.study.parts or list(STUDIES)
    known = {key for study in chosen for key in reads(study)} | {"study", "seed", "run"}
    default = Laboratory()
    for key in (field.name for field in fields(lab)):
        if key not in known and getattr(lab, key) != getattr(default, key):
            allowed = ", ".join(sorted(known - {"study", "run"}))
            raise RequestError(
                f"{key}={getattr(lab, key)} has no effect on study {' and '.join(chosen)}; it reads {allowed}."
            )


def _check_alpha(alpha: object) -> None:
    if isinstance(alpha, (int, float)):
        if not 0 <= alpha <= 1:
            raise RequestError(f"alpha={alpha} is the weight of the first of two references: from 0 to 1.")
        return
    values = [float(a) for a in alpha] if isinstance(alpha, (list, tuple)) else []
    if len(values) < 2 or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise RequestError(f"alpha={alpha} has to be a number from 0 to 1, or a list of weights that sum to one.")


def run(lab: Laboratory) -> Iterator[Study]:
    """Run the chosen studies in order, all of them if none is chosen.

    Args:
        lab: settings; numbers in them are scalars.

    Yields:
        Study, as each is finished.
    """
    check(lab)
    for name in lab.study.parts or STUDIES:
        study: Callable[[Laboratory], Study] = importlib.import_module(f"multiref_cli.theory.studies.{name}").run
        yield study(lab)


def summary(studies: list[Study]) -> str:
    """Introduction of the report: the headline numbers of the studies that were run; Markdown.

    Args:
        studies: finished studies, any number; their metrics are scalars.

    Returns:
        Markdown text.
    """
    lines = [line for study in studies for line in _HEADLINES.get(study.name, lambda _: [])(study.metrics)]
    return (
        "Every statement here is computed on finite spaces in float64: optima are exact, data are simulated, gaps are "
        "measured without sampling error in the policy. The paper is arXiv 2502.01203; *derived* marks what goes "
        "beyond it.\n\n" + "\n".join(f"- {line}" for line in lines)
    )


def _violations(metrics: Metrics) -> list[str]:
    small, derived = (metrics[f"small_reward/{k}/R=0.001"]["mean"] for k in ("Lemma B.1", "derived constants"))
    return [
        f"**{metrics['violations/all']['mean']:.0f} violations** of any bound over {metrics['violations/all']['n']} "
        "random problems.",
        f"Lemma B.1 as recovered here, without R_max ≥ 1, is exceeded on {100 * small:.0f} % of data sets when "
        "rewards are "
        f"tiny (R_max = 0.001, n = 10,000), the constants derived here on {100 * derived:.0f} %.",
    ]


def _slopes(metrics: Metrics) -> list[str]:
    names = {"5.2/reverse KL, regularized gap": "−1 promised", "5.3/reverse KL, reward gap": "−1/2 promised",
             "6.2/forward KL, regularized gap": "−1/2 promised"}  # fmt: skip
    slopes = {name: metrics[f"slope/{name}, linear class"] for name in names}
    return [
        f"Slope of the {name.split('/')[1]} in n (linear class): {m['mean']:+.2f} "
        f"[{m['ci_low']:+.2f}, {m['ci_high']:+.2f}], {names[name]} by Theorem {name.split('/')[0]}."
        for name, m in slopes.items()
    ]


def _tree_regrets(metrics: Metrics) -> list[str]:
    shown = ", ".join(f"{metrics[f'regret/geometric/distance={d}']['mean']:.2g} at {d}" for d in ("0.4", "1", "3"))
    return [f"Mixing per token instead of per sequence costs, by distance of the references in nats: {shown}."]


def _surrogates(metrics: Metrics) -> list[str]:
    shown = ", ".join(f"{k.split('/')[1]} {m['mean']:.2g}" for k, m in metrics.items() if k.endswith("/distance=0.4"))
    return [f"Regret of stand-ins in the reverse-KL objective, references 0.4 apart: {shown}."]


def _interior(metrics: Metrics) -> list[str]:
    ways = ("objective", "normalized", "held_out")
    best = {w: max(m["mean"] for k, m in metrics.items() if f"/{w}/" in k) for w in ways}
    return [
        f"The best alpha mixes references in {100 * best['objective']:.0f} % of problems by the value of the sum of "
        f"divergences, which is convex in alpha; in {100 * best['normalized']:.0f} % by the normalized value; in up to "
        f"{100 * best['held_out']:.0f} % by held-out reward."
    ]


_HEADLINES: dict[str, Callable[[Metrics], list[str]]] = {
    "exact_solutions": _surrogates,
    "alpha": _interior,
    "autoregressive": _tree_regrets,
    "violations": _violations,
    "sample_complexity": _slopes,
}
