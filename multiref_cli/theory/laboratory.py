"""The laboratory: runs the chosen studies one after the other; every number depends on the settings alone."""

import importlib
from collections.abc import Callable, Iterator

from multiref_cli.errors import RequestError
from multiref_cli.theory.findings import Study
from multiref_cli.theory.settings import Laboratory

STUDIES = {
    "exact_solutions": "one family of regularizers, surrogates and their regret (Theorems 5.1, 6.1)",
    "alpha": "the value is convex in alpha (Remark D.4)",
    "autoregressive": "sequence level against token level on enumerable trees",
    "violations": "every bound over random problems",
    "sample_complexity": "gaps against n with their bounds and slopes (Theorems 5.2, 5.3, 6.2, 6.3)",
    "effects": "K, alpha, gamma, coverage, R_max",
    "sampling": "two-stage sampling (2411.04625), private labels (2510.13512)",
    "clipped": "clipped log-ratios (2602.21765)",
    "games": "Nash equilibria of general preferences (2602.23116)",
}


def check(lab: Laboratory) -> None:
    """Refuse settings that no study can work with; every number in them is a scalar.

    Raises:
        RequestError: naming the key, what was given and what is allowed.
    """
    unknown = [part for part in lab.study.parts if part not in STUDIES]
    if unknown:
        raise RequestError(f"study.parts has {unknown[0]!r}; allowed: {', '.join(STUDIES)}.")
    least = {"problems": 1, "n": 64, "draws": 20, "responses": 4, "dimension": 1, "class_size": 2, "vocabulary": 2,
             "length": 1, "trees": 2}  # fmt: skip
    for key, smallest in least.items():
        if getattr(lab, key) < smallest:
            raise RequestError(f"{key}={getattr(lab, key)} is too small; give {key}={smallest} or more.")
    if lab.vocabulary**lab.length > 20_000:
        raise RequestError(
            f"vocabulary={lab.vocabulary} and length={lab.length} make {lab.vocabulary**lab.length} sequences to "
            "enumerate; keep vocabulary^length at 20000 or less."
        )
    for key in ("beta", "reward_max", "distance"):
        if not getattr(lab, key) > 0:
            raise RequestError(f"{key}={getattr(lab, key)} has to be positive.")
    if not 0 < lab.delta < 1:
        raise RequestError(f"delta={lab.delta} is a probability strictly between 0 and 1.")
    _check_alpha(lab.alpha)


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
    """Introduction of the report: what was derived, and what disagrees with the paper; Markdown of a list of studies.

    Args:
        studies: finished studies, any number.

    Returns:
        Markdown text; names no shape, holds scalars only.
    """
    names = "\n".join(f"- **{study.title}**: {STUDIES[study.name]}" for study in studies)
    return (
        "Every statement here is computed on finite spaces in float64: optima are exact, data are simulated, gaps are "
        "measured without sampling error in the policy. The paper is arXiv 2502.01203; *derived* marks what goes "
        f"beyond it.\n\n{names}"
    )
