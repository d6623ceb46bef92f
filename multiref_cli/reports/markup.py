"""Small translations of report text: a subset of Markdown to HTML, and plain text to LaTeX."""

import html
import re

_INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"<em>\1</em>"),
    # No other scheme: a link to javascript: would run whatever a name or a sample says.
    (re.compile(r"\[([^\]]+)\]\(((?:https?://|mailto:|#)[^)\s]*)\)"), r'<a href="\2">\1</a>'),
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "∞": r"$\infty$",
    "≈": r"$\approx$",
    "√": r"$\surd$",
    "→": r"$\to$",
    "‖": r"$\Vert$",
    "·": r"$\cdot$",
    "†": r"$\dagger$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "π": r"$\pi$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
}


def inline_html(text: str) -> str:
    """Return one line of Markdown as HTML: escaped, with `code`, **strong**, *emphasis* and links."""
    pieces = re.split(r"(`[^`]+`)", html.escape(text, quote=True))
    for index, piece in enumerate(pieces):
        # Inside code nothing else is markup, so that names such as a*b*c stay as they are.
        for pattern, replacement in _INLINE[:1] if piece.startswith("`") else _INLINE[1:]:
            piece = pattern.sub(replacement, piece)
        pieces[index] = piece
    return "".join(pieces)


def slug(text: str) -> str:
    """Return `text` as a file name and anchor: lower case, letters and digits, hyphens between words."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or "untitled"


def to_html(markdown: str) -> str:
    """Return Markdown as HTML; headings, paragraphs, lists, quotes and fenced code are understood, nothing else."""
    parts: list[str] = []
    for fence, block in _blocks(markdown):
        if fence:
            parts.append(f"<pre><code>{html.escape(block)}</code></pre>")
        elif heading := re.match(r"(#{1,4})\s+(.*)", block):
            # The page title is the only <h1>.
            level = min(len(heading[1]) + 1, 5) if len(heading[1]) == 1 else len(heading[1])
            parts.append(f'<h{level} id="{slug(heading[2])}">{inline_html(heading[2])}</h{level}>')
        elif re.match(r"[-*]\s", block) or re.match(r"\d+[.)]\s", block):
            parts.append(_list(block))
        elif block.startswith(">"):
            lines = [re.sub(r"^>\s?", "", line) for line in block.splitlines()]
            parts.append(f"<blockquote><p>{inline_html(' '.join(lines))}</p></blockquote>")
        else:
            parts.append(f"<p>{inline_html(' '.join(block.split()))}</p>")
    return "\n".join(parts)


def to_latex(text: str) -> str:
    """Return one table cell or caption for LaTeX: special characters escaped, **strong** and `code` kept."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)
    return re.sub(r"`([^`]+)`", r"\\texttt{\1}", escaped)


def _blocks(markdown: str) -> list[tuple[bool, str]]:
    """Split into (is fenced code, text) blocks at blank lines, headings and fences."""
    blocks: list[tuple[bool, str]] = []
    lines: list[str] = []
    fenced = False

    def close() -> None:
        if lines:
            blocks.append((fenced, "\n".join(lines)))
            lines.clear()

    for line in markdown.splitlines():
        if line.startswith("```"):
            close()
            fenced = not fenced
        elif fenced:
            lines.append(line)
        elif not line.strip():
            close()
        elif line.startswith("#"):
            close()
            blocks.append((False, line))
        else:
            # A list may follow its introduction without a blank line between them.
            if lines and re.match(r"[-*]\s|\d+[.)]\s", line) and not re.match(r"[-*]\s|\d+[.)]\s", lines[0]):
                close()
            lines.append(line)
    close()
    return blocks


def _list(block: str) -> str:
    """Return a flat list as HTML; a line without a marker continues the item above it."""
    items: list[str] = []
    for line in block.splitlines():
        marker = re.match(r"\s*(?:[-*]|\d+[.)])\s+(.*)", line)
        if marker:
            items.append(marker[1])
        else:
            items[-1] += " " + line.strip()
    tag = "ol" if block[0].isdigit() else "ul"
    return f"<{tag}>" + "".join(f"<li>{inline_html(item)}</li>" for item in items) + f"</{tag}>"
