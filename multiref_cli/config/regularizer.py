"""What pulls a policy towards its references: the orders of mean and score, where they act, and the name they have."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Optional

from omegaconf import MISSING

from multiref_cli.config.plain import LATER
from multiref_cli.config.ranges import COUNT_OR_0, number
from multiref_cli.config.terms import DivergenceTerm, Mix, Term, summands

__all__ = ["Ctro", "DivergenceTerm", "Estimator", "Level", "Mix", "Regularizer", "States", "Term"]


class Level(Enum):
    """Where the mean over references is taken: over whole responses (the theorems) or at every token."""

    sequence = "sequence"
    token = "token"


class Estimator(Enum):
    """How the online penalty is estimated; each has its own gradient (see objectives/penalty.py)."""

    reward = "reward"
    exact = "exact"
    topk = "topk"
    k2 = "k2"
    k3 = "k3"
    k3_ratio = "k3_ratio"
    clipped = "clipped"

    @property
    def in_reward(self) -> bool:
        """Whether the penalty is part of the reward of a whole response, not a loss term at each token."""
        return self in (Estimator.reward, Estimator.clipped)

    @property
    def beside(self) -> bool:
        """Whether the references are asked in the policy's own pass, at more tokens than the sampled ones."""
        return self in (Estimator.exact, Estimator.topk)


class States(Enum):
    """Whose responses the penalty is measured on."""

    policy = "policy"
    reference = "reference"


# (order of the mean, order of the score) -> the name that the field has for it.
_NAMES = {(0.0, 0.0): "rkl", (1.0, 1.0): "fkl", (0.5, 0.5): "hellinger", (-1.0, -1.0): "chi2", (-1.0, 0.0): "mrpo"}


class Arwc(Enum):
    """MRPO's adaptive reference weights (arXiv 2405.16388), as printed or as in the authors' code."""

    paper = "paper"
    authors = "authors"


@dataclass(frozen=True)
class Ctro:
    """MRPO's clipped trust-region on the references (arXiv 2405.16388)."""

    epsilon: float = number("[0, 1]", 0.1)
    adaptive: bool = False
    anchor: Optional[str] = None


@dataclass(frozen=True)
class Regularizer:
    """E[r] - beta sum_i alpha_i D_A(pi_i || pi) where both orders are A, or any sum of divergences (`terms`).

    See conf/regularizer/_base.yaml; of orders and terms one is given, the other None and empty.

    `name` is an alias: what the file of conf/regularizer calls itself whose numbers these are, else `derived_name`.
    """

    mean_order: Optional[float] = number("[-100, 100]", MISSING)
    score_order: Optional[float] = number("[-100, 100]", MISSING)
    terms: list[DivergenceTerm] = field(default_factory=list)
    level: Level = Level.sequence
    estimator: Optional[Estimator] = None
    normalized: bool = True
    states: States = States.policy
    score_clip: float = number("[0, 80]", 10.0, note="0 is off")
    ratio_clip: Optional[float] = number("(0, 1e6]", None)
    topk: int = number(COUNT_OR_0, 32, note="0 is the sampled token alone", later=True)
    signed: bool = False
    to_go: Optional[bool] = None
    ctro: Optional[Ctro] = None
    arwc: Optional[Arwc] = None
    multi_loss: bool = False
    only_failed: bool = field(default=False, metadata=LATER)
    mask_special: bool = field(default=False, metadata=LATER)
    name: Optional[str] = None

    @property
    def title(self) -> str:
        """What it is called in names, tables and figures."""
        return self.name or self.derived_name

    @property
    def derived_name(self) -> str:
        """The name that the numbers have: rkl, fkl_token, mrpo_ctro_adaptive, power0.25, mean-1_score1, ..."""
        parts = ["+".join(term.title for term in self.terms) or self._orders_name()]
        if self.multi_loss:
            parts = ["multi_dpo"] if parts == ["rkl"] else ["multi_dpo", *parts]
        if self.ctro is not None:
            parts.append("ctro_adaptive" if self.ctro.adaptive else "ctro")
        if self.arwc:
            parts.append("arwc" if self.arwc is Arwc.paper else "arwc_authors")
        if self.level is Level.token:
            parts.append("token" if self.normalized else "token_unnormalized")
        if self.states is States.reference:
            parts.append("reference_states")
        if self.only_failed:
            parts.append("failed")
        if self.mask_special:
            parts.append("no_special")
        return "_".join(parts)

    def _orders_name(self) -> str:
        mean, score = self._orders
        own = f"power{mean:g}" if mean == score else f"mean{mean:g}_score{score:g}"
        return "extrapolate" if self.signed else _NAMES.get((mean, score), own)

    @property
    def _orders(self) -> tuple[float, float]:
        if self.mean_order is None or self.score_order is None:
            raise ValueError("a regularizer of terms has no orders")
        return float(self.mean_order), float(self.score_order)

    @property
    def score(self) -> float | str:
        """What is charged for a log ratio: the order of the score, or the terms' title."""
        return "+".join(term.title for term in self.terms) or self._orders[1]

    @property
    def description(self) -> str:
        """Its mathematics in words, for reports."""
        if self.terms:
            return f"terms {', '.join(term.title for term in self.terms)}"
        return f"order of the mean {self.mean_order:g}, of the score {self.score_order:g}"

    @property
    def plain_order(self) -> float | None:
        """A where it is one Amari divergence of order A, the same from every reference; else None."""
        if not self.terms:
            mean, score = self._orders
            return mean if mean == score else None
        only = self.terms[0]
        alone = len(self.terms) == 1 and only.problem() is None
        plain = alone and only.reference is None and only.weight == 1 and len(only.parts) == 1
        return only.parts[0][0] if plain and only.parts[0][1] == 1 else None

    @property
    def canonical(self) -> "Regularizer":
        """The same with orders in place of terms where these are one Amari divergence from every reference."""
        order = self.plain_order if self.terms else None
        return self if order is None else replace(self, terms=[], mean_order=order, score_order=order)

    def summands(self, names: Sequence[str], start: str | None, weights: Sequence[float]) -> tuple[Term, ...]:
        """The summands of the penalty towards K references of these names and weights; `start` is the policy's own.

        Over whole responses parts of one order are one mean; token by token each reference keeps its own, because
        there a mean is divided by its sum over the vocabulary, and a sum of divergences is not.
        """
        if self.terms:
            return summands(self.terms, names, start, weights, collapse=self.level is Level.sequence)
        mean, score = self._orders
        return (Term(score, Mix(mean, tuple(weights))),)

    @property
    def mixes_whole_vocabulary(self) -> bool:
        """Whether its mixed reference is divided by a sum over the vocabulary at every token."""
        return self.level is Level.token and self.normalized

    @property
    def usual_estimator(self) -> Estimator:
        """The online estimator where none is named: exact where the penalty is a sum over tokens, else in the reward.

        At level sequence only the reverse KL of whole responses is such a sum.
        """
        additive = self.level is Level.token or self.mean_order == self.score_order == 0
        return Estimator.exact if additive else Estimator.reward
