"""A page is written in every format, needs nothing from outside, and looks the same for the same content."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from multiref_cli.reports import style
from multiref_cli.reports.markup import slug, to_html, to_latex
from multiref_cli.reports.page import Page, format_cell


def _page() -> Page:
    figure, axes = style.new_figure()
    axes.plot([0, 1], [0, 1], **style.series(0).line())
    style.label_ends(axes, [(1, 1, "rkl", style.series(0).color)])
    page = Page("A < B")
    page.text("## One\n\n**bold** `a*b*c` and <script>\n\n## Two\n\n- first\n- second\n\n## Three\n\nend")
    page.table(["condition", "value"], [["rkl | α=0.3", 0.12345], ["fkl_x", None]], "Values & more", name="values")
    return page.figure("curve", figure, "A curve.").figure("curve", style.new_figure()[0], "Another.")


class _Tags(HTMLParser):
    """Collects open tags, ids and references, and checks that what is opened is closed."""

    VOID = frozenset({"meta", "br", "img", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.note(attributes)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.note(attributes)

    def note(self, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag


def test_html_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    tags = _Tags()
    text = _page().write(tmp_path).read_text()
    tags.feed(text)
    assert tags.stack == []
    assert len(tags.ids) == len(set(tags.ids))
    assert all(link.startswith("#") and link[1:] in tags.ids for link in tags.links)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:|figures/)", text)
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert style.PALETTE[0] not in text.split("</style>")[1]


def test_every_format_is_written(tmp_path: Path) -> None:
    _page().write(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    images = {f"figures/{name}.{kind}" for name in ("curve", "curve-2") for kind in ("png", "svg")}
    assert names == {"index.html", "report.md", "tables/values.tex"} | images
    markdown = (tmp_path / "report.md").read_text()
    assert "| rkl \\| α=0.3 | 0.1235 |" in markdown and "![curve](figures/curve.png)" in markdown
    assert r"fkl\_x & --" in (tmp_path / "tables" / "values.tex").read_text()


def test_same_page_gives_same_bytes(tmp_path: Path) -> None:
    first, second = (_page().write(tmp_path / name).parent for name in ("a", "b"))
    for path in first.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name


def test_rows_must_fit_headers() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 headers"):
        Page("x").table(["a", "b"], [["only one"]])


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.1235"), (-2.0, "−2"), (None, "–"), (float("nan"), "–"), (True, "yes"), (3, "3")]
)
def test_cells(value: object, text: str) -> None:
    assert format_cell(value) == text


def test_markup() -> None:
    assert to_html("Intro:\n- a\n  more\n- b") == "<p>Intro:</p>\n<ul><li>a more</li><li>b</li></ul>"
    assert to_html("```\n# x < y\n\nz\n```") == "<pre><code># x &lt; y\n\nz</code></pre>"
    assert to_latex("**5 %** α_i") == r"\textbf{5 \%} $\alpha$\_i"
    assert slug("Reward against KL (α = .5)") == "reward-against-kl-5"


def test_spread_keeps_order_and_distance() -> None:
    """0.50 and 0.52 are pushed to 0.46 and 0.56 around their mean; 0.9 is far away and stays."""
    assert style.spread([0.5, 0.52, 0.9], 0.1) == pytest.approx([0.46, 0.56, 0.9])
    assert style.spread([0.0, 0.0, 0.0], 0.1) == pytest.approx([-0.1, 0.0, 0.1])


@pytest.mark.parametrize("target", ["javascript:alert(1)", "data:text/html,x", "JavaScript:x", "file:///etc/passwd"])
def test_a_link_to_anything_but_a_page_is_text(target: str) -> None:
    from multiref_cli.reports.markup import inline_html

    assert "<a" not in inline_html(f"[x]({target})")
    for good in ("https://arxiv.org/abs/2502.01203", "http://x.org", "mailto:a@b.org", "#figure"):
        assert inline_html(f"[x]({good})") == f'<a href="{good}">x</a>'


def test_text_in_a_csv_cell_is_no_formula() -> None:
    from multiref_cli.reports.collect import cell_text

    assert [cell_text(t) for t in ("=1+1", "+x", "-x", "@x", "rkl")] == ["'=1+1", "'+x", "'-x", "'@x", "rkl"]
