"""Rewards of the mini-GSM world: bare correctness, and the gold reward that labels its preferences."""

from collections.abc import Sequence

from multiref_cli.rewards.sample import Sample, in_process
from multiref_cli.world.problems import Qualities, assess, parse_problem


@in_process
def toy_correct(samples: Sequence[Sample]) -> list[float]:
    """1 for a response whose only final answer is right, else 0.

    Args:
        samples: (B,) responses to mini-GSM problems; the right answer is computed from the problem's text.

    Returns:
        (B,) 0.0 or 1.0.
    """
    return [_qualities(sample).correct for sample in samples]


@in_process
def toy_gold(
    samples: Sequence[Sample],
    correct: float = 1.5,
    complete: float = 2.0,
    steps: float = 2.0,
    courtesy: float = 2.0,
    repeated: float = -1.5,
    words: float = -0.1,
    words_over: int = 18,
) -> list[float]:
    """The gold reward: a weighted sum of the qualities of a response, in nats of the Bradley-Terry model.

    Args:
        samples: (B,) responses to mini-GSM problems.
        correct: weight of a right final answer.
        complete: weight of a complete form: one answer mark with a number, then nothing but closing words.
        steps: weight of the share of steps that are written out.
        courtesy: weight of closing words.
        repeated: weight of each step written more than once.
        words: weight of each token beyond `words_over`.
        words_over: length in tokens beyond which words count.

    Returns:
        (B,) rewards.
    """
    scores = []
    for sample in samples:
        found = _qualities(sample)
        score = correct * found.correct + complete * found.complete + steps * found.steps + courtesy * found.courtesy
        scores.append(score + repeated * found.repeated + words * max(found.words - words_over, 0))
    return scores


def _qualities(sample: Sample) -> Qualities:
    return assess(parse_problem(sample.prompt), sample.completion)
