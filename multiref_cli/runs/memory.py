"""What a training pass keeps in memory for its backward pass, counted from the model's config."""

from dataclasses import dataclass
from typing import Any

from multiref_cli.models.logprobs import ENTROPY_COPIES, LIVE_ELEMENTS

# Numbers kept for a token and layer: of width intermediate_size (gate, up, its activation, their product), of width
# hidden_size (norms, residuals, query, attention, output), and of the keys and values. Counted on Qwen2 with prompts
# shared, in float32; plain rows keep two hidden_size less.
_INTERMEDIATE, _HIDDEN, _KEYS = 4, 10, 2
# With products in bfloat16 norms are kept in float32 too: measured 1.22 to 1.27 times as many bytes as all in bfloat16.
_HALF = 2 * 1.25
# On a CPU: blocks that glibc keeps between those that are alive. Measured over what is alive (a Qwen2 of 10 M, passes
# of 1,500 to 3,800 tokens): 1.32 to 1.42 with its defaults, 1.0 where it maps every block for itself.
HEAP = 1.37
# Autocast keeps a bfloat16 copy of every float32 matrix until the pass is over.
CAST = 2.0
# On a CPU: Python, torch, transformers with a model's classes, the tokenizer and a small data set, measured.
LIBRARIES = 370 * 2.0**20


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only transformer: layers, hidden_size, intermediate_size, and width of all keys together."""

    layers: int
    hidden: int
    intermediate: int
    keys: int

    @property
    def maps(self) -> list[tuple[int, int]]:
        """Widths of the linear maps of a layer: of the attention four, then of the feed-forward network three."""
        attention = [(self.hidden, self.hidden)] * 2 + [(self.hidden, self.keys)] * 2
        return attention + [(self.hidden, self.intermediate)] * 3

    @property
    def parameters(self) -> int:
        """Numbers of these maps in one layer."""
        return sum(a * b for a, b in self.maps)


def shape_of(config: dict[str, Any]) -> Shape | None:
    """Sizes out of a config.json of the Llama family and its relatives; None where it has no such sizes."""
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    sizes = [size for name in names if isinstance(size := config.get(name), int) and size > 0]
    if len(sizes) < len(names):
        return None
    layers, hidden, intermediate, heads = sizes
    if config.get("num_experts") or config.get("num_local_experts"):
        return None
    head = config.get("head_dim") or hidden // heads
    return Shape(layers, hidden, intermediate, head * (config.get("num_key_value_heads") or heads))


def activation_bytes(shape: Shape, tokens: int, half: bool, checkpointed: bool, width: int = 0) -> float:
    """Bytes that a forward pass keeps for its backward pass.

    Args:
        shape: of the policy.
        tokens: of one pass, padding included.
        half: products in bfloat16.
        checkpointed: gradient checkpointing: the input of every layer, and one layer at a time whole.
        width: tokens of a row whose responses share their prompt: every layer keeps its mask, a number for each two of
            its tokens. 0 where rows have none.
    """
    each = _INTERMEDIATE * shape.intermediate + _HIDDEN * shape.hidden + _KEYS * shape.keys
    layer = tokens * (each * (_HALF if half else 4) + width * (2 if half else 4))
    if not checkpointed:
        return shape.layers * layer
    return shape.layers * tokens * shape.hidden * (2 if half else 4) + layer


def gathered_bytes(shape: Shape | None, parameters: int, each: float, trained: bool) -> float:
    """Bytes that a pass over a model has whole at once where the processes of a run divide its parameters.

    Embeddings, norms and head; the layer that is computed, and the one that is fetched meanwhile; of a trained model
    also the gradients of the former and of one layer.

    Args:
        shape: of the model; None: all of it.
        parameters: its number.
        each: bytes of one.
        trained: whether it gets gradients.
    """
    if shape is None:
        return each * parameters * (2 if trained else 1)
    root = max(parameters - shape.layers * shape.parameters, 0)
    return each * (root + 2 * shape.parameters + (root + shape.parameters if trained else 0))


def cache_bytes(shape: Shape, tokens: float, half: bool) -> float:
    """Bytes of the keys and values of so many tokens while responses are sampled."""
    return 2 * shape.layers * shape.keys * tokens * (2 if half else 4)


def head_bytes(gpu: bool, tokens: int, vocabulary: int) -> float:
    """Bytes over the vocabulary that the output head has alive at once, of a pass of so many tokens at most."""
    return 4.0 * min(LIVE_ELEMENTS["cuda" if gpu else "cpu"], tokens * vocabulary * ENTROPY_COPIES)
