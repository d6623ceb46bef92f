"""The rollout protocol: prompts in, groups of completions with per-token log-probs out, in request order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from multiref_cli.config.check import check_sampling
from multiref_cli.errors import RequestError

if TYPE_CHECKING:
    from multiref_cli.config.schema import Rollout


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Truncations apply in the order temperature, top-k, top-p, min-p; `temperature` 0 is greedy decoding.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 256
    end_ids: tuple[int, ...] = ()

    def __post_init__(self):
        """Refuses values outside their range with one sentence."""
        check_sampling(vars(self))
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more.")


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    `ids` ends with the end token if the response finished. `logps` are log-probs in nats of the sampled tokens under
    softmax(logits / temperature) *before* any truncation, the policy that a trainer recomputes at that temperature
    (under temperature 1 for greedy decoding).
    """

    ids: list[int]
    logps: list[float]
    finished: bool


class Engine(Protocol):
    """Whatever turns prompts into completions."""

    @property
    def exact_logps(self) -> bool:
        """Whether its log-probs are the trainer's own up to float32 rounding."""

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, seeds: list[int]
    ) -> list[list[Completion]]:
        """Draws `group_size` completions of each prompt; [P][G] in request order.

        One seed per prompt: sample g of a prompt depends on (its seed, g) and the model, not on the rest of the batch.
        """


@runtime_checkable
class Closing(Protocol):
    """An engine that holds more than the policy: another copy of it, or a process."""

    def close(self) -> None:
        """Let go of it; it samples no more."""


def sampling_of(rollout: "Rollout", end_ids: Sequence[int]) -> Sampling:
    """The sampling that a rollout config asks for, ending at `end_ids`."""
    return Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        max_new_tokens=rollout.max_new_tokens,
        end_ids=tuple(end_ids),
    )
