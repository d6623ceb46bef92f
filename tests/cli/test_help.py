"""`multiref help`: topics as they lie beside the code, drawn on a terminal and plain when piped."""

import re
import subprocess
import sys
from io import StringIO

import pytest

from multiref_cli.cli import display
from multiref_cli.cli.help import FOLDER, shown, topics
from multiref_cli.cli.overrides import complete_topic

PROCESS = "import sys; from multiref_cli.cli.app import main\ntry: main()\nfinally: {end}"
PROMISED = {"mathematics", "data", "sweeps", "references", "statistics", "scale"}


def test_without_a_topic_all_are_listed_with_what_they_say(multiref, capsys):
    assert multiref("help") == 0
    lines = capsys.readouterr().out.splitlines()
    found = topics()
    assert PROMISED <= set(found) == {path.stem for path in FOLDER.glob("*.md")}
    for name, title in found.items():
        (line,) = [line for line in lines if line.split(" ")[0] == name]
        assert title and line.split(maxsplit=1)[1].strip() == title


@pytest.mark.parametrize("topic", sorted(PROMISED))
def test_a_topic_is_printed_as_it_stands(multiref, capsys, topic):
    """But for what GitHub alone shows: marks of generated blocks, and pictures."""
    assert multiref("help", topic) == 0
    text = (FOLDER / f"{topic}.md").read_text()
    assert capsys.readouterr().out == shown(text).rstrip() + "\n"
    assert text.startswith("# ") and ": " in text.splitlines()[0]


def test_marks_go_and_pictures_are_named():
    text = "a\n<!-- results: made by x; do not edit -->\n| b |\n<!-- results end -->\n![Score](../../runs/p/x.png)\n"
    assert shown(text) == "a\n| b |\nFigure `runs/p/x.png` of the repository: Score.\n"


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("dat", "there is no topic 'dat'; did you mean 'data'."),
        ("mathmatics", "there is no topic 'mathmatics'; did you mean 'mathematics'."),
        ("zzz", f"there is no topic 'zzz'; allowed: {', '.join(topics())}."),
        ("train", f"train is a command, not a topic: multiref train --help; topics: {', '.join(topics())}."),
        ("refs", "refs is a command, not a topic: multiref refs --help"),
        ("list", "list is a command, not a topic: multiref list --help"),
        ("../cli", "there is no topic '../cli'"),
    ],
)
def test_what_is_no_topic_is_answered_in_one_sentence(multiref, capsys, topic, said):
    assert multiref("help", topic) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize("width", [50, 90, 200])
def test_on_a_terminal_it_is_drawn_within_its_width(multiref, monkeypatch, width):
    """Headings, bold and tables are drawn, not spelled."""
    screen = StringIO()
    console = display.Console(file=screen, force_terminal=True, width=width, color_system="standard")
    monkeypatch.setattr(display, "_console", console)
    assert multiref("help", "statistics") == 0
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "\x1b[1m" in screen.getvalue() and "**" not in drawn and "```" not in drawn
    assert max(map(len, drawn.splitlines())) <= min(width, 120)


def test_topics_are_completed():
    assert complete_topic("ma") == ["mathematics"] and set(complete_topic("")) == set(topics())


def test_it_is_quick_and_imports_nothing_heavy():
    end = "assert not {'torch', 'hydra', 'omegaconf', 'transformers'} & set(sys.modules)"
    command = [sys.executable, "-c", PROCESS.format(end=end), "help", "mathematics"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("# Mathematics"), done.stderr
