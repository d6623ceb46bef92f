"""Summands of a penalty: which divergence, from which references, with which weight; and when several are one mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from omegaconf import MISSING

from multiref_cli.config.ranges import number

# Name -> Amari's divergences that it is the sum of, (order, coefficient) each; empty where it is no such sum, and then
# objectives/divergence.py has a class of it. A new divergence is a row here.
DIVERGENCES: dict[str, tuple[tuple[float, float], ...]] = {
    "reverse_kl": ((0.0, 1.0),),
    "forward_kl": ((1.0, 1.0),),
    "jensen_shannon": (),
    "chi_po": ((0.0, 1.0), (-1.0, 1.0)),
    "jeffreys": ((0.0, 1.0), (1.0, 1.0)),
}
# What a term may say in place of a reference's name.
START, OTHERS = "start", "others"
_TITLES = {"jensen_shannon": "js", "chi_po": "chipo"}


@dataclass(frozen=True)
class Mix:
    """K references seen as one policy: the order A of their power mean, and the weight of each, 0 allowed."""

    order: float
    weights: tuple[float, ...]

    @property
    def signed(self) -> bool:
        """Whether some weight is negative."""
        return any(weight < 0 for weight in self.weights)

    @property
    def only(self) -> int | None:
        """Number of the reference that has all the weight, if one has."""
        kept = [i for i, weight in enumerate(self.weights) if weight != 0]
        return kept[0] if len(kept) == 1 else None


@dataclass(frozen=True)
class Term:
    """One summand w s(log pi - log M) of the penalty: implicit reward, penalty and optimum are beta times their sum.

    Attributes:
        score: A of the score s_A, or the name of a divergence that is no sum of Amari's.
        mix: the mixed reference M; references that the term does not concern have weight 0 in it.
        weight: w.
    """

    score: float | str
    mix: Mix
    weight: float = 1.0


@dataclass(frozen=True)
class DivergenceTerm:
    """sum_i alpha_i weight D(pi || pi_i) over some references; see conf/regularizer/_base.yaml."""

    divergence: str = MISSING
    order: Optional[float] = number("[-100, 100]", None)
    reference: Optional[str] = None
    weight: float = number("(0, 1e6]", 1.0)

    @property
    def parts(self) -> tuple[tuple[float, float], ...]:
        """Amari's divergences that it is the sum of, (order, coefficient) each; empty where it is no such sum."""
        return ((float(self.order), 1.0),) if self.order is not None else DIVERGENCES[self.divergence]

    @property
    def title(self) -> str:
        """What it is called in names: js, 2xjeffreys, reverse_kl.start, amari0.5."""
        name = _TITLES.get(self.divergence, self.divergence) + ("" if self.order is None else f"{self.order:g}")
        factor = "" if self.weight == 1 else f"{self.weight:g}x"
        return factor + name + ("" if self.reference is None else f".{self.reference}")

    def problem(self) -> str | None:
        """What is wrong with it, whatever the references; None if nothing is."""
        if self.divergence == "total_variation":
            return "total_variation has a score of slope zero almost everywhere, which trains nothing"
        if self.divergence not in (*DIVERGENCES, "amari"):
            return f"divergence {self.divergence!r} is unknown; allowed: {', '.join(DIVERGENCES)}, amari"
        if (self.divergence == "amari") != (self.order is not None):
            return f"amari needs an order and only amari has one, not {self.divergence} with order {self.order}"
        return None if self.weight > 0 else f"the weight of {self.divergence} is {self.weight:g}; it must be above 0"

    def concerns(self, names: Sequence[str], start: str | None) -> list[bool]:
        """For each of K references whether it is one of the term's.

        Args:
            names: of the references.
            start: name of the one that the policy starts from.
        """
        wanted = start if self.reference == START else self.reference
        if self.reference == OTHERS:
            return [name != start for name in names]
        return [wanted is None or name == wanted for name in names]


def summands(
    given: Sequence[DivergenceTerm], names: Sequence[str], start: str | None, weights: Sequence[float], collapse: bool
) -> tuple[Term, ...]:
    """The summands that some terms stand for.

    The parts of one order A are one summand: sum_i b_i s_A(log pi - log pi_i) = b s_A(log pi - log M_A) with the power
    mean of weights b_i / b, b = sum_i b_i (Nagumo, de Finetti: of no other divergence). What is no sum of Amari's
    divergences has one summand a reference.

    Args:
        given: the terms, none with a `problem`.
        names: of K references.
        start: name of the one that the policy starts from, None if it is none of them.
        weights: K weights alpha.
        collapse: make one summand of the parts of one order; else one a reference.
    """
    factors: dict[float | str, list[float]] = {}
    for term in given:
        for score, coefficient in term.parts or ((term.divergence, 1.0),):
            row = factors.setdefault(score, [0.0] * len(names))
            for i, concerned in enumerate(term.concerns(names, start)):
                row[i] += term.weight * coefficient * concerned
    found: list[Term] = []
    for score, row in factors.items():
        if isinstance(score, str) or not collapse:
            order = 0.0 if isinstance(score, str) else score
            ones = [tuple(float(i == k) for k in range(len(names))) for i in range(len(names))]
            found += [Term(score, Mix(order, one), f * w) for one, f, w in zip(ones, row, weights) if f * w != 0]
            continue
        total = sum(f * w for f, w in zip(row, weights))
        if len(set(row)) == 1 and row[0] > 0:
            found.append(Term(score, Mix(score, tuple(weights)), row[0]))
        elif total != 0:
            found.append(Term(score, Mix(score, tuple(f * w / total for f, w in zip(row, weights))), total))
    return tuple(found)
