"""Files that survive a power cut: one way of writing them, one way of reading them."""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from multiref_cli.errors import RequestError, RunError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one sentence where a write went wrong, for what is written by other means than these functions.

    Raises:
        RunError: `path` cannot be written (a full disk, no permission).
    """
    try:
        yield
    except TimeoutError:  # of a lock that somebody else holds
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) else _no_room(error)
        if cause is None:
            raise
        raise _cannot_write(path, cause) from error


def full_disk(error: BaseException) -> RunError | None:
    """The sentence on a full disk where that is behind an exception, whoever raised it; else None."""
    cause = _no_room(error)
    return None if cause is None else _cannot_write(cause.filename or "a file", cause)


def sentence_of(error: BaseException) -> str:
    """What is said of whatever ended something: its own sentence, that of a full disk, else its kind and text."""
    own = str(error).strip() if isinstance(error, (RequestError, RunError)) else ""
    return own or str(full_disk(error) or f"{type(error).__name__}: {error}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` once it is whole and on the disk; an error leaves the old one.

    Raises:
        RunError: it cannot be written (a full disk, a folder without permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one piece: a reader sees the old content or the new, also after a power cut."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file in one piece."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Replace a JSON file in one piece; NaN and infinities become null."""
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace a .jsonl file in one piece."""
    write_text(path, "".join(_line(row) for row in rows))


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one line to a .jsonl file; it begins a line of its own also behind one that a crash cut off.

    Raises:
        RunError: it cannot be written.
    """
    with writing(path), path.open("ab+") as file:
        begun = b"\n" if file.tell() and not _ends_a_line(file) else b""
        file.write(begun + _line(row).encode())


def read_json(path: Path) -> Any:
    """Content of a JSON file, None where there is none.

    Raises:
        RunError: the file is damaged, or cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged (no JSON in it can be read): restore it, or delete it.") from error


def read_object(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file that holds an object, None where there is none.

    Raises:
        RunError: the file is damaged.
    """
    content = read_json(path)
    if (content is None and not path.is_file()) or isinstance(content, dict):
        return content
    raise RunError(f"{path} is damaged (it holds no JSON object): restore it, or delete it.")


def read_kept(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file that can be made again; None where there is none, or it is damaged."""
    with suppress(RunError):
        return read_object(path)
    return None


def read_yaml(path: Path) -> dict[str, Any]:
    """Content of a YAML file that holds keys and values.

    Raises:
        RunError: the file is damaged, or cannot be read.
    """
    import yaml

    try:
        # libyaml's loader where PyYAML was built with it: ten times faster, and a sweep has thousands of files.
        content = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged (no YAML in it can be read): restore it, or delete its folder.")
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file that can be read; `damaged_lines` counts the others."""
    return [row for _, row in _parsed(path) if row is not None]


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file that can be read, one after the other: the file is never whole in memory."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (row for raw in file if raw.strip() and (row := _object(raw)) is not None)


def damaged_lines(path: Path) -> int:
    """How many lines of a .jsonl file cannot be read, one that a crash cut off at the end not counted."""
    return sum(row is None and raw.endswith(b"\n") for raw, row in _parsed(path))


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """The objects of JSON lines that can be read."""
    return [row for _, row in _split(content) if row is not None]


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines of a .jsonl file whose object `keep` refuses, and a last one that a crash cut off.

    What cannot be read in its middle stays as it is, byte for byte.
    """
    if path.is_file():
        lines = [raw for raw, row in _parsed(path) if (raw.endswith(b"\n") if row is None else keep(row))]
        write_bytes(path, b"".join(raw if raw.endswith(b"\n") else raw + b"\n" for raw in lines))


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk; nothing where there is none.

    Raises:
        RunError: it does not get there.
    """
    if path.is_file():
        with writing(path), path.open("rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until every file below a folder is on the disk, with its name."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            sync(path)
    sync_folder(folder)


def sweep_temporaries(folder: Path) -> None:
    """Delete what `replacing` and its like left below a folder when they were killed; nobody else may write it now."""
    for path in sorted(folder.rglob(".*")):
        if re.fullmatch(r"\..+\.\d+(\.old)?", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _parsed(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    return _split(path.read_bytes()) if path.is_file() else []


def _split(content: bytes) -> list[tuple[bytes, dict[str, Any] | None]]:
    # Only at b"\n": str.splitlines also splits at U+2028, U+2029 and U+0085, which JSON strings may hold.
    found: list[tuple[bytes, dict[str, Any] | None]] = []
    for raw in content.split(b"\n"):
        if raw.strip():
            found.append((raw + b"\n", _object(raw)))
    if found and not content.endswith(b"\n"):
        last, row = found[-1]
        found[-1] = (last[:-1], row)
    return found


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False) + "\n"


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _no_room(error: BaseException) -> OSError | None:
    """The lack of room behind an exception: libraries raise their own, from it or beside it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return seen
        if os.strerror(errno.ENOSPC) in str(seen):  # safetensors, in Rust
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seen = seen.__cause__ or seen.__context__
    return None


def _cannot_write(path: object, error: OSError) -> RunError:
    return RunError(f"{path} cannot be written ({error.strerror or error}): make room there, then run the same again.")


def _finite(value: object) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
