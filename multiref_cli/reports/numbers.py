"""The numbers that stand in a run's .jsonl files, line by line."""

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiref_cli.files import each_line


@dataclass(frozen=True)
class Lines:
    """The numbers of a .jsonl file without its texts: a sweep's report holds those of every run.

    Attributes:
        units: what each of N lines is of: its prompt, or the number of its pair.
        columns: name -> N float64, for every name that has a number in each line.
    """

    units: tuple[object, ...]
    columns: dict[str, array]


def read_numbers(path: Path, unit: str) -> Lines:
    """The lines of a file that says in `unit` what each of them is of; none where it is not there."""
    return _numbers(each_line(path), unit)


def read_groups(path: Path, group: str, unit: str) -> list[Lines]:
    """The lines of a file apart by what they say in `group`, in the order of their first ones."""
    found: dict[object, list[dict[str, Any]]] = {}
    for row in each_line(path):
        numbers = {key: value for key, value in row.items() if key == unit or isinstance(value, (int, float))}
        found.setdefault(row.get(group), []).append(numbers)
    return [_numbers(rows, unit) for rows in found.values()]


def _numbers(rows: Iterable[dict[str, Any]], unit: str) -> Lines:
    units, columns = list[object](), dict[str, array]()
    for row in rows:
        name = row.get(unit)
        units.append(sys.intern(name) if isinstance(name, str) else name)
        for key, value in row.items():
            if isinstance(value, (int, float)) and key != unit:
                columns.setdefault(key, array("d")).append(value)
    return Lines(tuple(units), {key: column for key, column in columns.items() if len(column) == len(units)})
