"""The files of conf/: a first line that says what a file is, every key explained once, bases that are no options."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from multiref_cli.cli.overrides import complete_override
from multiref_cli.config.folders import conf_directory, groups, options

CONF = conf_directory()
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
GLOBAL = "# @package _global_"


def keys(node: yaml.Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every key of a YAML tree with the number of its line; the entries of lists are values, not keys."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line
            yield from keys(value, (*path, key.value))


def key_lines(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(group, key, whether a comment stands with it) of one file; the group of a root key is "" or the group's name."""
    text = (CONF / path).read_text()
    lines, group = text.splitlines(), "" if text.startswith(GLOBAL) else path.parent.as_posix().removeprefix(".")
    for names, line in keys(yaml.compose(text) or yaml.MappingNode("", [])):
        if names[0] == "defaults":
            continue
        owner = group if group or names[0] not in groups() else names[0]
        if owner != names[-1]:  # `optimizer:` in an experiment says which group the keys below it belong to
            yield owner, names[-1], "#" in lines[line] or lines[line - 1].lstrip().startswith("#")


def unexplained(files: list[Path]) -> list[str]:
    """Keys that no file of their group has a comment above or names in a comment."""
    comments: dict[str, str] = {}
    bare: dict[tuple[str, str], Path] = {}
    explained: set[tuple[str, str]] = set()
    for path in files:
        words = re.findall(r"#(.*)", (CONF / path).read_text())
        comments[path.parent.as_posix()] = comments.get(path.parent.as_posix(), "") + "\n".join(words)
        for group, key, commented in key_lines(path):
            explained |= {(group, key)} if commented else set()
            bare.setdefault((group, key), path)
    named = {(g, k) for g, k in bare if re.search(rf"\b{re.escape(k)}\b", comments.get(g or ".", ""))}
    return [f"{path}: {key}" for (group, key), path in bare.items() if (group, key) not in explained | named]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_says_first_what_it_is(path):
    lines = (CONF / path).read_text().splitlines()
    first = lines[1] if lines[0] == GLOBAL else lines[0]
    assert re.match(r"# \S.{10,}", first), first


def test_every_key_is_explained_once_in_its_group():
    assert unexplained(FILES) == []


def test_a_key_without_a_word_is_seen(tmp_path, monkeypatch):
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware" / "auto.yaml").write_text("# One device.\n\n# auto or cpu.\ndevice: auto\nspeed: 1\n")
    (tmp_path / "hardware" / "cpu.yaml").write_text("# The CPU.\n\ndevice: cpu\n")
    monkeypatch.setitem(globals(), "CONF", tmp_path)
    assert unexplained([Path("hardware/auto.yaml"), Path("hardware/cpu.yaml")]) == ["hardware/auto.yaml: speed"]


@pytest.mark.parametrize("path", [path for path in FILES if path.name.startswith("_")], ids=str)
def test_a_base_is_no_option(path):
    group = path.parts[0]
    name = path.relative_to(group).with_suffix("").as_posix()
    assert name not in options(group) and f"{group}={name}" not in complete_override(f"{group}=")
