"""From command-line overrides to a typed config: the only module that imports Hydra."""

import difflib
import logging
import os
import re
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from multiref_cli.config.folders import conf_directory, groups, options, own_conf_directory
from multiref_cli.config.schema import (
    ALGORITHMS,
    Ctro,
    Evaluation,
    Experiment,
    Lora,
    Policy,
    Regularizer,
    Reward,
    Scorer,
)
from multiref_cli.errors import RequestError

# Parts of an experiment that may be absent, filled in where their keys are wanted.
_OPTIONAL: dict[str, Any] = {
    "regularizer": Regularizer(ctro=Ctro()),
    "reward": Reward(),
    "policy": Policy(lora=Lora()),
    "evaluation": Evaluation(scorer=Scorer()),
}


def compose(overrides: list[str]) -> DictConfig:
    """Compose conf/config.yaml with Hydra overrides and merge it over the typed `Experiment`.

    Args:
        overrides: as on the command line, `["algorithm=dpo", "alpha=0.3", ...]`.

    Returns:
        A struct DictConfig in which every key is known and typed.

    Raises:
        RequestError: an unknown group, option or key, a wrong type or a missing value; one sentence.
    """
    plain = compose_plain([_addable(override) for override in overrides])
    name = plain.algorithm.get("name") if "algorithm" in plain else None
    if name not in ALGORITHMS:
        raise RequestError(f"algorithm.name is {name!r}; allowed: {', '.join(ALGORITHMS)}.")
    return typed(plain, Experiment(algorithm=ALGORITHMS[name]()))


def _addable(override: str) -> str:
    # A key of the schema can be set even where the chosen YAML file does not list it (Hydra's "++").
    key = override.partition("=")[0]
    return f"++{override}" if "=" in override and key in known_keys() and key not in groups() else override


def compose_plain(overrides: list[str], folder: str = "", root: Any = None) -> DictConfig:
    """Compose `conf/<folder>/config.yaml` with overrides, untyped; Hydra's errors become one sentence.

    Args:
        overrides: as on the command line.
        folder: within conf/.
        root: dataclass of the folder's schema, whose nearest key an error names; None: any experiment.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    own = own_conf_directory()
    searchpath = [f"hydra.searchpath=[file://{own / folder}]"] if own else []
    try:
        with _hydra_alone(), initialize_config_dir(version_base="1.3", config_dir=str(conf_directory() / folder)):
            return hydra_compose("config", overrides=[*searchpath, *overrides])
    except YAMLError as error:
        raise RequestError(f"a config file is not valid YAML: {' '.join(str(error).split())}.") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises ValueError for group=null
        raise RequestError(_sentence(error, folder, keys_of(root) if root else known_keys())) from error


def typed(plain: DictConfig, root: Any) -> DictConfig:
    """Merge a composed config over dataclasses, so that `+typo=1` and wrong types are refused."""
    try:
        missing = sorted(OmegaConf.missing_keys(plain))
        config = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(root), {} if missing else plain))
        OmegaConf.resolve(config)
        missing = missing or sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as error:
        raise RequestError(_sentence(error, "", keys_of(root))) from error
    if missing:
        raise RequestError(f"{missing[0]} has no value; give it as {missing[0]}=VALUE.")
    return config


def compose_saved(path: Path, overrides: list[str] | None = None) -> DictConfig:
    """The config of a run folder, with a few keys changed.

    Args:
        path: config.yaml of a run.
        overrides: `key=value` and `group=option`, as on the command line.

    Raises:
        RequestError: the file or an override does not fit the schema.
    """
    plain = cast(DictConfig, OmegaConf.load(path))
    for override in _parsed(overrides or []):
        key, value = override.get_key_element(), override.value()
        if key in groups() and isinstance(value, str):
            plain[key] = compose_plain([f"{key}={value}"])[key]
        else:
            OmegaConf.update(plain, key, value)
    name = plain.algorithm.get("name")
    return typed(plain, Experiment(algorithm=ALGORITHMS[name]()))


def _parsed(overrides: list[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise RequestError(_sentence(error, "", known_keys())) from error


def expand_axes(overrides: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Split overrides into sweep axes and fixed overrides.

    Args:
        overrides: an axis has several values: `alpha=0.1,0.5`, `seed=range(0,3)`, `'alpha=[0.2,0.8],[0.5,0.5]'`,
            `regularizer=choice(rkl,fkl)`, `regularizer=glob(rkl*)`.

    Returns:
        (axes, fixed): key -> list of values as override texts, in the given order; the overrides with one value.

    Raises:
        RequestError: an override that does not parse.
    """
    from hydra.core.override_parser.types import Glob

    axes: dict[str, list[str]] = {}
    fixed: list[str] = []
    for text, override in zip(overrides, _parsed(overrides)):
        if not override.is_sweep_override():
            fixed.append(text)
            continue
        value = override.value()
        if isinstance(value, Glob):
            values = value.filter(options(override.key_or_group))
        else:
            values = list(override.sweep_string_iterator())
        axes[override.get_key_element()] = values
    return axes, fixed


