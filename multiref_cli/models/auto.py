"""Model folders that AutoTokenizer opens as they were meant.

Where config.json says `qwen2`, transformers 5 builds Qwen2's byte-level tokenizer from whatever vocabulary lies there
and ignores the rest of tokenizer.json: another tokenizer's words become `a` or nothing, without an error. Seed-OSS is
the same network under the same names (query, key and value with biases, everything else without; bitwise the same
logits), and its tokenizers are opened from their files: so a qwen2 model over such a tokenizer is saved as `seed_oss`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiref_cli.errors import RunError
from multiref_cli.files import read_object, write_text
from multiref_cli.types import Tokenizer

_FROM, _TO = "qwen2", "seed_oss"
_PREFIXES = ("Qwen2For", "SeedOssFor")
# What a Seed-OSS config must say, of which a Qwen2 config has no word, to be the same network.
_FIXED = {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "residual_dropout": 0.0}
_TEXT = "The answer is 42."
# So many tokens of the vocabulary are read back too: of a vocabulary of words the text alone may know none.
_PROBED = 64


def open_right(folder: Path, tokenizer: Tokenizer) -> None:
    """Change the model type of a saved model with which AutoTokenizer would misread the tokenizer beside it.

    Left as they are: models of other types, and those whose layers see a sliding window, which Seed-OSS does not have.

    Args:
        folder: with config.json and the tokenizer's files.
        tokenizer: what AutoTokenizer has to agree with.
    """
    config = _config(folder)
    windowed = set(config.get("layer_types") or ["full_attention"]) != {"full_attention"}
    if config.get("model_type") != _FROM or windowed or agrees(folder, tokenizer):
        return
    size = config["hidden_size"] // config["num_attention_heads"]
    _write(folder, _renamed(config, _TO, _PREFIXES) | _FIXED | {"head_dim": config.get("head_dim") or size})


def as_trained(folder: Path) -> None:
    """Undo `open_right`: the config of a qwen2 model again, byte for byte; any other folder stays as it is."""
    config = _config(folder)
    trained = before_opening(config)
    if trained != config:
        _write(folder, trained)


def before_opening(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it was before `open_right`; any other one as it is."""
    if config.get("model_type") != _TO or any(config.get(key) != value for key, value in _FIXED.items()):
        return dict(config)
    kept = {key: value for key, value in config.items() if key not in {*_FIXED, "head_dim"}}
    return _renamed(kept, _FROM, _PREFIXES[::-1])


def agrees(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether AutoTokenizer makes of a folder what gives the ids of a tokenizer, and its text for ids."""
    from transformers import AutoTokenizer

    probed = sorted(set(tokenizer.get_vocab().values()))[:_PROBED]
    text = f"{_TEXT} {tokenizer.decode(probed)}"
    try:
        opened = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception:  # with code of its own, or another fault: no other model type mends it
        return True
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return opened(text, add_special_tokens=False)["input_ids"] == ids and opened.decode(ids) == tokenizer.decode(ids)


def _renamed(config: dict[str, Any], model_type: str, prefixes: tuple[str, str]) -> dict[str, Any]:
    classes = [name.replace(*prefixes) for name in config.get("architectures") or []]
    return config | {"model_type": model_type, "architectures": classes}


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / "config.json") or {}
    except RunError:
        return {}


def _write(folder: Path, config: dict[str, Any]) -> None:
    # In the form in which transformers writes it.
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
