"""What the metrics of finished conditions are called, which of them a table shows, and what each is a measure of."""

from collections.abc import Sequence

from multiref_cli.config.tasks import LIBRARIES
from multiref_cli.evaluation.measures import scorers_among
from multiref_cli.reports.collect import CENTERED, KL_WEIGHTED, STANDARDIZED, Condition

_NAMES = {
    KL_WEIGHTED: "Σ α KL",
    "kl/mixed": "KL to the mixed reference",
    "kl/token_mix": "KL to the normalized token mix",
    "kl/token_mix_unnormalized": "KL to the token mix, not normalized",
    "ranking_accuracy": "ranking accuracy",
    "ranking_accuracy_per_token": "ranking accuracy per token",
    "preference_accuracy": "preference accuracy, own reference",
}
_BEGINNINGS = {
    "objective/": "J, ",
    "kl/": "KL to ",
    "greedy/": "decoded without sampling, ",
    "bits_per_byte/": "bits per byte of chosen responses, ",
    "win_rate/": "win rate, ",
    "win_rate_lc/": "length-controlled win rate, ",
}
_ENDINGS = {CENTERED: "above the start", STANDARDIZED: "above the start, in its standard deviations"}


def heading(metric: str) -> str:
    """What a column with a metric is called."""
    if metric in _NAMES:
        return _NAMES[metric]
    for ending, words in _ENDINGS.items():
        if metric.endswith(ending):
            return f"{metric.removesuffix(ending)} {words}"
    for beginning, words in _BEGINNINGS.items():
        if metric.startswith(beginning):
            name, _, opponent = metric.removeprefix(beginning).partition("/")
            return f"{words}{name}" + (f" against {opponent}" if opponent else "")
    return metric


def scorers(found: Sequence[Condition]) -> list[str]:
    """What conditions are compared on: that which scored responses, the gold reward last; without any, how pairs rank;
    then the first metric of every task.

    preference_accuracy is never among them: it is read against each condition's own references, and the same policy
    has another one under others.
    """
    tasks = {name: None for c in found for run in c.runs for task in run.tasks for name in task["higher"][:1]}
    return [*scorers_among(_measured(found)), *tasks]


def most_trusted(names: Sequence[str]) -> str:
    """Of what conditions are compared on that which a verdict speaks of: the last score, a task where none is there."""
    return ([name for name in names if name.partition("/")[0] not in LIBRARIES] or list(names))[-1]


def ranking_metric(found: Sequence[Condition]) -> str | None:
    """The most trusted of what scored conditions; None where nothing did."""
    names = scorers(found)
    return most_trusted(names) if names else None


def task_metrics(found: Sequence[Condition]) -> list[str]:
    """All metrics of the tasks of evaluation libraries, task by task."""
    names = (name for condition in found for run in condition.runs for task in run.tasks for name in task["metrics"])
    return list(dict.fromkeys(names))


def scores(found: Sequence[Condition]) -> list[str]:
    """Scores, in every form that needs no reference of the condition's own, and the length that may buy them.

    A reward model's zero is arbitrary: it is shown above the start too, in standard deviations of the start's scores.
    Win rates are those against the start, one opponent for all conditions.
    """
    names = scorers(found)
    start = found[0].experiment.start
    wanted = [*names, *(f"{name}{STANDARDIZED}" for name in centered(found))]
    wanted += [name for name in _measured(found) if name.startswith(("greedy/", "pass@"))]
    wanted += [f"{kind}/{name}/{start}" for kind in ("win_rate", "win_rate_lc") for name in centered(found)]
    wanted += [name for name in task_metrics(found) if name not in names]
    return _those_of(found, [*wanted, *_groups(found), "length"])


def _groups(found: Sequence[Condition]) -> list[str]:
    """The scores over the prompts of each value of alpha.by: `<scorer>/<column>=<value>`."""
    columns = {c.experiment.routes.column for c in found if c.experiment.routes is not None}
    wanted = [f"{name}/{column}=" for name in scorers(found) for column in sorted(columns)]
    return [name for start in wanted for name in _measured(found) if name.startswith(start)]


def centered(found: Sequence[Condition]) -> list[str]:
    """The scores whose zero is arbitrary, those of a trained reward model, where the start was scored too."""
    names = [name for name in scorers(found) if name == "reward_model"]
    return [name for name in names if _those_of(found, [f"{name}{CENTERED}"])]


