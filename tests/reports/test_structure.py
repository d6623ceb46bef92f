"""The first screen is short, everything else folds, nothing comes from outside, and links lead somewhere."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from multiref_cli.reports.collect import conditions, read_run
from multiref_cli.reports.first_screen import Job, answers, arms, chosen
from multiref_cli.reports.job_section import compared, jobs, titles
from multiref_cli.reports.page import Page
from multiref_cli.reports.report import write_report
from multiref_cli.reports.varied import varied
from multiref_cli.sweeps.ledger import Ledger


class Tree(HTMLParser):
    """What stands where: ids, links, tables with the details around them, pictures with their words."""

    VOID = frozenset({"meta", "br", "img", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables: list[tuple[int, int]] = []  # details around it, rows with the head
        self.pictures: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if tag == "a" else []
        self.outside += [str(found[name]) for name in ("src", "srcset", "data") if name in found]
        if tag in ("link", "iframe", "object", "embed"):
            self.outside.append(tag)
        if tag == "table":
            self.tables.append((self.open.count("details"), 0))
        if tag == "tr":
            depth, rows = self.tables[-1]
            self.tables[-1] = depth, rows + 1
        if tag in ("svg", "img"):
            self.pictures.append(found)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"] or ""] if "id" in found else []

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(offline: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One job with everything that is drawn of it."""
    return write_report([offline.path], tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def tree(page: Path) -> Tree:
    """Its HTML."""
    return Tree(page.read_text())


def test_ids_are_unique_and_everything_is_closed(tree: Tree) -> None:
    assert tree.open == [] and len(tree.ids) == len(set(tree.ids)) and len(tree.ids) > 20


def test_a_table_that_is_not_folded_has_at_most_ten_rows(tree: Tree) -> None:
    shown = [rows - 1 for depth, rows in tree.tables if depth == 0]
    assert len(shown) == 1 and 0 < shown[0] <= 10
    assert max(rows for depth, rows in tree.tables if depth) > 30


def test_nothing_comes_from_outside_and_links_lead_somewhere(page: Path, tree: Tree) -> None:
    text = page.read_text()
    assert tree.outside == []
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)", text.split("<body>")[0])
    files = [link for link in tree.links if not link.startswith("#")]
    assert all(link[1:] in tree.ids for link in tree.links if link.startswith("#"))
    assert all((page.parent / unquote(link)).exists() for link in files)
    names = {Path(unquote(link)).name for link in files}
    assert {"summary.csv", "results.csv", "config.yaml", "gold-against-alpha.svg"} & names >= {
        "summary.csv",
        "results.csv",
    }
    figures = {path.name for path in (page.parent / "figures").iterdir()}
    assert figures <= names


def test_every_picture_has_words(tree: Tree) -> None:
    assert len(tree.pictures) > 3
    assert all(one.get("role") == "img" and len(one.get("aria-label") or "") > 20 for one in tree.pictures)


def test_sections_of_one_name_say_what_differs(offline: Ledger, scales: Ledger) -> None:
    groups = jobs(conditions(read_run(folder) for folder in scales.run_folders()))
    found = titles(groups)
    assert len(set(found)) == len(found) == 2
    assert [re.search(r"\((.*)\)$", title)[1] for title in found] == ["inner_iterations=1", "inner_iterations=2"]
    alone = jobs(conditions(read_run(folder) for folder in offline.run_folders()))
    assert titles(alone) == ["Offline: DPO on toy_preferences with instruct + instruct_large"]


def test_two_jobs_share_the_first_screen(scales: Ledger, tmp_path: Path, undrawn: None) -> None:
    tree = Tree(write_report([scales.path], tmp_path).read_text())
    assert len(tree.ids) == len(set(tree.ids)) and "figure-overview" in tree.ids
    assert [rows - 1 for depth, rows in tree.tables if depth == 0] == [8]


