"""Answers of two models to the same prompts, with what others say of every token: numbers and texts alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

ITSELF = "the model itself"


@dataclass(frozen=True)
class Piece:
    """Mostly one token of an answer.

    Attributes:
        text: as it reads.
        logps: scorer -> its log-probability in nats, of those that read the same tokens.
    """

    text: str
    logps: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """What one model wrote.

    Attributes:
        model: its name.
        pieces: of the text, the end token among them.
        tokens: how many.
        finished: whether it ended by itself.
        totals: scorer -> log-probability of the whole answer in nats, also of scorers with another tokenizer.
    """

    model: str
    pieces: list[Piece]
    tokens: int
    finished: bool
    totals: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """One prompt with the answers of both models."""

    prompt: str
    answers: list[Answer]


@dataclass(frozen=True)
class Compared:
    """All that was asked for.

    Attributes:
        models: the two names.
        references: names of the frozen models that score besides.
        comparisons: one a prompt.
        notes: what a reader must know.
    """

    models: list[str]
    references: list[str]
    comparisons: list[Comparison]
    notes: list[str] = field(default_factory=list)

    def voices(self, answer: Answer) -> list[str]:
        """Whose log-probabilities are set beside each other token by token: the references that read its tokens.

        One alone is set beside the model itself; without any, the two models are.
        """
        read = answer.pieces[0].logps if answer.pieces else {}
        found = [name for name in self.references if name in read]
        if len(found) == 1:
            return [*found, answer.model]
        return found or [name for name in self.models if name in read]


def spread(piece: Piece, voices: Sequence[str]) -> tuple[float, int]:
    """How far the highest of some log-probabilities of a piece is above the lowest, in nats, and whose it is."""
    values = [piece.logps[name] for name in voices]
    return (max(values) - min(values), values.index(max(values))) if len(values) > 1 else (0.0, 0)
