"""What people type behind a command: completion of `group=option`, and what no parser of keys would explain."""

import os
import re
from collections.abc import Sequence

import typer

from multiref_cli.errors import RequestError


def complete_override(incomplete: str) -> list[str]:
    """Completions of one override: group names, then the options of a group, or its keys.

    Args:
        incomplete: what is typed so far, `reg`, `regularizer=r` or `optimizer.l`.

    Returns:
        Candidates that begin with it; a single group with its options, so that no blank is put behind the sign.
    """
    from multiref_cli.config.folders import groups, options

    group, equals, start = incomplete.partition("=")
    split = _split_group()
    if split is not None:
        return [name for name in options(split) if name.startswith(incomplete)]
    if equals:
        return [f"{group}={name}" for name in options(group) if name.startswith(start)]
    if "." in group:
        from multiref_cli.config.compose import known_keys

        return [f"{key}=" for key in sorted(known_keys()) if key.startswith(group)]
    found = [name for name in [*groups(), "alpha", "beta", "seed", "steps"] if name.startswith(group)]
    if len(found) == 1 and found[0] in groups():
        return [f"{found[0]}={name}" for name in options(found[0])]
    return [f"{name}=" for name in found]


def complete_study(incomplete: str) -> list[str]:
    """Completions of one setting of the laboratory: its keys, and the options of `study=`, several with commas."""
    from multiref_cli.config.folders import conf_directory, options

    known = options("theory/study")
    key, equals, start = incomplete.partition("=")
    split = _split_group()
    if split is not None or equals:
        before, comma, last = (start if equals else incomplete).rpartition(",")
        prefix = (f"{key}=" if equals else "") + before + comma
        return [f"{prefix}{name}" for name in known if name.startswith(last)] if (split or key) == "study" else []
    text = (conf_directory() / "theory" / "config.yaml").read_text(encoding="utf-8")
    keys = [*re.findall(r"^(\w+): \S", text, re.M), "regularizer", "run.dir", "run.name"]
    found = [name for name in ("study", *keys) if name.startswith(key)]
    return [f"study={name}" for name in known] if found == ["study"] else [f"{name}=" for name in found]


def _split_group() -> str | None:
    """The group whose option bash completes: to it an equals sign is a word of its own, `regularizer`, `=`, `r`."""
    words, place = os.environ.get("COMP_WORDS", "").split(), os.environ.get("COMP_CWORD", "")
    typed = words[: int(place) + 1] if place.isdigit() else []
    signs = [number for number in (len(typed) - 1, len(typed) - 2) if number > 0 and typed[number] == "="]
    return typed[signs[0] - 1] if signs else None


def complete_folder(incomplete: str) -> list[str]:
    """Completions of a run or sweep folder: what lies under runs/, or under the path that is typed so far."""
    from pathlib import Path

    start = incomplete or "runs/"
    parent = Path(start if start.endswith("/") else start.rpartition("/")[0] or ".")
    if not parent.is_dir():
        return []
    prefix = "" if str(parent) == "." and not start.startswith("./") else f"{parent}/"
    found = sorted(f"{prefix}{one.name}" for one in parent.iterdir() if one.is_dir() and one.name[0] != ".")
    return [name for name in found if name.startswith(start)]


def complete_topic(incomplete: str) -> list[str]:
    """Topics of `multiref help` that begin with what is typed so far."""
    from multiref_cli.cli.help import topics

    return [name for name in topics() if name.startswith(incomplete)]


def own_conf(folder: str | None) -> str | None:
    """Take the folder of `--conf` for the user's own config files."""
    from multiref_cli.config.folders import use_conf

    return use_conf(folder)


def asked(context: typer.Context, overrides: Sequence[str] | None) -> list[str]:
    """The overrides of a command, put together where a shell took them apart at blanks.

    Of a key that is given twice the last counts, which is said.

    Args:
        context: of the command.
        overrides: what stands behind it and is no option that it has.

    Raises:
        RequestError: an option that the command does not have, or a setting with dashes.
    """
    from multiref_cli.config.shell import joined

    given = joined(list(overrides or []))
    for number, text in enumerate(given):
        if text.startswith("-"):
            options = [option for one in context.command.params for option in one.opts if option.startswith("--")]
            raise RequestError(_dashed(text, given[number + 1 :], [*options, "--help"]))
    seen: dict[str, str] = {}
    for text in given:
        key = text.partition("=")[0].lstrip("+")
        if seen.get(key, text) != text:
            both = f"; {seen[key]},{text.partition('=')[2]} is an axis" if context.command.name == "sweep" else ""
            typer.echo(f"note: {key} is given twice; {text} counts, not {seen[key]}{both}", err=True)
        seen[key] = text
    return given


def _dashed(text: str, following: Sequence[str], options: Sequence[str]) -> str:
    """What is said of `--regularizer fkl`, and of an option that is misspelt."""
    from difflib import get_close_matches

    from multiref_cli.config.sentences import ELSEWHERE

    option, sign, value = text.partition("=")
    near = get_close_matches(option, options, n=1, cutoff=0.75)
    if near:
        return f"there is no option {option}; did you mean {near[0]}."
    behind = following[0] if following and "=" not in following[0] and following[0][0] != "-" else "VALUE"
    key = option.lstrip("-").replace("-", "_")
    shown = ELSEWHERE.get(key) or f"{key}={value if sign else behind}"
    return f"settings are written without dashes: {shown}; options are {', '.join(options)}."
