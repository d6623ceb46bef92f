"""`multiref list`: the groups of conf/, what their options are, and their files. Reads text, composes nothing."""

import re
from pathlib import Path

from multiref_cli.cli import display
from multiref_cli.config.folders import conf_directory, groups, options, own_conf_directory
from multiref_cli.errors import RequestError

STUDY = "theory/study"  # the group of `multiref theory`; all others belong to experiments and sweeps
_COMMANDS = {"sweep": "multiref sweep", STUDY: "multiref theory"}


def show(group: str | None, option: str | None) -> None:
    """Print all groups, the options of one group with the first comment line of each, or one file as it is.

    Args:
        group: name of a group, or GROUP=OPTION; None: all groups.
        option: name of an option, or of the group's base; None: all options.

    Raises:
        RequestError: there is no such group or option.
    """
    if group is None:
        return _show_groups()
    name, _, given = group.partition("=")
    if given and option:
        raise RequestError(f"{group} is one file already; drop {option}.")
    known = [*groups(), STUDY]
    if name not in known:
        raise RequestError(f"there is no group {name!r}; groups: {', '.join(known)}.")
    option = option or given
    if not option:
        return _show_options(name)
    path = _files(name).get(option)
    if path is None:
        raise RequestError(f"{name} has no option {option!r}; options: {', '.join(options(name))}.")
    print(path.read_text(encoding="utf-8"), end="")


def summary(text: str) -> str:
    """First comment line of a YAML file, with the lines that finish its sentence; empty without a comment."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("# @package")]
    comment = [line.lstrip("# ").rstrip() for line in lines[: _comment_length(lines)]]
    first, rest = comment[0] if comment else "", " ".join(comment[1:])
    if first.endswith((".", ":")) or not rest:
        return first
    return f"{first} {re.split(r'(?<=[.])(?= [A-Z]|$)', rest)[0]}"


def _comment_length(lines: list[str]) -> int:
    return next((n for n, line in enumerate(lines) if not line.startswith("#") or not line.strip("# ")), len(lines))


def _files(group: str) -> dict[str, Path]:
    """The files of a group by name, bases too; where a shipped one and an own one share a name, the shipped one."""
    return {
        path.relative_to(folder / group).with_suffix("").as_posix(): path
        for folder in (own_conf_directory(), conf_directory())
        if folder
        for path in (folder / group).rglob("*.yaml")
    }


def _defaults(folder: str) -> dict[str, str]:
    """What each group is where nothing else is chosen, from the root config of the folder."""
    text = (conf_directory() / folder / "config.yaml").read_text(encoding="utf-8")
    # By pattern: importing and running a YAML parser would take longer than everything else here.
    return {key: "" if value == "null" else value for key, value in re.findall(r"^  - (\w+): (\S+)", text, re.M)}


def _show_groups() -> None:
    defaults = _defaults("") | {STUDY: _defaults("theory")["study"]}
    rows = [[group, defaults.get(group, ""), ", ".join(_marked(_files(group)))] for group in (*groups(), STUDY)]
    display.table("", ["group", "default", "options"], rows)
    _explain_star(" ".join(row[2] for row in rows))
    display.line("What they are: multiref list GROUP. A file: multiref list GROUP OPTION.")


def _show_options(group: str) -> None:
    folder, _, key = group.rpartition("/")
    default = _defaults(folder).get(key)
    usage = f"{_COMMANDS.get(group, 'multiref train')} {key}=OPTION" + (f" (default: {default})" if default else "")
    files = _files(group)
    rows = [[shown, summary(files[o].read_text(encoding="utf-8"))] for shown, o in _marked(files).items()]
    display.table(usage, ["option", "what it is"], rows)
    _explain_star(" ".join(row[0] for row in rows))
    if "_base" in files:
        display.line(f"Every key, with its usual value: multiref list {group} _base")


def _marked(files: dict[str, Path]) -> dict[str, str]:
    """The options among the files, sorted, by how they are shown: with a star where the file is the user's own."""
    shipped = conf_directory()
    names = sorted(name for name in files if not Path(name).name.startswith("_"))
    return {name if files[name].is_relative_to(shipped) else f"{name} *": name for name in names}


def _explain_star(shown: str) -> None:
    if "*" in shown:
        display.line(f"* in {own_conf_directory()}; a file there with the name of a shipped one is refused.")
