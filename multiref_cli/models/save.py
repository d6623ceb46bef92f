"""Saving a trained model as a folder that transformers opens, its tokenizer as it came."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multiref_cli.data.chat import end_ids
from multiref_cli.errors import RunError
from multiref_cli.files import sync_folder, sync_tree, write_json, writing
from multiref_cli.models.auto import open_right
from multiref_cli.models.decoder import unwrap
from multiref_cli.models.lora import merged
from multiref_cli.sharding import is_sharded, weights_of
from multiref_cli.types import LanguageModel, Tokenizer

_TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt"),
    *("*.model", "*.tiktoken"),
)


def save_policy(model: LanguageModel, tokenizer: Tokenizer, folder: Path, for_auto: bool = False) -> None:
    """Write a folder that AutoModelFor... opens, in one piece: under another name first, then renamed.

    A LoRA adapter is merged into the saved weights (the model in memory stays as it is) and kept beside them in
    `adapter/`.

    Args:
        model: a transformers or peft model; one that is sharded must be whole now.
        tokenizer: saved with it.
        folder: replaced if it exists.
        for_auto: also see to it that AutoTokenizer opens the tokenizer, see `models.auto`.

    Raises:
        RunError: it cannot be written.
    """
    folder = Path(folder)
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            _write(model, tokenizer, temporary)
            if for_auto:
                open_right(temporary, tokenizer)
            sync_tree(temporary)  # checkpoints are deleted once the policy is there: it must be on the disk
            if folder.exists():
                old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
                os.replace(folder, old)
                os.replace(temporary, folder)
                shutil.rmtree(old)
            else:
                os.replace(temporary, folder)
            sync_folder(folder.parent)
    except RunError:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk: it would take up the room
        raise


def _write(model: LanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    base, weights = unwrap(model), weights_of(model) if is_sharded(model) else None
    with _generation_settings(base, tokenizer) as generation:
        if base is not model:
            own = base.state_dict() if weights is None else weights_of(base)
            base.save_pretrained(str(folder), state_dict=dict(merged(base, own.items())))
            model.save_pretrained(str(folder / "adapter"), state_dict=weights)
        else:
            model.save_pretrained(str(folder), state_dict=weights)
    if generation:
        write_json(folder / "generation_config.json", generation)
    save_tokenizer(tokenizer, folder)


@contextmanager
def _generation_settings(model: LanguageModel, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The generation settings to save, with all ids that end a response; the model is without them meanwhile.

    transformers refuses to save settings that many published models have (a temperature without do_sample).
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:
        yield {}
        return
    from transformers import GenerationConfig

    ends = end_ids(tokenizer)
    model.generation_config = GenerationConfig()
    try:
        kept = {key: value for key, value in settings.to_diff_dict().items() if not key.startswith("_")}
        yield kept | {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    finally:
        model.generation_config = settings


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Copy the files that a tokenizer was opened from; one that was made here is written.

    Args:
        tokenizer: as it was opened.
        folder: that is there already.
    """
    source = Path(str(getattr(tokenizer, "name_or_path", "") or "/nowhere"))
    files = [path for pattern in _TOKENIZER_FILES for path in source.glob(pattern)] if source.is_dir() else []
    if not (source / "tokenizer_config.json").is_file():
        tokenizer.save_pretrained(str(folder))
        return
    for path in files:
        shutil.copy(path, folder / path.name)
