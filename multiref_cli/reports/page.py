"""A report page: text, tables and figures, written as one self-contained HTML file, Markdown, LaTeX and image files."""

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiref_cli.files import write_bytes
from multiref_cli.reports import style
from multiref_cli.reports.markup import inline_html, slug, to_html, to_latex
from multiref_cli.types import Figure


@dataclass(frozen=True)
class _Text:
    markdown: str


@dataclass(frozen=True)
class _Table:
    name: str
    headers: list[str]
    rows: list[list[str]]
    caption: str


@dataclass(frozen=True)
class _Figure:
    name: str
    figure: Figure
    caption: str


class Page:
    """Collects the parts of a report in order and writes them in every format at once.

    Args:
        title: plain text; the only top-level heading of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[_Text | _Table | _Figure] = []

    def text(self, markdown: str) -> "Page":
        """Add Markdown: headings (`##` and below), paragraphs, lists, quotes, code, **strong**, links."""
        self._parts.append(_Text(markdown))
        return self

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", name: str | None = None
    ) -> "Page":
        """Add a table; columns of numbers are aligned right, and **strong** and `code` may be used in cells.

        Args:
            headers: column names.
            rows: one sequence of cells a row; floats are written with four significant digits, None as a dash.
            caption: one or two sentences.
            name: stem of tables/<name>.tex; by default made from the caption.

        Raises:
            ValueError: if a row has another number of cells than there are headers.
        """
        cells = [[format_cell(cell) for cell in row] for row in rows]
        for row in cells:
            if len(row) != len(headers):
                raise ValueError(f"a table row has {len(row)} cells for {len(headers)} headers: {row}")
        self._parts.append(_Table(self._unused(name or slug(caption)), [str(h) for h in headers], cells, caption))
        return self

    def figure(self, name: str, figure: Figure, caption: str = "") -> "Page":
        """Add a matplotlib Figure (see `style.new_figure`); it is drawn when the page is written."""
        self._parts.append(_Figure(self._unused(slug(name)), figure, caption))
        return self

    def write(self, folder: str | Path) -> Path:
        """Write index.html, report.md, figures/*.png and *.svg and tables/*.tex.

        Args:
            folder: made if it is missing; files of the same names are replaced.

        Returns:
            The path of index.html.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        body, markdown = [], [f"# {self.title}"]
        for part in self._parts:
            if isinstance(part, _Text):
                body.append(to_html(part.markdown))
                markdown.append(part.markdown.strip())
            elif isinstance(part, _Table):
                body.append(_table_html(part))
                markdown.append(_table_markdown(part))
                write_bytes(folder / "tables" / f"{part.name}.tex", _table_latex(part).encode())
            else:
                svg, png = _draw(part)
                write_bytes(folder / "figures" / f"{part.name}.svg", svg)
                write_bytes(folder / "figures" / f"{part.name}.png", png)
                body.append(_figure_html(part, svg.decode()))
                markdown.append(f"![{part.name}](figures/{part.name}.png)\n\n*{part.caption}*")
        write_bytes(folder / "report.md", ("\n\n".join(markdown) + "\n").encode())
        write_bytes(folder / "index.html", self._html("\n".join(body)).encode())
        return folder / "index.html"

    def _unused(self, name: str) -> str:
        taken = {part.name for part in self._parts if not isinstance(part, _Text)}
        return next(c for c in (name, *(f"{name}-{n}" for n in range(2, 10_000))) if c not in taken)

    def _html(self, body: str) -> str:
        headings = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body)
        links = "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in headings)
        navigation = f"<nav>{links}</nav>" if len(headings) > 2 else ""
        title = html.escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_css()}</style></head>\n"
            f"<body><main><h1>{title}</h1>{navigation}\n{body}\n</main></body></html>\n"
        )


def format_cell(value: object) -> str:
    """Return a table cell as text: floats with four significant digits, None and NaN as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return str(value)


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"(?:\*\*)?[+\-−]?[\d.,]+(?:e[+\-−]?\d+)?\s*%?(?:\s*[±\[(].*)?(?:\*\*)?|–", cell.strip()))


def _right_aligned(table: _Table) -> list[bool]:
    columns = list(zip(*table.rows)) or [()] * len(table.headers)
    return [bool(column) and all(_is_number(c) for c in column) and set(column) != {"–"} for column in columns]


def _table_html(table: _Table) -> str:
    right = [' class="number"' if r else "" for r in _right_aligned(table)]
    head = "".join(f"<th{r}>{inline_html(h)}</th>" for h, r in zip(table.headers, right))
    rows = (
        "<tr>" + "".join(f"<td{r}>{inline_html(cell)}</td>" for cell, r in zip(row, right)) + "</tr>"
        for row in table.rows
    )
    caption = f"<figcaption>{inline_html(table.caption)}</figcaption>" if table.caption else ""
    return (
        f'<figure class="table" id="table-{table.name}">{caption}<div class="scroll"><table><thead><tr>{head}</tr>'
        f"</thead>\n<tbody>" + "\n".join(rows) + "</tbody></table></div></figure>"
    )


def _table_markdown(table: _Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join("---:" if r else "---" for r in _right_aligned(table)) + "|"
    lines = [line(table.headers), rule, *(line(row) for row in table.rows)]
    return (f"*{table.caption}*\n\n" if table.caption else "") + "\n".join(lines)


def _table_latex(table: _Table) -> str:
    columns = "".join("r" if r else "l" for r in _right_aligned(table))
    rows = [" & ".join(to_latex(cell) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{to_latex(table.caption)}}}",
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


def _draw(part: _Figure) -> tuple[bytes, bytes]:
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


def _figure_html(part: _Figure, svg: str) -> str:
    """Inline the SVG: ids made unique on the page, and colors turned into CSS variables that follow the theme."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = f"{part.name}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", svg)
    for name, light, _ in _THEME:
        svg = re.sub(light, f"var(--{name})", svg, flags=re.IGNORECASE)
    label = html.escape(part.caption or part.name, quote=True)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        lambda m: (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{m[1]}" '
            f'role="img" aria-label="{label}" style="max-width:{float(m[1].split()[2]) * 1.45:.0f}px">'
        ),
        svg,
        count=1,
    )
    return f'<figure id="figure-{part.name}">{svg}<figcaption>{inline_html(part.caption)}</figcaption></figure>'


# (CSS variable, color on a light page, color on a dark page)
_THEME = (
    ("ink", style.INK, "#e6e8eb"),
    ("muted", style.MUTED, "#9aa3ad"),
    ("grid", style.GRID, "#31363d"),
    ("paper", style.PAPER, "#15181c"),
    *((f"series-{n}", *hues) for n, hues in enumerate(zip(style.PALETTE, style.DARK_PALETTE), start=1)),
)


def _css() -> str:
    light = "".join(f"--{name}:{value};" for name, value, _ in _THEME)
    dark = "".join(f"--{name}:{value};" for name, _, value in _THEME)
    return (
        f":root{{color-scheme:light dark;{light}--soft:#f5f6f8}}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}--soft:#1d2126}}}}"
        """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
 font:16px/1.58 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:68rem;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 .6rem}
h2{font-size:1.3rem;margin:2.8rem 0 .6rem;padding-bottom:.3rem;border-bottom:1px solid var(--grid)}
h3{font-size:1.06rem;margin:1.9rem 0 .4rem}
p,ul,ol,blockquote{max-width:46rem;margin:.6rem 0}
li{margin:.22rem 0}
a{color:var(--series-1)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.88rem;margin:0 0 1.6rem}
nav a{text-decoration:none}
nav a:hover{text-decoration:underline}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.87em}
code{background:var(--soft);border-radius:4px;padding:.08em .3em}
pre{background:var(--soft);border-radius:6px;padding:.8rem 1rem;overflow-x:auto;line-height:1.45}
pre code{background:none;padding:0}
blockquote{border-left:3px solid var(--series-1);padding:.05rem 0 .05rem 1rem;margin-left:0;color:var(--muted)}
figure{margin:1.5rem 0}
figure svg{display:block;width:100%;height:auto}
figcaption{font-size:.87rem;color:var(--muted);max-width:46rem;margin:.45rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.81rem;font-variant-numeric:tabular-nums;border-top:2px solid var(--ink);
 border-bottom:2px solid var(--ink)}
th{text-align:left;font-weight:600;border-bottom:1px solid var(--muted);vertical-align:bottom}
th,td{padding:.26rem .7rem .26rem 0}
th:not(:first-child),td:not(:first-child){padding-left:.2rem}
td{border-bottom:1px solid var(--grid);white-space:nowrap}
tbody tr:last-child td{border-bottom:0}
tbody tr:hover{background:var(--soft)}
.number{text-align:right}
@media print{body{font-size:11pt}main{max-width:none;padding:0}figure{break-inside:avoid}nav{display:none}}
"""
    )
