"""Rows that were parsed once on this machine, kept by content: 62,000 rows become tokens once, not once a process.

An entry is one file under <cache>/tokens: a checksum of all that follows, a line of JSON, the keys of the prompts, the
rows. Its name is made of what decides it: the content of the rows and the recipe, which is tokenizer, template,
settings of the data, and the code that reads them.
"""

import contextlib
import hashlib
import json
from array import array
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from multiref_cli.config.plain import to_plain
from multiref_cli.config.schema import Data, Hardware
from multiref_cli.data.shelf import Shelf
from multiref_cli.data.template import attached_to
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import replacing
from multiref_cli.types import Tokenizer

T = TypeVar("T")
# Fewer rows are parsed faster than they are looked up.
PARSED_FROM = 5_000
# Bytes of a file's first line, a sha256 in hex digits.
_DIGITS = 65
# Entries that are kept; the one that was not used for longest goes first.
_KEPT = 12
# Settings of a data set that say where its rows are, not what is made of one.
_PLACES = ("name", "path", "held_out_path", "source", "revision", "split", "held_out_split", "held_out", "max_rows")


def recipe_of(data: Data, tokenizer: Tokenizer, parser: str) -> str | None:
    """What decides, beside a row's content, what is made of it; None for a tokenizer whose rules cannot be read.

    Args:
        data: its settings.
        tokenizer: of the policy.
        parser: name of the function that reads a row.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    settings = {key: value for key, value in to_plain(data).items() if key not in (*_PLACES, "bad_rows")}
    # Not a list of the special tokens alone: the same ones may have other roles.
    told = [repr(attached_to(tokenizer)), tokenizer.chat_template, tokenizer.special_tokens_map]
    told.append(tokenizer.all_special_tokens)
    return _sha256([rules, settings, told, parser, _code()])


class Parsed:
    """One entry."""

    def __init__(self, recipe: str, content: str, numbers: list[int]) -> None:
        """Takes note of what it would be; nothing is read.

        Args:
            recipe: see `recipe_of`.
            content: sha256 of the rows.
            numbers: what else tells rows of the same content apart.
        """
        self.path = Hardware().cache_folder / "tokens" / _sha256([recipe, content, numbers])

    def read(self) -> tuple[Shelf[Any], bytes, dict[str, Any]] | None:
        """Rows, keys and account as they were written; None where there is no whole entry."""
        try:
            file = self.path.open("rb")
        except OSError:
            return None
        try:
            if file.readline().decode().strip() != _digest(file):
                raise ValueError
            file.seek(_DIGITS)
            head = json.loads(file.readline())
            keys, sizes = file.read(head["keys"]), array("i", file.read(head["sizes"]))
            rows: Shelf[Any] = Shelf.of_file(file, file.tell(), sizes)
            self.path.touch()
            return rows, keys, head["report"]
        except (OSError, ValueError, KeyError, TypeError):  # damaged: it is made again
            file.close()
            return None

    def write(self, rows: Shelf[T], keys: bytes, report: dict[str, Any]) -> None:
        """Keep an entry; a cache that cannot be written costs the next process its time."""
        sizes = array("i", [len(row) for row in rows.raw()]).tobytes()
        head = json.dumps({"keys": len(keys), "sizes": len(sizes), "report": report}).encode()
        digest = hashlib.sha256(start := head + b"\n" + keys + sizes)
        for row in rows.raw():
            digest.update(row)
        with contextlib.suppress(OSError, RunError, RequestError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as file:
                file.write(digest.hexdigest().encode() + b"\n" + start)
                for row in rows.raw():
                    file.write(row)
            for old in sorted(self.path.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
                old.unlink(missing_ok=True)


def _digest(file: BinaryIO) -> str:
    """sha256 of the rest of a file."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> list[str]:
    """The code that reads rows, and the versions of what it reads them with."""
    own = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return [*own, version("transformers"), version("tokenizers"), version("jinja2")]
