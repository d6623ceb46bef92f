"""The README says what the committed results say, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from multiref_cli.config.check import check
from multiref_cli.config.compose import compose
from multiref_cli.reports.compare import BEGIN, END, read_rows, readme_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PUBLISHED = ("runs/published/embedded.csv", "runs/published/estimators.csv")
COLUMNS = ("toy_gold", "reward_model", "toy_verifier", "kl/mixed")


@pytest.mark.parametrize("path", PUBLISHED)
def test_the_results_are_those_of_the_committed_csv(path):
    begin = BEGIN.format(path=path)
    start = README.index(begin) + len(begin)
    shown = README[start : README.index(END, start)].strip()
    assert shown == readme_table(read_rows(ROOT / path), COLUMNS).strip()


def test_every_picture_and_file_that_it_names_is_there():
    names = re.findall(r"\]\(((?!http|#)[^)]+)\)", README)
    assert names
    for name in names:
        assert (ROOT / name).is_file(), name


COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("multiref train experiment=")]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_train_commands_are_valid(command):
    overrides = [word for word in shlex.split(command)[2:] if not word.startswith("--")]
    check(compose(overrides))
