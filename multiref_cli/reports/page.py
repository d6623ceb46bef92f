"""A report page: text, tables and figures, written as one self-contained HTML file, Markdown, LaTeX and image files."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiref_cli.files import write_bytes
from multiref_cli.reports import style
from multiref_cli.reports.html import document
from multiref_cli.reports.markup import slug, to_latex
from multiref_cli.reports.parts import (
    Cell,
    Drawing,
    Files,
    Heading,
    Link,
    Part,
    Table,
    Text,
    Verbatim,
    contents,
    format_cell,
    sections,
)
from multiref_cli.reports.table_file import pipe_table
from multiref_cli.types import Figure

__all__ = ["Link", "Page", "format_cell"]


class Page:
    """Collects the parts of a report in order and writes them in every format at once.

    What is added before the first section is the first screen: the question, one figure, one sentence, a table of at
    most ten rows. Everything else stands in sections, which are folded until they are asked for.

    Args:
        title: plain text; the only top-level heading of the page.
        folder: where it is to be written; with it figures link to their files, and `link` to others.
    """

    def __init__(self, title: str, folder: Path | None = None) -> None:
        self.title, self.folder = title, folder
        self._parts: list[Part] = []

    def section(self, title: str, level: int = 2, opened: bool = False) -> "Page":
        """Begin a section (level 2), or one inside of it (level 3); two of the same title have two anchors."""
        taken = {part.anchor for part in contents(self._parts)}
        self._parts.append(Heading(level, title, _unused(slug(title), taken), opened))
        return self

    def text(self, markdown: str) -> "Page":
        """Add Markdown: headings (`##` and `###` begin sections), paragraphs, lists, quotes, code, **strong**."""
        for level, title, rest in sections(markdown):
            if level:
                self.section(title, level)
            if rest:
                self._parts.append(Text(rest))
        return self

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[Any]],
        caption: str | Verbatim = "",
        name: str | None = None,
    ) -> "Page":
        """Add a table; columns of numbers are aligned right, and **strong** and `code` may be used in cells.

        Args:
            headers: column names.
            rows: one sequence of cells a row; floats are written with four significant digits, None as a dash.
            caption: one or two sentences below the rows; verbatim: what the rows answer, above them.
            name: stem of tables/<name>.tex; by default made from the caption.

        Raises:
            ValueError: if a row has another number of cells than there are headers.
        """
        cells = [[format_cell(cell) for cell in row] for row in rows]
        for row in cells:
            if len(row) != len(headers):
                raise ValueError(f"a table row has {len(row)} cells for {len(headers)} headers: {row}")
        self._parts.append(Table(self._name(name or slug(str(caption))), [str(h) for h in headers], cells, caption))
        return self

    def figure(self, name: str, figure: Figure, caption: str = "") -> "Page":
        """Add a matplotlib Figure (see `style.new_figure`); it is drawn when the page is written."""
        self._parts.append(Drawing(self._name(slug(name)), figure, caption))
        return self

    def has(self, name: str) -> bool:
        """Whether there is a figure or table of a name already."""
        return any(part.name == name for part in self._parts if isinstance(part, (Table, Drawing)))

    def files(self, paths: Sequence[tuple[str, Path]]) -> "Page":
        """Add links to files and folders in one line; those that are not there are left out."""
        found = tuple(self.link(text, path) for text, path in paths if path.exists())
        if found:
            self._parts.append(Files(found))
        return self

    def link(self, text: str, path: Path) -> Link:
        """A link to a file or folder, for `files` or a cell of a table."""
        base = self.folder.absolute() if self.folder is not None else Path.cwd()
        return Link(text, os.path.relpath(path.absolute(), base))

    def write(self, folder: str | Path) -> Path:
        """Write index.html, report.md, figures/*.png and *.svg and tables/*.tex.

        Args:
            folder: made if it is missing; files of the same names are replaced.

        Returns:
            The path of index.html.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        drawn = dict[str, str]()
        for part in self._parts:
            if isinstance(part, Table):
                write_bytes(folder / "tables" / f"{part.name}.tex", _table_latex(part).encode())
            elif isinstance(part, Drawing):
                svg, png = _draw(part)
                write_bytes(folder / "figures" / f"{part.name}.svg", svg)
                write_bytes(folder / "figures" / f"{part.name}.png", png)
                drawn[part.name] = svg.decode()
        markdown = [f"# {self.title}", *map(_markdown, self._parts)]
        write_bytes(folder / "report.md", ("\n\n".join(markdown) + "\n").encode())
        text = document(self.title, self._parts, drawn, linked=self.folder is not None)
        write_bytes(folder / "index.html", text.encode())
        return folder / "index.html"

    def _name(self, name: str) -> str:
        return _unused(name, {part.name for part in self._parts if isinstance(part, (Table, Drawing))})


def _unused(name: str, taken: set[str]) -> str:
    return next(c for c in (name, *(f"{name}-{n}" for n in range(2, 10_000))) if c not in taken)


def _markdown(part: Part) -> str:
    if isinstance(part, Heading):
        return f"{'#' * part.level} {part.title}"
    if isinstance(part, Text):
        return part.markdown.strip()
    if isinstance(part, Drawing):
        return f"![{part.name}](figures/{part.name}.png)\n\n*{part.caption}*"
    if isinstance(part, Files):
        return " · ".join(map(_cell_markdown, part.links))
    return _table_markdown(part)


def _cell_markdown(cell: Cell) -> str:
    text = " ".join(str(cell).split()).replace("|", "\\|")
    if isinstance(cell, Verbatim):
        text = text.replace("<", "&lt;").replace("](", "]\\(")
    return f"[{text}](<{cell.path}>)" if isinstance(cell, Link) else text


def _table_markdown(table: Table) -> str:
    headers, rows = list(map(_cell_markdown, table.headers)), [list(map(_cell_markdown, row)) for row in table.rows]
    made = pipe_table(headers, rows, right={i for i, right in enumerate(table.right_aligned) if right})
    return (f"*{_cell_markdown(table.caption)}*\n\n" if str(table.caption) else "") + made


def _table_latex(table: Table) -> str:
    columns = "".join("r" if r else "l" for r in table.right_aligned)
    rows = [" & ".join(to_latex(str(cell)) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{to_latex(str(table.caption))}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(to_latex(h) for h in table.headers) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _draw(part: Drawing) -> tuple[bytes, bytes]:
    """Return the figure as SVG and PNG; the same figure gives the same bytes."""
    import matplotlib

    svg, png = io.BytesIO(), io.BytesIO()
    with style.applied(), matplotlib.rc_context({"svg.hashsalt": part.name}):
        # Laid out once, not twice in each of the two formats: that is most of the time of a report.
        part.figure.draw_without_rendering()
        part.figure.set_layout_engine("none")
        part.figure.savefig(svg, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.06)
        part.figure.savefig(png, format="png", bbox_inches="tight", pad_inches=0.06)
    return svg.getvalue(), png.getvalue()
