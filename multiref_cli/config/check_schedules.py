"""Rules of the schedules of beta and alpha: what leads nowhere, or needs what the run does not measure or hold."""

from typing import TYPE_CHECKING

from multiref_cli.config.regularizer import Level, States
from multiref_cli.config.schedules import ALPHA_KINDS, BETA_KINDS, CONSTANT, TARGET_KL, BetaSchedule
from multiref_cli.config.weights import weights_of
from multiref_cli.errors import require

if TYPE_CHECKING:
    from multiref_cli.config.schema import Experiment


def check_schedules(experiment: "Experiment") -> None:
    """Refuse schedules that have no meaning.

    Raises:
        RequestError: naming the key.
    """
    beta, alpha = experiment.beta_schedule, experiment.alpha_schedule
    for key, one, kinds in (("beta", beta, BETA_KINDS), ("alpha", alpha, ALPHA_KINDS)):
        allowed = ", ".join(kinds)
        require(one is None or one.kind in kinds, f"{key}_schedule.kind is {one and one.kind!r}; allowed: {allowed}")
    moves = any(one is not None and one.kind != CONSTANT for one in (beta, alpha))
    require(
        experiment.penalized or not moves,
        "a schedule moves the weights of a penalty, and there is none: give beta above 0 and an algorithm with "
        "references",
    )
    if experiment.moving_beta is not None:
        _check_beta(experiment, experiment.moving_beta)
    if alpha is not None and alpha.kind != CONSTANT:
        _check_alpha(experiment, alpha.end)


def _check_beta(experiment: "Experiment", schedule: BetaSchedule) -> None:
    led, rollout = schedule.kind == TARGET_KL, experiment.rollout
    wanted, idle = ("target", "end") if led else ("end", "target")
    require(getattr(schedule, wanted) is not None, f"beta_schedule.kind={schedule.kind} needs beta_schedule.{wanted}")
    require(getattr(schedule, idle) is None, f"beta_schedule.{idle} has no meaning beside kind={schedule.kind}")
    require(
        experiment.algorithm.rewarded or schedule.end != 0,
        "beta_schedule.end is 0, where nothing is left to learn from; give a number above 0",
    )
    own = experiment.penalty.states is States.policy and experiment.taught < rollout.group_size
    require(
        not led or (experiment.algorithm.online and own and not rollout.truncated),
        "beta_schedule.kind=target_kl follows the KL of the policy's own responses: give algorithm=grpo or distill, "
        "regularizer.states=policy, and rollout.top_p, top_k and min_p that leave nothing out",
    )


def _check_alpha(experiment: "Experiment", end: object) -> None:
    r = experiment.penalty
    require(end is not None, "alpha_schedule needs its end, weights as alpha has them")
    require(len(experiment.references) > 1, "alpha_schedule moves weights between references, and there is one")
    require(experiment.routes is None, "alpha.by gives rows weights of their own; alpha_schedule moves one alpha")
    weights_of(end, len(experiment.references), r.signed)
    require(
        not (r.ctro or r.arwc),
        "ctro and arwc change the references by alpha before training; alpha_schedule moves it while training lasts",
    )
    require(
        experiment.algorithm.online or r.level is Level.sequence,
        "offline a token-level mean needs its sum over the vocabulary at every token for every alpha: with "
        "alpha_schedule give level=sequence, or algorithm=grpo",
    )
