"""What a reward function is given: one response with the prompt that it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One response to one prompt.

    Args:
        messages: the prompt, system prompt included, as role and content of each turn.
        completion: the text of the response, without special tokens.
        answer: the gold answer of the prompt, where there is one.
        extra: the other columns of the prompt's row.
        finished: whether the response ended by itself, before the length cap.
        row: number of the prompt's row in its source, for messages.
        conversational: whether the row has its prompt as a conversation, not as text.
        opening: what the prompt has written of the response already, such as `<think>` of a thinking template.
    """

    messages: list[Message]
    completion: str
    answer: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    finished: bool = True
    row: int | None = None
    opening: str = ""
    conversational: bool = False

    @property
    def whole(self) -> str:
        """The assistant's turn from its beginning."""
        return self.opening + self.completion

    @property
    def prompt(self) -> str:
        """The text of the last turn of the user."""
        return next((turn["content"] for turn in reversed(self.messages) if turn["role"] == "user"), "")


RewardFunction = Callable[..., list[float]]
# What a sample lacks for a reward function, as words for a sentence; None: nothing.
Lack = Callable[[Sample], "str | None"]


def needs(lack: Lack) -> Callable[[RewardFunction], RewardFunction]:
    """Mark a reward function with what it needs of a row, so that rows without it are found when they are read."""

    def mark(function: RewardFunction) -> RewardFunction:
        """Attach the check."""
        function.lacks = lack  # type: ignore[attr-defined]
        return function

    return mark


def in_process(function: RewardFunction) -> RewardFunction:
    """Mark a reward function that cannot hang: it runs in the trainer's process, without the cost of another one.

    Every other function runs in a worker process, which is killed when it takes too long.
    """
    function.in_process = True  # type: ignore[attr-defined]
    return function
