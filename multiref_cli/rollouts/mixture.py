"""Rollouts from the token-level mixed reference itself: K models decoded in step, one token drawn from their mean."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiref_cli.errors import RequestError
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.rollouts.transformers_engine import Session, TransformersEngine, decode_chunks


class MixtureEngine:
    """Samples from M_A(v | y_<t) / F_t, the normalized weighted power mean of K models' next-token probabilities.

    It draws with the numbers that `TransformersEngine` draws with, so a mixture and each of its models answer a prompt
    on common random numbers, and a mixture with all weight on one model is that model. Temperature and truncations act
    on the mixture, as on any policy.
    """

    def __init__(
        self,
        models: Sequence[Any],
        weights: Sequence[float],
        order: float,
        pad_id: int = 0,
        batch_size: int = 256,
        vocabulary: int | None = None,
    ):
        """Wraps models; nothing is copied, and those of weight 0 are never run.

        Args:
            models: K decoder-only transformers models over one vocabulary, on one device.
            weights: K weights alpha on the simplex; for order 0 some may be negative.
            order: A of the mean: 0 geometric, 1 arithmetic, -1 harmonic.
            pad_id: any valid token id, used where nothing is read.
            batch_size: most sequences decoded at once.
            vocabulary: ids that the models share; None: the whole head, which must then be equally wide in all.

        Raises:
            RequestError: weights that do not sum to one or are negative at another order, or
                heads of different width without `vocabulary`.
        """
        try:
            power_mean(torch.zeros(len(models), 1), torch.tensor(list(weights)), order, signed=min(weights) < 0)
        except ValueError as error:
            raise RequestError(f"The models cannot be mixed: {error}.") from error
        active = [(model, weight) for model, weight in zip(models, weights) if weight != 0]
        widths = sorted({model.config.vocab_size for model, _ in active})
        if vocabulary is None and len(widths) > 1:
            raise RequestError(f"Heads of {widths} tokens cannot be mixed: say how many ids the models share.")
        self.engines = [TransformersEngine(model, pad_id, batch_size, vocabulary) for model, _ in active]
        self.weights, self.order, self.vocabulary = [weight for _, weight in active], order, vocabulary
        self.exact_logps = all(engine.exact_logps for engine in self.engines)

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, seeds: list[int]
    ) -> list[list[Completion]]:
        """Draws `group_size` completions of each prompt; see `Engine.generate`.

        Raises:
            RequestError: an empty prompt, or one that leaves no room below a model's position limit.
        """
        for engine in self.engines:
            engine.check(prompts, sampling)
        openers = [engine.opener() for engine in self.engines]

        def open_mixture(texts: Sequence[Sequence[int]], size: int, length: int) -> MixtureSession:
            sessions = [open_session(texts, size, length) for open_session in openers]
            return MixtureSession(sessions, self.weights, self.order, self.vocabulary)

        chunks = self.engines[0].chunks(prompts, group_size)
        return decode_chunks(chunks, prompts, group_size, sampling, seeds, open_mixture, self.vocabulary)


class MixtureSession:
    """K sessions over the same rows, seen as one whose logits are log M_A, the mean of their probabilities."""

    def __init__(
        self, sessions: Sequence[Session], weights: Sequence[float], order: float, vocabulary: int | None = None
    ):
        """Sets `logits` (S, V), log M_A of the first new token: softmax divides it by F_t.

        Args:
            sessions: K batches of the same S rows.
            weights: K weights on the simplex.
            order: A of the mean.
            vocabulary: ids over which each model's probabilities are normalized; None: its whole head.
        """
        self.sessions, self.order, self.vocabulary = list(sessions), order, vocabulary
        self.weights = torch.tensor(list(weights))
        self.logits = self._mean([session.logits for session in self.sessions])

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (S, V) of the token after `tokens` (S,)."""
        return self._mean([session.step(tokens) for session in self.sessions])

    def keep(self, rows: Tensor) -> None:
        """Leaves only these rows (ascending indices) in the batch."""
        for session in self.sessions:
            session.keep(rows)

    def _mean(self, logits: list[Tensor]) -> Tensor:
        logps = [torch.log_softmax(one[:, : self.vocabulary].float(), -1) for one in logits]
        return power_mean(torch.stack(logps), self.weights, self.order, signed=bool((self.weights < 0).any()))
