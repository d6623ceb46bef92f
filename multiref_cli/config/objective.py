"""Which objective a run really has: what its expected update vanishes at, said from its settings alone.

M[A] is the mean of order A of the references, F its sum over the vocabulary at a state, D[A] Amari's divergence.
"""

from multiref_cli.config.algorithms import DpoSettings, OnlineSettings
from multiref_cli.config.regularizer import Estimator, Level, Regularizer, States
from multiref_cli.config.schema import Experiment
from multiref_cli.config.terms import OTHERS, DivergenceTerm

_THEOREMS = {0.0: ", Theorem 5.1 of arXiv 2502.01203", 1.0: ", Theorem 6.1 of arXiv 2502.01203"}


def objective(experiment: Experiment) -> str:
    """One sentence: the objective whose optimum a run with these settings rests at, or that there is none.

    Args:
        experiment: with a penalty, beta above 0.
    """
    penalty, estimator = experiment.penalty, experiment.estimator
    if not experiment.algorithm.trains:
        return "none, nothing is trained"
    if estimator is None:
        return _offline(experiment, penalty)
    reward = "E[r] " if experiment.algorithm.rewarded else ""
    given = "" if experiment.to_go else ", states taken as given"
    if penalty.states is States.reference:
        return f"{reward}− β Σ α KL(πᵢ‖π), the forward KL on responses of the references" + _THEOREMS[1.0]
    if penalty.only_failed:
        return f"no objective's optimum: {_divergence(penalty)} on responses whose reward is too low alone{given}"
    if estimator.in_reward:
        found = reward + _over_responses(penalty)
        return found + (
            f", biased where |log ratio| > {_ratio_clip(penalty)}" if estimator is Estimator.clipped else ""
        )
    if estimator is Estimator.k3 and penalty.score != 1:
        return "no objective's optimum: k3 as a loss term descends the forward KL at each state" + given
    if not experiment.to_go:
        return f"no objective's optimum: {_divergence(penalty)} at each state{given}"
    if penalty.level is Level.sequence:
        return reward + _over_responses(penalty)
    return f"{reward}− β E[Σₜ {_divergence(penalty)}], token level"


def deviations(experiment: Experiment) -> list[str]:
    """Settings beside the penalty that move a run away from `objective`, a sentence each."""
    settings, found = experiment.algorithm, _moves(experiment)
    moving = [one.name for one in experiment.active_references if one.update is not None and one.update.kept < 1]
    if moving:
        found.append(
            f"{', '.join(moving)} moves with the policy: the objective is another one after every move, and the "
            "distance at the end is to where the reference began"
        )
    if not isinstance(settings, OnlineSettings):
        return found
    # The penalty is a loss term beside the reward, of this policy's responses or of stored ones.
    beside = experiment.in_loss or experiment.penalty.states is States.reference
    if beside and settings.rewarded:
        found += _weight_of_reward(settings, experiment.rollout.group_size - experiment.taught)
    if settings.loss_reduction == "grpo" and (beside or settings.baseline == "none"):
        found.append("loss_reduction=grpo divides each response by its length: short responses weigh more")
    if experiment.penalty.mask_special:
        found.append("special tokens are charged nothing: when to write one is learned from the rest alone")
    if experiment.taught:
        found.append(
            f"{experiment.taught} of {experiment.rollout.group_size} responses to a prompt are the teachers' own; "
            "their states are taken as given, and where the policy cannot be the mixed teacher it compromises between "
            "these states and its own"
        )
    if settings.inner_iterations > 1:
        found.append(
            "further inner iterations read states and continuations of the policy that sampled; importance ratios "
            + ("correct each token for itself" if _corrected(experiment) else "do not correct the penalty")
        )
    return found


def _weight_of_reward(settings: OnlineSettings, group: int) -> list[str]:
    """How the reward counts beside a penalty that is a loss term; `group`: the policy's own responses to a prompt."""
    if settings.advantage_scale != "none":
        own = settings.advantage_scale == "group"
        spread = "prompt's rewards, which vanishes as a prompt is solved" if own else "step's rewards"
        return [
            f"advantage_scale={settings.advantage_scale} divides the reward and not the penalty: beta acts as beta "
            f"times the standard deviation of the {spread}"
        ]
    if settings.baseline == "group_mean" and group > 1:
        return [
            f"baseline=group_mean holds the response itself, the reward counts (G − 1) / G: with G = {group} beta acts "
            f"as {group / (group - 1):.3g} beta; with baseline=leave_one_out it is beta"
        ]
    return []


def _moves(experiment: Experiment) -> list[str]:
    """That beta or alpha move, and which of their values the objective at rest is that of."""
    found, schedule = list[str](), experiment.moving_beta
    if schedule is not None and schedule.end is None:
        found.append(f"beta is {experiment.beta_words} a response: which objective it rests at is known afterwards")
    elif schedule is not None:
        found.append(f"beta is {experiment.beta_words}: the objective at rest is that of the last")
    if experiment.alpha_end is not None and experiment.alpha_schedule is not None:
        end = ", ".join(f"{weight:g}" for weight in experiment.alpha_end)
        found.append(
            f"alpha moves to [{end}] ({experiment.alpha_schedule.kind}): the objective at rest is that of the last"
        )
    return found


