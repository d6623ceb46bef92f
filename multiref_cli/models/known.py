"""How large a model is that is not on this machine: from a table, else from the headers of its weights on the Hub."""

from typing import Any

from multiref_cli.config.schema import Model
from multiref_cli.models.files import cached, hub_id


def _qwen(hidden: int, layers: int, heads: int, keys: int, inner: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "vocab_size": 151_936 if tied else 152_064,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        "tie_word_embeddings": tied,
        "attention_bias": True,
    }


_SIZES = {
    "0.5B": _qwen(896, 24, 14, 2, 4864, True),
    "1.5B": _qwen(1536, 28, 12, 2, 8960, True),
    "3B": _qwen(2048, 36, 16, 2, 11008, True),
    "7B": _qwen(3584, 28, 28, 4, 18944, False),
    "14B": _qwen(5120, 48, 40, 8, 13824, False),
    "32B": _qwen(5120, 64, 40, 8, 27648, False),
}
_LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "tie_word_embeddings": False,
}
# Hub id -> the sizes in its config.json: the models that the presets name, and their relatives.
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"Qwen/Qwen2.5-{size}{kind}": config for size, config in _SIZES.items() for kind in ("", "-Instruct")},
    **{f"Qwen/Qwen2.5-Math-{size}{kind}": _SIZES[size] for size in ("1.5B", "7B") for kind in ("", "-Instruct")},
    **{f"meta-llama/Llama-3.1-8B{kind}": _LLAMA_8B for kind in ("", "-Instruct")},
    # A classifier of one output: no output head over the vocabulary, a score in its place.
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": _LLAMA_8B | {"num_labels": 1},
}
# Seconds that the Hub may take to answer.
_PATIENCE = 10


def absent(model: Model) -> bool:
    """Whether a model is a Hub repository of which this machine has no whole copy."""
    return hub_id(model.path) and cached(model.path, model.revision) is None


def known_config(model: Model) -> dict[str, Any] | None:
    """The sizes that the table has for a Hub id."""
    return CONFIGS.get(model.path)


def counted(config: dict[str, Any]) -> int:
    """Parameters of a Qwen2 or Llama model with the sizes of its config.json."""
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    biases = hidden + 2 * keys if config.get("attention_bias") else 0
    layer = 2 * hidden * hidden + 2 * hidden * keys + biases + 3 * hidden * inner + 2 * hidden
    embedding = config["vocab_size"] * hidden
    head = config.get("num_labels", 0) * hidden if "num_labels" in config else embedding
    return embedding + layers * layer + hidden + (0 if config["tie_word_embeddings"] else head)


def remote_parameters(model: Model) -> int | None:
    """Parameters of a Hub model: of the table, else of its safetensors headers, read alone by HTTP range requests.

    Returns:
        None where the Hub does not answer or has no safetensors of it.
    """
    config = known_config(model)
    if config is not None:
        return counted(config)
    from huggingface_hub import HfApi

    try:
        found = HfApi().get_safetensors_metadata(model.path, revision=model.revision, timeout=_PATIENCE)
    except Exception:  # no network, no such model, a gated one, or no safetensors: the size is not known
        return None
    return sum(found.parameter_count.values())
