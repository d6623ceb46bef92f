"""Experiments that are the same run under several names: with one active reference most regularizers are one."""

from dataclasses import replace

from multiref_cli.config.regularizer import Level
from multiref_cli.config.schema import Experiment


def canonical(experiment: Experiment) -> Experiment:
    """Return the experiment with the plainest regularizer that gives the same numbers, bit for bit.

    One reference is its own mean of every order; nothing clips (CTRO) or weighs (ARWC) it, and the sum of losses
    (Multi-DPO) is its one loss. What is left is the score, the level and how it is estimated.
    """
    if not experiment.penalized or len(experiment.active_references) > 1:
        return experiment
    penalty = experiment.penalty
    # At level=token the sum of losses reads whole responses, the loss towards a mix the sum of its tokens.
    several = penalty.multi_loss and penalty.level is Level.token
    plain = replace(penalty, mean_order=penalty.score_order, ctro=None, arwc=None, multi_loss=several)
    if plain == penalty:
        return experiment
    found = replace(experiment, regularizer=replace(plain, name=plain.derived_name))
    if found.estimator is not experiment.estimator:  # what is usual for a mix need not be for one reference
        plain = replace(plain, estimator=experiment.estimator)
        found = replace(experiment, regularizer=replace(plain, name=plain.derived_name))
    return found


def identity(experiment: Experiment) -> str:
    """What a condition's result depends on, by hash: equal for experiments that differ in name alone, and in seed."""
    return canonical(experiment).result_hash
