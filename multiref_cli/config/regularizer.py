"""What pulls a policy towards its references: the orders of mean and score, where they act, and the name they have."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Optional

from omegaconf import MISSING

from multiref_cli.config.ranges import number


class Level(Enum):
    """Where the mean over references is taken: over whole responses (the theorems) or at every token."""

    sequence = "sequence"
    token = "token"


class Estimator(Enum):
    """How the online penalty is estimated; each has its own gradient (see objectives/penalty.py)."""

    reward = "reward"
    exact = "exact"
    k2 = "k2"
    k3 = "k3"
    k3_ratio = "k3_ratio"
    clipped = "clipped"

    @property
    def in_reward(self) -> bool:
        """Whether the penalty is part of the reward of a whole response, not a loss term at each token."""
        return self in (Estimator.reward, Estimator.clipped)


class States(Enum):
    """Whose responses the penalty is measured on."""

    policy = "policy"
    reference = "reference"


@dataclass(frozen=True)
class Mix:
    """K references seen as one policy: the order A of their power mean, and the weight of each, 0 allowed."""

    order: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Term:
    """One summand w s_A(log pi - log M) of the penalty: implicit reward, penalty and optimum are beta times their sum.

    Attributes:
        score_order: A of the score.
        mix: the mixed reference M; references that the term does not concern have weight 0 in it.
        weight: w.
    """

    score_order: float
    mix: Mix
    weight: float = 1.0


# (order of the mean, order of the score) -> the name that the field has for it.
_NAMES = {(0.0, 0.0): "rkl", (1.0, 1.0): "fkl", (0.5, 0.5): "hellinger", (-1.0, -1.0): "chi2", (-1.0, 0.0): "mrpo"}


@dataclass(frozen=True)
class Ctro:
    """MRPO's clipped trust-region on the references (arXiv 2405.16388)."""

    epsilon: float = number("[0, 1]", 0.1)
    adaptive: bool = False
    anchor: Optional[str] = None


@dataclass(frozen=True)
class Regularizer:
    """E[r] - beta sum_i alpha_i D_A(pi_i || pi) where both orders are A; see conf/regularizer/_base.yaml.

    `name` is an alias: what the file of conf/regularizer calls itself whose numbers these are, else `derived_name`.
    """

    mean_order: float = number("[-100, 100]", MISSING)
    score_order: float = number("[-100, 100]", MISSING)
    level: Level = Level.sequence
    estimator: Optional[Estimator] = None
    normalized: bool = True
    states: States = States.policy
    score_clip: float = number("[0, 80]", 10.0, note="0 is off")
    ratio_clip: Optional[float] = number("(0, 1e6]", None)
    to_go: Optional[bool] = None
    ctro: Optional[Ctro] = None
    arwc: bool = False
    multi_loss: bool = False
    name: Optional[str] = None

    @property
    def title(self) -> str:
        """What it is called in names, tables and figures."""
        return self.name or self.derived_name

    @property
    def derived_name(self) -> str:
        """The name that the numbers have: rkl, fkl_token, mrpo_ctro_adaptive, power0.25, mean-1_score1, ..."""
        orders = (float(self.mean_order), float(self.score_order))
        own = f"power{orders[0]:g}" if orders[0] == orders[1] else f"mean{orders[0]:g}_score{orders[1]:g}"
        parts = [_NAMES.get(orders, own)]
        if self.multi_loss:
            parts = ["multi_dpo"] if parts == ["rkl"] else ["multi_dpo", *parts]
        if self.ctro is not None:
            parts.append("ctro_adaptive" if self.ctro.adaptive else "ctro")
        if self.arwc:
            parts.append("arwc")
        if self.level is Level.token:
            parts.append("token" if self.normalized else "token_unnormalized")
        if self.states is States.reference:
            parts.append("reference_states")
        return "_".join(parts)

    def terms(self, weights: Sequence[float]) -> tuple[Term, ...]:
        """The summands of the penalty towards K references of these weights; one for every pair of orders."""
        return (Term(float(self.score_order), Mix(float(self.mean_order), tuple(weights))),)

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