def test_two_sections_of_one_title_have_two_anchors(tmp_path: Path) -> None:
    page = Page("x").text("## A\n\none\n\n## A\n\ntwo\n\n### B\n\nthree\n\n```\n## no heading\n```")
    tree = Tree(page.write(tmp_path).read_text())
    assert [one for one in tree.ids if one in ("a", "a-2", "b")] == ["a", "a-2", "b"] and "no-heading" not in tree.ids


def test_what_varies_is_what_was_asked_for(offline: Ledger, scales: Ledger, estimators: Ledger) -> None:
    found = [conditions(read_run(f) for f in ledger.run_folders()) for ledger in (offline, scales, estimators)]
    assert varied(found[0]) == {"regularizer": ["fkl", "mrpo", "rkl"], "alpha": ["0.3", "0.5", "0.7"]}
    assert varied(found[1]) == {
        "algorithm.advantage_scale": ["group", "none"],
        "algorithm.inner_iterations": ["1", "2"],
    }
    assert varied(found[2])["regularizer.estimator"] == ["exact", "k3"]


def test_the_first_sentence_follows_from_the_arms(offline: Ledger) -> None:
    (found,) = jobs(conditions(read_run(folder) for folder in offline.run_folders()))
    job = Job("job", found, compared(found))
    ranked = arms(job)
    assert job.metric == "gold"
    assert [one.score.mean for one in ranked] == sorted((one.score.mean for one in ranked), reverse=True)
    assert ranked[0].label == "rkl (mean over 3 α)"
    verdict = ranked[0].verdict
    alone = [v for v in job.verdicts if v.metric == "gold" and v.first == ranked[0].label]
    alone = [v for v in alone if v.kind == "single reference"]
    assert verdict is not None and verdict.comparison.difference.mean == min(
        v.comparison.difference.mean for v in alone
    )
    (sentence,) = answers([(job, ranked)])
    assert "**rkl (mean over 3 α)** ends highest of 7 on gold" in sentence
    assert f"against {verdict.second}" in sentence and "significantly above" in sentence
    kept = chosen(ranked, 4)
    assert len(kept) == 4 and {"several references", "one reference alone", "untrained"} <= {one.kind for one in kept}


def test_a_note_of_one_condition_is_not_told_of_all(offline: Ledger, tmp_path: Path, undrawn: None) -> None:
    import shutil

    shutil.copytree(offline.path, tmp_path / "sweep")
    run = next(path for path in Ledger(tmp_path / "sweep").run_folders() if "-fkl-a0.3" in path.name)
    results = json.loads((run / "results.json").read_text())
    results["notes"] += ["something of its own"]
    (run / "results.json").write_text(json.dumps(results))
    text = (write_report([tmp_path / "sweep"]).parent / "report.md").read_text()
    assert "- fkl α=0.3 β=1: something of its own" in text
    assert "- reward model reward_model: held-out accuracy 0.812" in text


def test_columns_that_say_the_same_are_shown_once_and_noise_is_marked(offline: Ledger, tmp_path: Path, undrawn) -> None:
    import shutil

    shutil.copytree(offline.path, tmp_path / "sweep")
    for run in Ledger(tmp_path / "sweep").run_folders():
        results = json.loads((run / "results.json").read_text())
        results["metrics"]["pass@2/gold"] = results["metrics"]["gold"]
        if "-rkl-a0.3" in run.name:
            results["metrics"]["kl/instruct"]["mean"] = -0.01
        (run / "results.json").write_text(json.dumps(results))
    text = (write_report([tmp_path / "sweep"]).parent / "report.md").read_text()
    assert "Equal in every run, shown once: gold is pass@2/gold too." in text
    assert "| pass@2/gold |" not in text
    rows = [line for line in text.splitlines() if "†" in line and line.startswith("|")]
    assert rows and all(line.startswith("| rkl α=0.3 β=1 |") for line in rows) and "no KL is negative" in text
