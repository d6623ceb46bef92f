"""Tokenizers and small data sets for the tests of data/."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiref_cli.config.schema import Data
from multiref_cli.world import tokenizer as toy_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared/data"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = CHATML, **special: Any) -> Any:
    """A byte-level tokenizer without merges: any text round-trips; pad is eos, as in many ChatML models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = {token: i for i, token in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(ids, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    options = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", **special}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=names, chat_template=template, **options
    )


class WordTokenizer:
    """As much of a tokenizer as data/ needs, one id a word: fast enough for thousands of real texts."""

    chat_template = None
    eos_token_id = sep_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1 + zlib.crc32(word.encode()) for word in text.split()]}


@pytest.fixture(scope="session")
def words() -> Any:
    return WordTokenizer()


@pytest.fixture(scope="session")
def toy() -> Any:
    return toy_tokenizer.tokenizer()


@pytest.fixture(scope="session")
def chatml() -> Any:
    return byte_tokenizer()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows (dicts, or raw lines) as a .jsonl file and return its path."""

    def write_rows(rows: list[dict | str], name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return str(tmp_path / name)

    return write_rows


@pytest.fixture
def config() -> Callable[..., Data]:
    """A data config with nothing held out unless asked."""

    def make(path: str, **keys: Any) -> Data:
        return Data(**{"name": "test", "path": path, "held_out": 0.0, **keys})

    return make


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("real data is not there: ../shared/data")
    return SHARED
