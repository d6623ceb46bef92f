"""`multiref list`: what can be chosen, what it is, and the file behind it."""

import subprocess
import sys
from pathlib import Path

import pytest

from multiref_cli.cli import display
from multiref_cli.cli.list import STUDY, summary
from multiref_cli.config.folders import conf_directory, groups, options

PROCESS = "import sys, time; from multiref_cli.cli.app import main\ntry: main()\nfinally: {end}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a conf/ folder of its own."""
    monkeypatch.chdir(tmp_path)


def listed(multiref, capsys, *arguments: str) -> list[str]:
    assert multiref("list", *arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def test_every_group_stands_with_its_default_and_its_options(multiref, capsys):
    lines = listed(multiref, capsys)
    for group in (*groups(), STUDY):
        (first,) = [number for number, line in enumerate(lines) if line.split(" ")[0] == group]
        row = " ".join(" ".join(lines[first : first + 3]).split())  # a long list goes on below
        assert ", ".join(options(group)) in row
    assert next(line for line in lines if line.startswith("regularizer")).split()[1] == "rkl"
    assert next(line for line in lines if line.startswith("experiment ")).split()[1] == "distill_toy,"  # no default


@pytest.mark.parametrize("group", [*groups(), STUDY])
def test_every_option_of_a_group_stands_with_its_first_comment_line(multiref, capsys, group):
    lines = listed(multiref, capsys, group)
    for option in options(group):
        comments = (conf_directory() / group / f"{option}.yaml").read_text().splitlines()
        first = next(line for line in comments if not line.startswith("# @package")).removeprefix("# ")
        (row,) = [line for line in lines if line.split(" ")[0] == option]
        assert row[len(option) :].strip().startswith(first)
    assert f"{group.split('/')[-1]}=OPTION" in lines[0]


@pytest.mark.parametrize("words", [("regularizer", "rkl"), ("regularizer=rkl",)])
def test_an_option_is_printed_as_its_file_stands(multiref, capsys, words):
    assert multiref("list", *words) == 0
    assert capsys.readouterr().out == (conf_directory() / "regularizer" / "rkl.yaml").read_text()


def test_options_in_subfolders_and_bases_are_printed_too(multiref, capsys):
    assert listed(multiref, capsys, "experiment", "embedded/math")[0] == "# @package _global_"
    assert "Every key, with its usual value: multiref list data _base" in listed(multiref, capsys, "data")
    assert listed(multiref, capsys, "data", "_base")[0].startswith("# Every key of a data set")


def test_files_of_the_users_own_are_marked_and_shipped_ones_go_first(multiref, capsys):
    own = Path("conf/regularizer")
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# A penalty of my own.\ndefaults: [_base, _self_]\nname: mine\n")
    (own / "rkl.yaml").write_text("# Not this one.\n")
    Path("conf/extra").mkdir()
    Path("conf/extra/thing.yaml").write_text("a: 1\n")
    lines = listed(multiref, capsys, "regularizer")
    assert next(line.split() for line in lines if "*" in line) == ["mine", "*", "A", "penalty", "of", "my", "own."]
    assert not any("Not this one" in line or line.startswith("rkl *") for line in lines)
    assert any(line.startswith(f"* in {Path.cwd() / 'conf'}") for line in lines)
    assert any(line.split() == ["extra", "thing", "*"] for line in listed(multiref, capsys))
    assert listed(multiref, capsys, "regularizer=mine")[0] == "# A penalty of my own."
    assert listed(multiref, capsys, "regularizer=rkl")[0].startswith("# Reverse KL")
    assert not any(line.startswith("*") for line in listed(multiref, capsys, "data"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("regularizr",), f"there is no group 'regularizr'; groups: {', '.join([*groups(), STUDY])}."),
        (("regularizr=rkl",), "there is no group 'regularizr'; groups: "),
        (("rollout", "vlm"), "rollout has no option 'vlm'; options: toy, transformers, vllm."),
        (("rollout=../config",), "rollout has no option '../config'; options: toy, transformers, vllm."),
        (("rollout=toy", "vllm"), "rollout=toy is one file already; drop vllm."),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(multiref, capsys, words, sentence):
    assert multiref("list", *words) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_a_terminal(multiref, capsys, monkeypatch, width):
    monkeypatch.setattr(display, "_console", display.Console(highlight=False, soft_wrap=True, width=width))
    for words in ((), *((group,) for group in (*groups(), STUDY))):
        assert max(map(len, listed(multiref, capsys, *words))) <= width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# One line.\n\n# A key.\na: 1\n", "One line."),
        (
            "# @package _global_\n# Half a sentence\n# goes on, Eq. 3. Another one.\na: 1\n",
            "Half a sentence goes on, Eq. 3.",
        ),
        ("# A title\n#\n# A text.\n", "A title"),
        ("# Whole. And a half\n# that ends. No more.\n", "Whole. And a half that ends."),
        ("a: 1  # no\n", ""),
        ("", ""),
    ],
)
def test_the_summary_is_the_first_line_and_the_rest_of_its_sentence(text, shown):
    assert summary(text) == shown


def test_it_is_quick_and_imports_nothing_heavy():
    end = "assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules); sys.stderr.write(str(time.process_time()))"
    command = [sys.executable, "-c", PROCESS.format(end=end), "list", "regularizer"]
    done = [subprocess.run(command, capture_output=True, text=True) for _ in range(2)]
    assert all(one.returncode == 0 for one in done), done[0].stderr
    assert min(float(one.stderr) for one in done) < 1.0  # 0.35 s on an idle machine; the bound allows for a busy one
