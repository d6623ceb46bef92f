"""Which metrics a run's results will hold, told by its config: what a search can maximize."""

from multiref_cli.config.schema import Experiment


def metrics_of(experiment: Experiment) -> tuple[list[str], tuple[str, ...]]:
    """The metrics that results.json of a run can have, as far as its config tells.

    Returns:
        (names, beginnings of further names): some may be missing in the end, where data or models do not allow them.
    """
    settings, algorithm, reward = experiment.evaluation, experiment.algorithm, experiment.reward
    names, begun = [], [f"{task.partition(':')[0]}/" for task in settings.tasks]
    if algorithm.measures_pairs and algorithm.writes:
        names += ["preference_accuracy", "ranking_accuracy", "ranking_accuracy_per_token"]
        begun.append("bits_per_byte/")
    if not algorithm.writes:
        return [*names, "held_out_accuracy", *(["best_of"] if settings.scorer_file else [])], ("best_of/",)
    if settings.prompts == 0:
        return names, tuple(begun)
    scorers = ["reward_model"] if settings.scorer is not None else []
    scorers += [reward.name] if reward is not None and settings.gold else []
    references = [one.name for one in experiment.references] if experiment.regularized else []
    names += [*scorers, "length", "truncated"]
    names += [f"greedy/{name}" for name in scorers if settings.greedy]
    names += [f"kl/{name}" for name in [*references, *(["mixed"] if references else [])]]
    if references:
        names += [f"objective/{name}" for name in scorers]
        kinds = ("win_rate", "win_rate_lc", "reference") if settings.win_rate else ()
        names += [f"{kind}/{name}/{other}" for kind in kinds for name in scorers for other in references]
    if experiment.routes is not None:
        begun += [f"{name}/{experiment.routes.column}=" for name in scorers]
    if reward is not None and reward.correct_at is not None:
        begun += ["pass@", "avg@"]
    return names, tuple(begun)
