"""CSV files of committed results: fixed columns, the same bytes for the same rows, and Markdown tables for pages."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from multiref_cli.errors import RequestError
from multiref_cli.files import write_text


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows under their columns.

    Raises:
        RunError: it cannot be written.
    """
    with io.StringIO(newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        write_text(path, file.getvalue())


def read_table(path: Path, what: str, *columns: Sequence[str]) -> list[dict[str, str]]:
    """Read what `write_table` wrote.

    Args:
        path: of the file.
        what: it is, in a refusal.
        columns: those of today, after those of earlier files that are read too.

    Raises:
        RequestError: no such file, or one of other columns.
    """
    if not path.is_file():
        raise RequestError(f"{path} does not exist; give a {what}.")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) not in map(tuple, columns):
            raise RequestError(f"{path} is no {what}: its columns must be {', '.join(columns[-1])}.")
        return list(reader)


def pipe_table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    """A Markdown table.

    Args:
        headers: of C columns.
        rows: C cells each, without bars.
        right: numbers of the columns that are aligned right, from 0.
    """
    rule = "|" + "|".join("---:" if i in right else "---" for i in range(len(headers))) + "|"
    first, *others = ("| " + " | ".join(line) + " |" for line in (headers, *rows))
    return "\n".join([first, rule, *others])
