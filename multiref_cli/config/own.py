"""Config files of a user's own: mistakes in one are said with its name, and a forgotten header is forgiven."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig

from multiref_cli.config.folders import conf_directory, own_conf_directory
from multiref_cli.config.sentences import nearest
from multiref_cli.config.written import is_open, key_types
from multiref_cli.errors import RequestError

_HEADER = "# @package _global_"
# Keys that Hydra reads, and those that a config is made from.
_HYDRAS = ("defaults", "first", "second", "own")


def own_files(choices: Mapping[str, Any]) -> dict[str, Path]:
    """The user's own files among what was chosen: group -> file."""
    own = own_conf_directory()
    if own is None:
        return {}
    found = {group: own / group / f"{option}.yaml" for group, option in choices.items()}
    return {
        group: path
        for group, path in found.items()
        if path.is_file() and not (conf_directory() / path.relative_to(own)).is_file()
    }


def check_own_files(choices: Mapping[str, Any], keys: Collection[str]) -> None:
    """Refuse keys in the user's own files that no experiment has.

    Args:
        choices: group -> option.
        keys: dotted, all that an experiment with any algorithm has.

    Raises:
        RequestError: naming the file, the key and the nearest one.
    """
    for group, path in own_files(choices).items():
        everywhere = _HEADER in path.read_text(encoding="utf-8")
        if group == "experiment" and not everywhere:
            raise RequestError(f"{shown(path)}: its first line has to be '{_HEADER}': its keys are the run's own.")
        content = yaml.safe_load(path.read_bytes())  # Hydra has read it before
        if not isinstance(content, dict):  # a list of references
            continue
        beside = [str(key) for key in content if key not in ("references", *_HYDRAS)]
        if group == "references" and not everywhere and beside:
            raise RequestError(
                f"{shown(path)}: its first line has to be '{_HEADER}', for {beside[0]} beside references."
            )
        prefix = "" if everywhere or group == "references" else f"{group}."
        for key, value in content.items():
            if key not in _HYDRAS:
                _check_key(path, f"{prefix}{key}", key, value, keys)


def _check_key(path: Path, full: str, key: object, value: object, keys: Collection[str]) -> None:
    above = full.rpartition(".")[0]
    if full not in keys and not is_open(full):
        siblings = [one for one in keys if one.rpartition(".")[0] == above]
        here = nearest(full, sorted(siblings)).replace(f"{above}." if above else "", "")
        raise RequestError(f"{shown(path)}: there is no key {str(key)!r}{here}.")
    kind = key_types().get(full)
    if isinstance(value, dict) and isinstance(kind, type) and is_dataclass(kind):
        for below, inner in value.items():
            _check_key(path, f"{full}.{below}", f"{key}.{below}", inner, keys)
    elif get_origin(kind) is list and isinstance(value, list):
        _check_list(path, key, value, get_args(kind)[0])


def _check_list(path: Path, key: object, values: Sequence[object], kind: Any) -> None:
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return
    names = [one for base in reversed(kind.__mro__) for one in getattr(base, "__annotations__", {})]
    for number, below in _keys(values):
        if below not in names:
            raise RequestError(f"{shown(path)}: {key}[{number}] has no key {below!r}{nearest(below, names)}.")


def _keys(values: Sequence[object]) -> Iterator[tuple[int, str]]:
    return ((number, str(key)) for number, one in enumerate(values) if isinstance(one, dict) for key in one)


def shown(path: Path) -> str:
    """A file as it is seen from where the user works."""
    return os.path.relpath(path)


def where(message: str, choices: Mapping[str, Any]) -> str:
    """A refusal with the own file that the key it begins with comes from, if one of them sets it."""
    for group, path in own_files(choices).items():
        if message.startswith(f"{group}."):
            return f"{message.rstrip('.')} (in {shown(path)})."
    return message


def lifted(plain: DictConfig) -> DictConfig:
    """A config whose references come from an own file without its header: they go where they belong."""
    inner = plain.get("references")
    if isinstance(inner, DictConfig) and "references" in inner:
        plain["references"] = inner["references"]
    return plain