def _corrected(experiment: Experiment) -> bool:
    return not experiment.in_loss or experiment.estimator in (Estimator.exact, Estimator.topk, Estimator.k3_ratio)


def notes(experiment: Experiment) -> list[str]:
    """Sentences that a reader of a run must see: what it does otherwise than its names suggest."""
    if not experiment.penalized:
        return ["beta is 0: no reference is loaded, and no distance to one is measured while training"]
    found, penalty = [f"objective at rest: {objective(experiment)}", *deviations(experiment)], experiment.penalty
    left_out = [r.name for r in experiment.references if r not in experiment.active_references]
    if left_out:
        found.append(f"weight 0, never loaded: {', '.join(left_out)}")
    if experiment.rollout.truncated:
        found.append(
            "rollout.top_p, top_k or min_p leave tokens out: responses come from another sampler than the policy, so "
            "distances to references are not shown while training, and a penalty is an average over that sampler"
        )
    if penalty.states is States.reference:
        found.append("the penalty is measured on stored reference samples; distances are measured at the end")
    elif experiment.estimator is Estimator.k3 and penalty.score_order != 1:
        found.append(
            f"estimator k3 as a loss term descends the FORWARD KL to the mixed reference, not the divergence that "
            f"regularizer={penalty.title} names (score order {penalty.score_order:g}); use exact, k2 or k3_ratio"
        )
    return found


def _offline(experiment: Experiment, penalty: Regularizer) -> str:
    if penalty.multi_loss:
        return "Σ α of one preference loss a reference: the likelihood of no single reward"
    if experiment.weighing is not None:
        path = experiment.weighing.path
        return (
            f"the likelihood of a reward only if {path} gives all pairs the same weights; weights that read the pair "
            "are not a likelihood of any reward"
        )
    if penalty.ctro is not None or penalty.arwc:
        return "the likelihood of no reward: the references differ from pair to pair (CTRO, ARWC)"
    settings = experiment.algorithm
    if isinstance(settings, DpoSettings) and settings.loss == "ipo":
        return (
            "no likelihood: at rest the scores of a pair, per token, differ by (2p − 1) / 2β, p how often the first is "
            "preferred (IPO, arXiv 2310.12036)"
        )
    if isinstance(settings, DpoSettings) and settings.label_smoothing:
        return (
            f"the likelihood of no reward: with label_smoothing ε = {settings.label_smoothing:g} a pair preferred p of "
            "the time rests where one preferred (1 − 2ε) p + ε of the time would without"
        )
    return f"the likelihood of the reward whose optimum is the policy, E[r] {_over_responses(penalty)}"


def _over_responses(penalty: Regularizer) -> str:
    if isinstance(penalty.score, str):
        return f"− β [{_summands(penalty)}] of whole responses"
    order = penalty.score
    if penalty.mean_order != order or penalty.level is Level.token:
        return f"− β {_name(order, _mix(penalty))} of whole responses"
    return f"− β Σ α {_name(order, 'πᵢ')} of whole responses{_THEOREMS.get(order, '')}"


def _divergence(penalty: Regularizer) -> str:
    if isinstance(penalty.score, str):
        return f"[{_summands(penalty)}]"
    order = penalty.score
    if penalty.level is Level.sequence:
        return f"Σ α {_name(order, 'πᵢ')}"
    factor = "Fᴬ " if penalty.normalized and penalty.mean_order == order and order not in (0, 1) else ""
    return factor + _name(order, _mix(penalty))


def _summands(penalty: Regularizer) -> str:
    """Every term with the references that it is about: `Σ α JS(π, πᵢ)`, `α KL(π‖π[start]) + Σ α KL(πᵢ‖π), others`."""
    return " + ".join(map(_summand, penalty.terms))


def _summand(term: DivergenceTerm) -> str:
    several = term.reference in (None, OTHERS)
    reference = "πᵢ" if several else f"π[{term.reference}]"
    if term.order is not None:
        name = _name(float(term.order), reference)
    else:
        name = {
            "reverse_kl": _name(0.0, reference),
            "forward_kl": _name(1.0, reference),
            "jensen_shannon": f"JS(π, {reference})",
            "jeffreys": f"Jeffreys(π, {reference})",
        }.get(term.divergence, f"{term.divergence}(π‖{reference})")
    factor = "" if term.weight == 1 else f"{term.weight:g} "
    others = " over the others" if term.reference == OTHERS else ""
    return f"{'Σ ' if several else ''}α {factor}{name}{others}"


def _mix(penalty: Regularizer) -> str:
    mean = f"M[{penalty.mean_order:g}]"
    return f"{mean}/F" if penalty.mixes_whole_vocabulary else mean


def _name(order: float, reference: str) -> str:
    """D_A(reference‖π), the KL divergences by their names."""
    if order == 0:
        return f"KL(π‖{reference})"
    return f"KL({reference}‖π)" if order == 1 else f"D[{order:g}]({reference}‖π)"


def _ratio_clip(penalty: Regularizer) -> str:
    return f"{penalty.ratio_clip:g} nats" if penalty.ratio_clip else "a threshold found on each batch"
