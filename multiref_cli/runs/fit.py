"""Which rows a run can use, of what is known before its first step: positions, templates, what rewards need."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from multiref_cli.algorithms.base import module_of
from multiref_cli.config.schema import BadRows, Experiment, Model, Policy, ReferenceSpec, Reward
from multiref_cli.data.chat import prompt_text
from multiref_cli.data.prompts import Prompt
from multiref_cli.data.rows import Split
from multiref_cli.errors import RequestError
from multiref_cli.models.inspect import (
    check_language_model,
    check_lora_targets,
    check_reward_model,
    check_trunk,
    output_ids,
    position_limit,
)
from multiref_cli.models.merge import check_alike
from multiref_cli.rewards.combine import lack_of
from multiref_cli.rewards.sample import Sample
from multiref_cli.types import Tokenizer

# A row -> why it cannot be used, in the words of a row report; None: it can.
Problem = Callable[[Any], "str | None"]


@dataclass(frozen=True)
class Reader:
    """A model that reads the rows under a tokenizer of its own: a foreign reference, or the scorer.

    Attributes:
        name: for sentences.
        tokenizer: its own.
    """

    name: str
    tokenizer: Tokenizer


def check_models(experiment: Experiment) -> None:
    """Look at the folder of every model that a run opens.

    Raises:
        RequestError: one is of another kind, damaged, or of a type that cannot be computed with; see `models.inspect`.
    """
    policy, scorer = experiment.policy, experiment.evaluation.scorer
    if policy.new is None:
        (check_language_model if experiment.algorithm.writes else check_trunk)(policy, "policy.path")
        check_lora_targets(policy)
    for reference in _opened(experiment):
        check_language_model(reference, f"reference {reference.name}")
        if reference.update is not None and policy.new is None:
            _check_follows(policy, reference)
    selector = getattr(experiment.algorithm, "selector", None)
    if selector is not None:
        check_reward_model(Model(path=selector), "algorithm.selector")
    if scorer is not None and experiment.algorithm.writes and experiment.evaluation.prompts > 0:
        check_reward_model(scorer, "evaluation.scorer.path")


def _check_follows(policy: Policy, reference: ReferenceSpec) -> None:
    """Refuse a reference that moves and whose weights are not of the policy's shape."""
    try:
        check_alike([Model(path=policy.path, revision=policy.revision), reference])
    except RequestError as error:
        raise RequestError(f"reference {reference.name} cannot follow the policy (update): {error}") from error


def _opened(experiment: Experiment) -> list[ReferenceSpec]:
    """The references that a run opens: an evaluation measures the distance to those of weight 0 too."""
    if not experiment.regularized:
        return []
    active = experiment.active_references if experiment.penalized else []
    found = experiment.references if experiment.evaluation.prompts > 0 else active
    return [one for one in found if one.server is None]


def check_heads(experiment: Experiment, vocabulary: int, foreign: set[str]) -> None:
    """Refuse models whose output head has not all the ids that they share.

    Args:
        experiment: of the run.
        vocabulary: number of ids that policy and references normalize over.
        foreign: names of references with tokens of their own.

    Raises:
        RequestError: naming the model.
    """
    if not experiment.algorithm.writes:
        return
    models: list[tuple[str, Model]] = [] if experiment.policy.new else [("the policy", experiment.policy)]
    models += [(f"reference {r.name}", r) for r in _opened(experiment) if r.name not in foreign]
    for name, model in models:
        size = output_ids(model)
        if size is not None and size < vocabulary:
            raise RequestError(
                f"{name} ({model.path}) has {size} output ids, the policy's tokenizer uses {vocabulary}: give another "
                "model, or the tokenizer that belongs to it."
            )


