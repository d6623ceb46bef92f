"""A report page as one HTML file that needs nothing from outside: style and script are inside of it."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from multiref_cli.reports import style
from multiref_cli.reports.markup import inline_html, to_html
from multiref_cli.reports.parts import SHORT, Cell, Drawing, Files, Heading, Link, Part, Table, Text, Verbatim, contents

_HERE = Path(__file__).parent
# (CSS variable, color on a light page, color on a dark page)
_THEME = (
    ("ink", style.INK, "#e6e8eb"),
    ("muted", style.MUTED, "#9aa3ad"),
    ("grid", style.GRID, "#31363d"),
    ("paper", style.PAPER, "#15181c"),
    *((f"series-{n}", *hues) for n, hues in enumerate(zip(style.PALETTE, style.DARK_PALETTE), start=1)),
)
_VARIABLES = {light.lower(): f"var(--{name})" for name, light, _ in _THEME}
_COLORS = re.compile("|".join(map(re.escape, _VARIABLES)), re.IGNORECASE)
# A figure is shown at so many pixels a point at most, and scrolls before it has fewer.
_LARGEST, _SMALLEST = 1.45, 0.82


def document(title: str, parts: Sequence[Part], drawn: dict[str, str], linked: bool) -> str:
    """The whole file.

    Args:
        title: plain text.
        parts: in order; what stands before the first heading is the first screen.
        drawn: name of a figure -> its SVG.
        linked: whether figures link to their files.
    """
    start = next((i for i, part in enumerate(parts) if isinstance(part, Heading)), len(parts))
    first = "\n".join(_part(part, drawn, linked, folded=False) for part in parts[:start])
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_css()}</style></head>\n"
        f'<body><div class="page"><header><h1>{name}</h1>\n{first}</header>\n{_contents(parts)}\n'
        f"<main>\n{_sections(parts[start:], drawn, linked)}\n</main></div>\n"
        f'<script id="behavior">{(_HERE / "page.js").read_text()}</script></body></html>\n'
    )


def _sections(parts: Sequence[Part], drawn: dict[str, str], linked: bool) -> str:
    """Every heading a section that folds, down to the next of its level or above."""
    body, levels = list[str](), list[int]()
    for part in parts:
        if isinstance(part, Heading):
            while levels and levels[-1] >= part.level:
                body.append("</details>")
                levels.pop()
            deep = ' class="deep"' if levels else ""
            body.append(
                f'<details id="{part.anchor}"{deep}{" open" * part.opened}><summary>'
                f"<h{part.level}>{inline_html(part.title)}</h{part.level}></summary>"
            )
            levels.append(part.level)
        else:
            body.append(_part(part, drawn, linked, folded=bool(levels)))
    return "\n".join([*body, *["</details>"] * len(levels)])


def _contents(parts: Sequence[Part]) -> str:
    """Links to the sections, those of level 3 under theirs; nothing where there is one section."""
    found = contents(parts)
    if len(found) < 2:
        return ""
    tops = list[tuple[Heading, list[Heading]]]()
    for heading in found:
        if heading.level == 2 or not tops:
            tops.append((heading, []))
        else:
            tops[-1][1].append(heading)
    items = [f"<li>{_anchor(top)}{_list([_anchor(one) for one in under])}</li>" for top, under in tops]
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>'


def _anchor(heading: Heading) -> str:
    return f'<a href="#{heading.anchor}">{inline_html(heading.title)}</a>'


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def _part(part: Part, drawn: dict[str, str], linked: bool, folded: bool) -> str:
    if isinstance(part, Text):
        return to_html(part.markdown)
    if isinstance(part, Table):
        table = _table(part)
        if folded or len(part.rows) <= SHORT:
            return table
        return f"<details><summary>{len(part.rows)} rows</summary>{table}</details>"
    if isinstance(part, Drawing):
        return _figure(part, drawn[part.name], linked)
    if isinstance(part, Files):
        return f'<p class="files">{" · ".join(_link(one) for one in part.links)}</p>'
    raise TypeError(f"no part of a page: {part}")


def _link(link: Link) -> str:
    return f'<a href="{quote(link.path)}">{html.escape(link.text)}</a>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, Verbatim):
        return f'<span class="said">{html.escape(cell.text)}</span>'
    return _link(cell) if isinstance(cell, Link) else inline_html(cell)


def _table(table: Table) -> str:
    right = [' class="number"' if r else "" for r in table.right_aligned]
    head = "".join(f'<th scope="col"{r}>{inline_html(h)}</th>' for h, r in zip(table.headers, right))
    rows = (
        "<tr>" + "".join(f"<td{r}>{_cell(cell)}</td>" for cell, r in zip(row, right)) + "</tr>" for row in table.rows
    )
    caption = f"<figcaption>{_cell(table.caption)}</figcaption>" if str(table.caption) else ""
    above, below = (caption, "") if isinstance(table.caption, Verbatim) else ("", caption)
    label = html.escape(str(table.caption) or table.name, quote=True)
    return (
        f'<figure class="table" id="table-{table.name}">{above}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr>'
        "</thead>\n<tbody>" + "\n".join(rows) + f"</tbody></table></div>{below}</figure>"
    )


def _figure(part: Drawing, svg: str, linked: bool) -> str:
    """Inline the SVG: ids made unique on the page, and colors turned into CSS variables that follow the theme."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = f"{part.name}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", svg)
    svg = _COLORS.sub(lambda found: _VARIABLES[found[0].lower()], svg)
    label = html.escape(part.caption or part.name, quote=True)

    def opening(found: re.Match[str]) -> str:
        width = float(found[1].split()[2])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{found[1]}" '
            f'role="img" aria-label="{label}" '
            f'style="max-width:{width * _LARGEST:.0f}px;min-width:{min(width * _SMALLEST, 640):.0f}px">'
        )

    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', opening, svg, count=1)
    files = [Link(kind, f"figures/{part.name}.{kind}") for kind in ("png", "svg")]
    links = f' <span class="files">{" · ".join(map(_link, files))}</span>' if linked else ""
    return (
        f'<figure id="figure-{part.name}"><div class="scroll">{svg}</div>'
        f"<figcaption>{inline_html(part.caption)}{links}</figcaption></figure>"
    )


def _css() -> str:
    light = "".join(f"--{name}:{value};" for name, value, _ in _THEME)
    dark = "".join(f"--{name}:{value};" for name, _, value in _THEME)
    return (
        f":root{{color-scheme:light dark;{light}--soft:#f5f6f8;--shade:rgba(20,30,45,.28)}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}--soft:#1d2126;--shade:rgba(0,0,0,.8)}}}}\n"
        + (_HERE / "page.css").read_text()
    )
