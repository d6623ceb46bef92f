"""Names for what other libraries make: a tokenizer, a language model, a device. Imported for type checkers alone."""

from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes as _Axes
    from matplotlib.figure import Figure as _Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from multiref_cli.models.decoder import Adapted

Tokenizer: TypeAlias = "PreTrainedTokenizerBase"
# A transformers model, or a peft wrapper around one, which answers to the same calls.
LanguageModel: TypeAlias = "PreTrainedModel"
# One that log-probabilities are read from: also an adapter's view of a shared base.
Scored: TypeAlias = Union["PreTrainedModel", "Adapted"]
Device: TypeAlias = Union[str, "torch.device"]
Axes: TypeAlias = "_Axes"
Figure: TypeAlias = "_Figure"