def shortest_limit(experiment: Experiment, foreign: set[str]) -> tuple[int, str] | None:
    """The fewest positions of the models that read the policy's tokens, and which model that is; None: no limit."""
    models: list[tuple[str, Model]] = [("the policy", experiment.policy)]
    if experiment.penalized:
        apart = foreign | set(experiment.served)  # a server knows its own limit
        models += [(f"reference {r.name}", r) for r in experiment.active_references if r.name not in apart]
    limits = [(limit, name) for name, model in models if (limit := _limit(model)) is not None]
    return min(limits, key=lambda found: found[0], default=None)


def _limit(model: Model) -> int | None:
    if isinstance(model, Policy) and model.new is not None:
        limit = model.new.get("max_position_embeddings")
        return limit if isinstance(limit, int) else None
    return position_limit(model)


def training_problem(experiment: Experiment, limit: tuple[int, str] | None, readers: list[Reader]) -> Problem:
    """What makes a training row useless, though its algorithm can read it."""
    parts, new = module_of(experiment).parts, experiment.rollout.max_new_tokens if experiment.algorithm.online else 0
    rewarded = experiment.reward if experiment.algorithm.rewarded else None
    lack = _lack(rewarded)

    def problem(row: Any) -> str | None:
        """Why a row cannot be used."""
        length = max(len(prompt) + len(scored) for _, prompt, scored in parts(row)) + new
        return _too_long(length, limit, new) or lack(row) or _unreadable(row, readers)

    return problem


def evaluation_problem(experiment: Experiment, limit: tuple[int, str] | None, readers: list[Reader]) -> Problem:
    """What makes a prompt useless to evaluate on.

    Raises:
        RequestError: every prompt is, for evaluation.max_new_tokens alone.
    """
    settings = experiment.evaluation
    if limit is not None and settings.max_new_tokens >= limit[0]:
        raise RequestError(
            f"evaluation.max_new_tokens is {settings.max_new_tokens}, which leaves no room for a prompt in the "
            f"{limit[0]} positions of {limit[1]}; give a smaller number."
        )
    lack = _lack(experiment.reward if settings.gold else None)

    def problem(row: Prompt) -> str | None:
        """Why a prompt cannot be used."""
        length = len(row.ids) + settings.max_new_tokens
        return _too_long(length, limit, settings.max_new_tokens) or lack(row) or _unreadable(row, readers)

    return problem


def fitting(split: Split, problem: Problem, bad_rows: BadRows, what: str) -> Split:
    """The rows of a split without those that have a problem, each in the account.

    Raises:
        RequestError: there are such rows and data.bad_rows is `refuse`.
    """
    sides, problems = [], []
    for rows in (split.train, split.held_out):
        fine = array("q")
        for number, row in enumerate(rows):
            reason = problem(row)
            if reason is None:
                fine.append(number)
            else:
                problems.append((row.row, reason))
        sides.append(rows.chosen(fine))
    if not problems:
        return split
    report = replace(split.report, kept=split.report.kept - len(problems))
    report.problems = sorted([*split.report.problems, *problems])
    if bad_rows is BadRows.refuse:
        raise RequestError(f"{what} has bad rows and data.bad_rows=refuse: {report.summary()}.")
    return replace(split, train=sides[0], held_out=sides[1], report=report)


def _too_long(length: int, limit: tuple[int, str] | None, new: int) -> str | None:
    if limit is None or length <= limit[0]:
        return None
    more = f", {new} of them new ones" if new else ""
    return f"over the {limit[0]} positions of {limit[1]}: {length} tokens{more}"


def _lack(reward: Reward | None) -> Problem:
    if reward is None:
        return lambda row: None
    lack = lack_of(reward)
    return lambda row: lack(Sample(row.messages, "", getattr(row, "answer", None), row.extra, row=row.row))


def _unreadable(row: Any, readers: list[Reader]) -> str | None:
    for reader in readers:
        try:
            prompt_text(reader.tokenizer, row.messages)
        except RequestError as error:
            return f"refused by the chat template of {reader.name}: {error}"
    return None
