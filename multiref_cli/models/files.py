"""Model folders: where a path leads, what its content is, how large it is; nothing here builds a model."""

import contextlib
import hashlib
import json
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from multiref_cli.config.schema import Hardware, Model
from multiref_cli.errors import HubUnreachable, RequestError, RunError
from multiref_cli.files import read_object, write_json

_SMALL_FILES = ["*.json", "*.jinja", "tokenizer*", "*.model", "vocab*", "merges*", "README.md"]
_WEIGHTS = ["*.safetensors"]
# Keys of config.json that say where a model came from, not what it computes.
_PROVENANCE = {
    "_name_or_path",
    "transformers_version",
    "architectures",
    "use_cache",
    "base_model_name_or_path",
    "revision",
}
# Files from this size on are hashed once a machine, smaller ones every time.
_REMEMBERED_BYTES = 32 * 2**20


def resolve(path: str, revision: str | None = None, weights: bool = True, code: bool = False) -> Path:
    """The local folder of a model: the path itself, or a snapshot of one commit of a Hub repository.

    Args:
        path: a folder, or a Hub id `owner/name`.
        revision: branch, tag or commit on the Hub; a commit pins the content for good.
        weights: also fetch the weights.
        code: also fetch Python files, for models that bring their own code.

    Raises:
        RequestError: neither a folder nor reachable on the Hub.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise RequestError(f"{path} is not a folder; give a model folder or a Hub id owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = _SMALL_FILES + (_WEIGHTS if weights else []) + (["*.py"] if code else [])
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise RequestError(
            f"{path} is gated: accept its terms at {hub_page(path)} and log in with: hf auth login."
        ) from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise RequestError(f"{path} is neither a folder nor a model on the Hub: check the name (or log in).") from error
    except RevisionNotFoundError as error:
        raise RequestError(f"{path} has no revision {revision} on the Hub: give a branch, tag or commit.") from error
    except (OSError, HTTPError) as error:
        raise HubUnreachable(
            f"{path} is not a folder, not whole in the local cache, and the Hub cannot be reached or breaks off "
            f"({type(error).__name__}): go online once and try again, or give the path of a folder."
        ) from error


def cached(path: str, revision: str | None = None) -> Path | None:
    """The folder of a Hub model's whole copy on this machine, without asking the Hub; None where there is none."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
    index = folder / "model.safetensors.index.json"
    named = set(_read_config(index).get("weight_map", {}).values()) if index.is_file() else set()
    whole = weights_problem(folder) is None and all((folder / name).is_file() for name in named)
    return folder if whole else None


def hub_page(path: str) -> str:
    """Where a repository's page is."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{path}"


def hub_id(path: str) -> bool:
    """Whether a path of a model or of data names a repository of the Hub, owner/name: nothing here is called so."""
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", path)) and not Path(path).exists()


def weight_files(folder: Path, adapter: bool = False) -> list[Path]:
    """The safetensors files of a model, or of an adapter, in a folder, which may hold both; sorted by name.

    Raises:
        RequestError: none there.
    """
    every = sorted(folder.glob("*.safetensors"))
    files = [path for path in every if path.name.startswith("adapter_model") is adapter]
    if not files:
        others = sorted(p.name for p in [*every, *folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        found = f"only {', '.join(others)}" if others else "no weights at all"
        raise RequestError(f"{folder} holds {found}; weights must be safetensors: save the model again as safetensors.")
    return files


def fingerprint(model: Model) -> str:
    """sha256 of what a model computes: its weights, its config, its adapter; the same wherever the folder lies.

    Code that the folder brings counts where it is run (trust_remote_code).

    Args:
        model: a schema.Model (path, revision, adapter, trust_remote_code).

    Raises:
        RequestError: a path that leads nowhere, or weights that are not safetensors.
    """
    folder = resolve(model.path, model.revision, code=model.trust_remote_code)
    parts: dict[str, Any] = {"weights": _content(folder), "adapter": None}
    if model.adapter:
        parts["adapter"] = _content(resolve(model.adapter), adapter=True)
    if model.trust_remote_code:
        parts["code"] = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*.py"))}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    """A model's JSON file.

    Raises:
        RequestError: it is damaged.
    """
    try:
        return read_object(path) or {}
    except RunError as error:
        raise RequestError(str(error)) from error


def safetensors_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Names, types, shapes and places of the tensors of a safetensors file, and where its data begins in bytes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size - 8:
            raise ValueError(f"the header of {path} is longer than the file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def weights_problem(folder: Path) -> str | None:
    """Why the weights of a folder cannot be whole, by their headers and sizes; None where they may be."""
    try:
        files = weight_files(folder)
    except RequestError as error:
        return str(error).rstrip(".")
    for path in files:
        try:
            header, start = safetensors_header(path)
            end = start + max((one["data_offsets"][1] for one in header.values()), default=0)
        except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError, OverflowError):
            return f"{path} has no header that can be read"
        if path.stat().st_size != end:
            return f"{path} has {path.stat().st_size} bytes in place of {end}"
    return None


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _content(folder: Path, adapter: bool = False) -> dict[str, Any]:
    """Hashes of the weights in the order of their names, and the config without its provenance."""
    name = "adapter_config.json" if adapter else "config.json"
    config = _read_config(folder / name) if (folder / name).is_file() else {}
    kept = {key: value for key, value in config.items() if key not in _PROVENANCE}
    return {"files": [_remembered_sha256(path) for path in weight_files(folder, adapter)], "config": kept}


def _remembered_sha256(path: Path) -> str:
    status = path.stat()
    # The inode and the time of its last change notice a file that was exchanged by one of the same size and date.
    return _sha256_at(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=256)
def _sha256_at(path: str, size: int, modified: int, changed: int, inode: int) -> str:
    if size < _REMEMBERED_BYTES:
        return file_sha256(Path(path))
    memory, key = Hardware().cache_folder / "fingerprints.json", f"{path}|{size}|{modified}|{changed}|{inode}"
    try:
        known = read_object(memory) or {}
    except (OSError, RunError):  # a damaged memory costs a hash
        known = {}
    if key not in known:
        known[key] = file_sha256(Path(path))
        with contextlib.suppress(OSError, RunError):  # a cache folder that cannot be written costs one the next time
            write_json(memory, known)
    return known[key]