@contextmanager
def _hydra_alone():
    # Hydra's state is global: save it and the root logging handlers, so that composing works inside a running task.
    from hydra.core.global_hydra import GlobalHydra

    instance = GlobalHydra.instance()
    saved, handlers = instance.hydra, list(logging.root.handlers)
    instance.hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = saved
        logging.root.handlers[:] = handlers


def _sentence(error: Exception, folder: str, keys: set[str]) -> str:
    """One sentence out of Hydra's or OmegaConf's message, with the nearest valid name."""
    text = str(error).strip()
    lone = re.search(r"Error parsing override '([^']*)'", text)
    if lone or "Lexer" in type(error).__name__ or text.startswith("Lexer"):
        return f"{lone.group(1) if lone else text.splitlines()[0]!r} is not an override; write key=value."
    absent = re.search(r"Missing mandatory value: (\S+)", text)
    if absent:
        return f"{absent.group(1).rstrip('.')} has no value; give it as {absent.group(1).rstrip('.')}=VALUE."
    if "--multirun" in text:
        return "several values for one key: use `multiref sweep` for axes, or quote a list as 'key=[a,b]'."
    found = re.search(r"Could not find '([^']+)/([^'/]+)'|Could not override '([^'@]+)'\.\s*No match", text)
    if found and found.group(1):
        group, option = found.group(1), found.group(2)
        group = group.removeprefix(f"{folder}/")
        return f"{group} has no option {option!r}{_nearest(option, options(os.path.join(folder, group)))}."
    key = _unknown_key(error, text)
    if key:
        return f"there is no key {key!r}{_nearest(key, sorted(keys))}."
    first = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    full_key = getattr(error, "full_key", None)
    return f"{full_key}: {first}." if full_key and full_key not in first else f"{first}."


def _unknown_key(error: Exception, text: str) -> str | None:
    for pattern in (r"Could not override '([^'@]+)'", r"Could not append to config\. .*'([^']+)'"):
        found = re.search(pattern, text)
        if found:
            return found.group(1)
    if type(error).__name__ == "ConfigKeyError" or "not in struct" in text:
        found = re.search(r"Key '([^']+)'", text)
        return getattr(error, "full_key", None) or (found.group(1) if found else None)
    return None


@cache
def known_keys() -> set[str]:
    """Dotted keys of experiments with any algorithm, and the groups."""
    return set().union(*(keys_of(Experiment(algorithm=kind())) for kind in ALGORITHMS.values()))


def keys_of(root: Any) -> set[str]:
    """Dotted keys of a schema; of an experiment those of its optional parts too, and the groups."""
    found: set[str] = set()
    if isinstance(root, Experiment):
        root, found = replace(root, **_OPTIONAL), set(groups())
    _walk(OmegaConf.structured(root), "", found)
    return found


def _walk(node: DictConfig, prefix: str, found: set[str]) -> None:
    for key in map(str, node):
        found.add(f"{prefix}{key}")
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _walk(child, f"{prefix}{key}.", found)


def _nearest(name: str, allowed: list[str]) -> str:
    """`; did you mean …`, else the names of the same group, else nothing."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    group = name.rpartition(".")[0]
    siblings = [key for key in allowed if group and key.rpartition(".")[0] == group]
    if close and (not group or close[0] in siblings):
        return f"; did you mean {close[0]!r}"
    tails = {key.rpartition(".")[2]: key for key in allowed}
    near = difflib.get_close_matches(name.rpartition(".")[2], tails, n=1, cutoff=0.75)
    if near:
        return f"; did you mean {tails[near[0]]!r}"
    shown = siblings or (allowed if len(allowed) <= 30 else [])
    return f"; allowed: {', '.join(shown)}" if shown else ""
