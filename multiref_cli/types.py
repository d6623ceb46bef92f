"""Names for what other libraries make: a tokenizer, a language model, a device. Imported for type checkers alone."""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase
    # A transformers model, or a peft wrapper around one, which answers to the same calls.
    LanguageModel = PreTrainedModel
    # What log-probabilities are read from: also an adapter's view of a shared base.
    Device: TypeAlias = str | torch.device
else:
    Axes = Figure = PretrainedConfig = Tokenizer = LanguageModel = Device = Any
