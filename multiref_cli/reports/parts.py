"""What a report page is made of, before it is written in any format."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from multiref_cli.types import Figure

# A cell of a table that the reader need not open anything for has at most so many rows; longer tables are folded.
SHORT = 10


@dataclass(frozen=True)
class Link:
    """A file or folder beside the page: what it is called, and its path from the folder of the page."""

    text: str
    path: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Verbatim:
    """What a model or a data set says: shown as it is, never read as markup."""

    text: str

    def __str__(self) -> str:
        return self.text


Cell = str | Link | Verbatim


@dataclass(frozen=True)
class Text:
    """Markdown without headings of sections."""

    markdown: str


@dataclass(frozen=True)
class Heading:
    """Where a section begins: level 2, or 3 inside of one; `opened`: what it holds is shown unasked."""

    level: int
    title: str
    anchor: str
    opened: bool


@dataclass(frozen=True)
class Table:
    """Rows of cells; a caption of Markdown, told below the rows, or what was asked, told above them."""

    name: str
    headers: list[str]
    rows: list[list[Cell]]
    caption: str | Verbatim

    @property
    def right_aligned(self) -> list[bool]:
        """Whether each column holds numbers alone."""
        columns = list(zip(*self.rows)) or [()] * len(self.headers)
        return [
            bool(column) and all(_is_number(str(cell)) for cell in column) and set(map(str, column)) != {"–"}
            for column in columns
        ]


@dataclass(frozen=True)
class Drawing:
    """A matplotlib figure."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Files:
    """Links to what lies beside the page, in one line."""

    links: tuple[Link, ...]


Part = Text | Heading | Table | Drawing | Files


def format_cell(value: object) -> Cell:
    """A table cell as text: floats with four significant digits, None and NaN as a dash; links and quotes stay."""
    if isinstance(value, (Link, Verbatim)):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return str(value)


def _is_number(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell.strip()))


_NUMBER = re.compile(r"(?:\*\*)?[+\-−]?[\d.,]+(?:e[+\-−]?\d+)?\s*%?(?:\s*[±\[(].*)?†?(?:\*\*)?|–")


def sections(markdown: str) -> list[tuple[int, str, str]]:
    """Split Markdown at its headings `##` and `###`, outside of fences: (level, title, what follows); level 0: none."""
    found: list[tuple[int, str, list[str]]] = [(0, "", [])]
    fenced = False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        heading = None if fenced else re.match(r"(#{2,3})\s+(.*)", line)
        if heading:
            found.append((len(heading[1]), heading[2].strip(), []))
        else:
            found[-1][2].append(line)
    return [(level, title, "\n".join(lines).strip()) for level, title, lines in found]


def contents(parts: Sequence[Part]) -> list[Heading]:
    """The headings of a page, in order."""
    return [part for part in parts if isinstance(part, Heading)]
