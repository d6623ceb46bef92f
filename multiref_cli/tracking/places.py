"""Folders that a command is to write: what is wrong with one is said before anything is written."""

import os
import shlex
from pathlib import Path

from multiref_cli.errors import RequestError

# Files in a folder have longer names than it: temporaries, locks and logs are called after it.
_LONGEST = 200


def holds_something(folder: Path) -> bool:
    """Whether a folder exists with something in it that is not hidden."""
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def check_place(folder: Path, key: str) -> None:
    """Refuse a folder that cannot be made or written.

    Args:
        folder: absolute or relative; it need not exist.
        key: what the user gave it as, for the sentence.

    Raises:
        RequestError: a name that no file system takes, a file in its place or above it, no permission.
    """
    shown = str(folder)
    if "\0" in shown:
        raise RequestError(f"{key} is {shown!r}, which holds a NUL character; give another name.")
    if any(len(part.encode(errors="surrogateescape")) > _LONGEST for part in folder.parts):
        raise RequestError(f"{key} is {shown[:40]}…, a name of more than {_LONGEST} bytes; give a shorter one.")
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
    except OSError as error:
        raise RequestError(f"{key} is {shown!r}, which cannot be used: {error.strerror}.") from error
    if not there.is_dir():
        raise RequestError(f"{key} is {shown!r}, but {there} is a file; give another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RequestError(f"{key} is {shown!r}, but {there} cannot be written; give another folder.")


def make_place(folder: Path) -> None:
    """Make a folder with those above it.

    Raises:
        RequestError: the file system does not let it be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be made ({error.strerror}); give another folder.") from error


def check_name(name: str | None, key: str) -> None:
    """Refuse a name of a folder in runs/ that would lead out of it.

    Raises:
        RequestError: it has `..` in it or begins at the root.
    """
    if name is not None and (not name.strip() or name.startswith(("/", "~")) or ".." in Path(name).parts):
        raise RequestError(f"{key} is {name!r}, which is no name of a folder in runs/; use run.dir for one elsewhere.")


def command(*words: object) -> str:
    """A command as a shell takes it, folders with spaces and all."""
    return shlex.join(["multiref", *map(str, words)])
