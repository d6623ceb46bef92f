"""Scores of a trained reward model (a sequence classifier with one output), the same in every batch and padding."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from multiref_cli.data.chat import after_end_ids, conversation_ids
from multiref_cli.data.template import Rendering, Response, attach
from multiref_cli.errors import RequestError, RunError
from multiref_cli.models.decoder import unwrap
from multiref_cli.rewards.sample import Message, Sample, in_process
from multiref_cli.types import LanguageModel, Tokenizer


def sequence_scores(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Score whole sequences, at their last token.

    The last token is known from the length. The classification heads of transformers look for it by its id and read the
    score one token early where the pad token is also the end token; here no id has a meaning.

    Args:
        model: a sequence classifier with one output: a decoder with a `score` head (Llama, Qwen2, GPT-2, ...), or an
            encoder, which reads its own first token.
        sequences: B sequences of token ids.

    Returns:
        (B,) scores in float32, differentiable.

    Raises:
        RunError: an empty sequence.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    if not len(sequences) or int(lengths.min()) == 0:
        raise RunError("A reward model cannot score an empty sequence.")
    device = next(model.parameters()).device
    ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for row, sequence in zip(ids, sequences):
        row[: len(sequence)] = torch.tensor(sequence)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
    whole = unwrap(model)
    head = getattr(whole, "score", None)
    if head is None:
        return model(**inputs).logits[:, 0].float()
    hidden = whole.base_model(**inputs, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(sequences), device=device), (lengths - 1).to(device)]
    return head(last)[:, 0].float()


class RewardModelScorer:
    """Scores responses with a reward model under its own tokenizer and chat template."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        max_tokens: int | None = None,
        batch_tokens: int = 16384,
        whole_template: bool = False,
    ) -> None:
        """Keep a model and how to feed it; `cut` counts the inputs that lost their end.

        Args:
            model: a sequence classifier with one output, in evaluation mode.
            tokenizer: of that model.
            max_tokens: longer conversations lose the end of the response; default: as many positions as the model has.
            batch_tokens: padded tokens of one forward pass.
            whole_template: end the input with all that the chat template writes after a response (ChatML: a newline
                after the end token), for reward models that were trained that way; else with the end token.

        Raises:
            RequestError: a model with several outputs.
        """
        outputs = getattr(model.config, "num_labels", 1)
        if outputs != 1:
            raise RequestError(f"A reward model has one output, this one has {outputs}: open it with num_labels=1.")
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = max_tokens or _positions(model)
        self.batch_tokens, self.whole_template = batch_tokens, whole_template
        self.cut = 0

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses.

        Args:
            samples: (B,) responses; one that did not end by itself is scored without an end token.

        Returns:
            (B,) scores, in the order of the samples.
        """
        return self.score_conversations([(sample.messages, sample.whole, sample.finished) for sample in samples])

    @torch.no_grad()
    def score_conversations(self, conversations: Sequence[tuple[list[Message], Response, bool]]) -> list[float]:
        """Score (prompt, response, whether it ended by itself) each; (B,) scores in their order."""
        sequences = [self._encode(*conversation) for conversation in conversations]
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        scores, start = [0.0] * len(sequences), 0
        while start < len(order):
            # Sorted by length, the last of a batch is the longest: take as many as fit.
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(sequences[order[stop]]) <= self.batch_tokens:
                stop += 1
            part = order[start:stop]
            for i, value in zip(part, sequence_scores(self.model, [sequences[i] for i in part]).tolist()):
                scores[i] = value
            start = stop
        return scores

    def encode(self, sample: Sample) -> list[int]:
        """The ids of a conversation as this reward model reads them."""
        return self._encode(sample.messages, sample.whole, sample.finished)

    def _encode(self, messages: list[Message], response: Response, finished: bool) -> list[int]:
        prompt, (completion,) = conversation_ids(self.tokenizer, messages, [response], finished)
        after = after_end_ids(self.tokenizer) if self.whole_template and finished else []
        ids = [*prompt, *completion, *after]
        self.cut += self.max_tokens is not None and len(ids) > self.max_tokens
        return ids[: self.max_tokens]

    __call__ = score


def _positions(model: LanguageModel) -> int | None:
    """How many tokens a model reads; RoBERTa and its like count positions from behind their padding's."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules() if limit else ():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return limit - padding - 1
    return limit


@in_process
def reward_model(
    samples: Sequence[Sample],
    path: str,
    revision: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    max_tokens: int | None = None,
    batch_tokens: int = 16384,
    whole_template: bool = False,
    date: str = Rendering.date,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[float]:
    """A trained reward model as a reward function; the model is opened once and kept.

    Args:
        samples: (B,) responses.
        path: Hub id or folder of a sequence classifier with one output, or `toy:<name>`.
        revision: commit, tag or branch on the Hub.
        dtype: float32 or bfloat16; default: the model's own.
        device: torch device; `auto`: the GPU where there is one.
        max_tokens: see RewardModelScorer.
        batch_tokens: see RewardModelScorer.
        whole_template: see RewardModelScorer.
        date: what its chat template takes for today.
        chat_template_kwargs: further variables for its chat template.

    Returns:
        (B,) scores.
    """
    model, tokenizer = _open(path, revision, dtype, device)
    attach(tokenizer, Rendering(date, dict(chat_template_kwargs or {})))
    scorer = RewardModelScorer(model, tokenizer, max_tokens, batch_tokens, whole_template)
    scores = scorer.score(samples)
    reward_model.cut += scorer.cut  # type: ignore[attr-defined]
    return scores


reward_model.cut = 0  # type: ignore[attr-defined]
reward_model.opens_a_model = True  # type: ignore[attr-defined]


@lru_cache(maxsize=2)
def _open(path: str, revision: str | None, dtype: str | None, device: str) -> tuple[Any, Any]:
    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_reward_model, load_tokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    source = Model(path=path, revision=revision, dtype=dtype)
    return load_reward_model(source, device, dtype), load_tokenizer(source)
