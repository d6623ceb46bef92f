"""Rewards of the mini-GSM world: bare correctness, and the gold reward that labels its preferences."""

from collections.abc import Sequence

from multiref_cli.data.toy import Gold, assess, gold_reward, parse_problem
from multiref_cli.rewards.sample import Sample


def toy_correct(samples: Sequence[Sample]) -> list[float]:
    """1 for a response whose only final answer is right, else 0.

    Args:
        samples: (B,) responses to mini-GSM problems; the right answer is computed from the problem's text.

    Returns:
        (B,) 0.0 or 1.0.
    """
    return [assess(parse_problem(sample.prompt), sample.completion).correct for sample in samples]


def toy_gold(samples: Sequence[Sample], **weights: float) -> list[float]:
    """The gold reward of the mini-GSM world.

    Args:
        samples: (B,) responses to mini-GSM problems.
        weights: fields of `multiref_cli.data.toy.Gold`; those not given keep their defaults.

    Returns:
        (B,) rewards, in nats of the Bradley-Terry model.
    """
    gold = Gold(**weights)
    return [gold_reward(parse_problem(sample.prompt), sample.completion, gold) for sample in samples]
