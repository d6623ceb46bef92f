"""The numbers that stand in a run's .jsonl files, line by line."""

import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

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
    units, columns = list[object](), dict[str, array]()
    for row in each_line(path):
        name = row.get(unit)
        units.append(sys.intern(name) if isinstance(name, str) else name)
        for key, value in row.items():
            if isinstance(value, (int, float)) and key != unit:
                columns.setdefault(key, array("d")).append(value)
    return Lines(tuple(units), {key: column for key, column in columns.items() if len(column) == len(units)})