def rankings(found: Sequence[Condition]) -> list[str]:
    """How held-out pairs are judged: by the policy alone, then against each condition's own references."""
    return _those_of(found, ["ranking_accuracy", "ranking_accuracy_per_token", "preference_accuracy"])


def objectives(found: Sequence[Condition]) -> list[str]:
    """J = score - beta sum_i alpha_i KL_i of every scorer."""
    return _those_of(found, [f"objective/{name}" for name in scorers(found)])


def distances(found: Sequence[Condition]) -> list[str]:
    """The KL to every reference and their sum weighted by alpha: one meaning at every level."""
    names = dict.fromkeys(f"kl/{name}" for condition in found for name in condition.first.references)
    return _those_of(found, [*names, KL_WEIGHTED])


def mixes(found: Sequence[Condition]) -> list[str]:
    """The distances to mixed references, one name for each kind of mix."""
    return _those_of(found, list(dict.fromkeys(condition.first.mix for condition in found if condition.first.mix)))


# What a dagger beside a number means.
NOISE = "†: estimated from samples, and below zero by chance alone; no KL is negative."


def is_noise(condition: Condition, metric: str) -> bool:
    """Whether a Monte Carlo estimate of what cannot be negative is: a KL to a reference, or a sum of such."""
    names = [f"kl/{name}" for name in condition.first.references]
    known = metric in names or (metric == KL_WEIGHTED and all(weight >= 0 for weight in condition.weights))
    values = condition.values(metric) if known else {}
    return bool(values) and sum(values.values()) < 0


def distinct(found: Sequence[Condition], names: Sequence[str]) -> tuple[list[str], str]:
    """The metrics whose values are not those of an earlier one in every run, and a sentence on the others."""
    first: dict[tuple, str] = {}
    same: dict[str, list[str]] = {}
    for name in names:
        values = tuple(tuple(condition.values(name).items()) for condition in found)
        if values in first:
            same.setdefault(first[values], []).append(name)
        first.setdefault(values, name)
    told = [f"{heading(name)} is {' and '.join(map(heading, others))} too" for name, others in same.items()]
    return list(first.values()), f"Equal in every run, shown once: {'; '.join(told)}." if told else ""


def meaning(metrics: Sequence[str]) -> str:
    """What a reader must know of some metrics, in sentences."""
    said = []
    if any(name.endswith(STANDARDIZED) for name in metrics):
        said.append(
            "A reward model's zero and unit are arbitrary: its score above the start is the difference to the policy "
            "before training on the same prompts, in standard deviations of the start's scores over prompts."
        )
    for name in metrics:
        if name.startswith("pass@"):
            k, scorer = name.removeprefix("pass@").split("/", 1)
            said.append(
                f"{name}: the chance that one of {k} samples is right; {scorer} itself is the mean over samples."
            )
    if any(name.startswith("win_rate_lc/") for name in metrics):
        said.append(
            "Win rates are against the policy before training; length-controlled: what is left of the reward model's "
            "preference at equal lengths."
        )
    if any(name.startswith("objective/") for name in metrics):
        said.append("J = score − β Σ α KL(π‖πᵢ), the objective that reverse KL maximizes, whatever the regularizer.")
    if KL_WEIGHTED in metrics:
        said.append("Σ α KL is the charge of that objective, the same quantity at every level and for every estimator.")
    if any(name.startswith("kl/token_mix") for name in metrics):
        said.append("A distance to a mix of tokens is another quantity than Σ α KL, never to be compared with it.")
    if "ranking_accuracy" in metrics:
        said.append(
            "Ranking accuracy: the share of held-out pairs whose chosen response the policy finds likelier, in all or "
            "per token; ties count half."
        )
    if "preference_accuracy" in metrics:
        said.append(
            "Preference accuracy is read against each condition's own references, weights and loss: the same policy "
            "has another one under others, so conditions are not compared by it."
        )
    return " ".join(said)


def _measured(found: Sequence[Condition]) -> list[str]:
    return sorted({name for condition in found for run in condition.runs for name in run.metrics})


def _those_of(found: Sequence[Condition], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(condition.values(name) for condition in found)]
