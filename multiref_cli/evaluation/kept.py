"""The first responses of an evaluation one by one, with their scores and distances: what people read beside numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multiref_cli.data.prompts import Prompt
from multiref_cli.rewards.sample import Sample

# Prompts whose responses are kept so.
SHOWN = 32
Row = dict[str, Any]


def answers_of(
    prompts: Sequence[Prompt],
    samples: Sequence[Sample],
    scores: Mapping[str, np.ndarray],
    distances: Mapping[str, Any],
) -> list[Row]:
    """One row a prompt: its responses, the scores of each, and the log-ratio of each to every reference, in nats.

    Args:
        prompts: P of them, in the order of the evaluation.
        samples: P S responses, prompt-major.
        scores: scorer -> (P, S).
        distances: kl/<reference> -> (P, S).
    """
    each = len(samples) // max(1, len(prompts))
    return [
        {
            "prompt": prompt.messages[-1]["content"],
            "answer": prompt.answer,
            "responses": _texts(samples, i, each),
            "scores": {name: _numbers(table[i]) for name, table in scores.items()},
            "kl": {name.removeprefix("kl/"): _numbers(table[i]) for name, table in distances.items()},
            "references": {},
        }
        for i, prompt in enumerate(prompts[:SHOWN])
    ]


def add_reference(rows: Sequence[Row], name: str, samples: Sequence[Sample], scores: Mapping[str, np.ndarray]) -> None:
    """Put a reference's own responses to the same prompts, P S of them and their (P, S) scores, beside the others."""
    each = next((table.shape[1] for table in scores.values()), 1)
    for i, row in enumerate(rows):
        own = {scorer: _numbers(table[i]) for scorer, table in scores.items()}
        row["references"][name] = {"responses": _texts(samples, i, each), "scores": own}


def _texts(samples: Sequence[Sample], i: int, each: int) -> list[str]:
    return [sample.completion for sample in samples[i * each : (i + 1) * each]]


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]
