"""From command-line overrides to a typed, checked experiment: the only module that imports Hydra."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from yaml import YAMLError

from multiref_cli.config import algorithms, merges, regularizer, schema, terms
from multiref_cli.config.algorithms import ALGORITHMS
from multiref_cli.config.check import check, check_orders
from multiref_cli.config.folders import conf_directory, groups, options, own_conf_directory
from multiref_cli.config.own import check_own_files, lifted, shown, where
from multiref_cli.config.schedules import AlphaSchedule, BetaSchedule
from multiref_cli.config.schema import (
    SERVED,
    Ctro,
    Evaluation,
    Experiment,
    Lora,
    Model,
    Part,
    Policy,
    ReferenceSpec,
    Regularizer,
    Reward,
    Scorer,
)
from multiref_cli.config.sentences import GONE_KEYS, PAIR_KEYS, no_value, sentence
from multiref_cli.config.shell import several_values, unreadable
from multiref_cli.config.written import is_open, named, written
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_yaml

T = TypeVar("T")

# Parts of an experiment that may be absent, filled in where their keys are wanted.
_OPTIONAL: dict[str, Any] = {
    "regularizer": Regularizer(ctro=Ctro()),
    "reward": Reward(),
    "beta_schedule": BetaSchedule(),
    "alpha_schedule": AlphaSchedule(),
    "policy": Policy(lora=Lora(), base=Part()),
    "evaluation": Evaluation(scorer=Scorer()),
}


def compose(overrides: list[str]) -> Experiment:
    """Compose conf/config.yaml with Hydra overrides into a typed and checked experiment.

    Args:
        overrides: as on the command line, `["algorithm=dpo", "alpha=0.3", ...]`.

    Raises:
        RequestError: an unknown group, option or key, a wrong type, a missing value or a contradiction; one sentence.
    """
    found = compose_unchecked(overrides)
    check(found)
    return found


def compose_unchecked(overrides: list[str]) -> Experiment:
    """`compose` without the rules that span several keys, for a command with rules of its own to say first."""
    overrides = written(overrides)
    plain, choices = _composed([_addable(override) for override in overrides])
    check_own_files(choices, known_keys())
    _refuse_lost_pair(plain, choices)
    try:
        found = _typed_experiment(lifted(plain))
    except RequestError as error:
        raise RequestError(where(str(error), choices)) from error
    if _wants_start(found, overrides):
        found = _towards_start(found, overrides)
    if _answers_shortly(found, overrides, choices):
        found = replace(found, evaluation=replace(found.evaluation, max_new_tokens=_EMBEDDED_TOKENS))
    refuse_idle_alpha(found, overrides)
    if found.regularizer is None:
        return found
    check_orders(found.regularizer)
    return replace(found, regularizer=_named(found.regularizer, choices.get("regularizer")))


def compose_saved(
    path: Path, overrides: list[str] | None = None, changed: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment of a run folder, with a few keys changed.

    Args:
        path: config.yaml of a run.
        overrides: `key=value` and `group=option`, as on the command line.
        changed: keys of the root that are others than in the file, before the overrides.

    Raises:
        RequestError: the file or an override does not fit the schema.
        RunError: the file is damaged.
    """
    saved = cast(DictConfig, OmegaConf.create(read_yaml(path) | dict(changed or {})))
    found = _changed(saved, overrides or [])
    check(found)
    return found


def compose_like(path: Path, overrides: list[str]) -> Experiment:
    """A new experiment from the saved config of another, with overrides on top and a folder of its own.

    Args:
        path: config.yaml of a run, or a copy of one.
        overrides: `key=value` and `group=option`, as on the command line.

    Raises:
        RequestError: the file or an override does not fit the schema, or the file is of another kind or cannot be read.
    """
    try:
        plain = cast(DictConfig, OmegaConf.create(read_yaml(path)))
    except RunError as error:
        no_config = f"{path} is no config: give a run's config.yaml, or the folder of a run."
        raise RequestError(str(error) if isinstance(error.__cause__, OSError) else no_config) from error
    if "algorithm" not in plain:
        raise RequestError(f"{path} is no config of a run: it has no algorithm; give a run's config.yaml.")
    if named(overrides, "experiment"):
        raise RequestError("experiment= chooses a whole experiment: give it, or --config, not both.")
    plain["run"] = {"name": None, "dir": None}
    found = _changed(plain, overrides)
    refuse_idle_alpha(found, overrides)
    if found.regularizer is not None and named(overrides, "regularizer"):
        option = next((text.partition("=")[2] for text in overrides if text.startswith("regularizer=")), None)
        check_orders(found.regularizer)
        found = replace(found, regularizer=_named(found.regularizer, option))
    check(found)
    return found


def _changed(plain: DictConfig, overrides: list[str]) -> Experiment:
    """The experiment of a saved config with a few keys changed."""
    texts = written(overrides)
    parts = [text for text in texts if text.lstrip("+").partition("=")[0] in GONE_KEYS]
    for override in _parsed([text for text in texts if text not in parts]):
        key, value = override.get_key_element(), override.value()
        if key in groups() and isinstance(value, str):
            asked = [f"{key}={value}", *(f"++{text.lstrip('+')}" for text in parts if key == "references")]
            node = lifted(compose_plain(asked))[key]
            plain[key] = OmegaConf.to_container(node, resolve=True) if parts else node
        else:
            OmegaConf.update(plain, key, value)
    return _typed_experiment(plain)


def compose_plain(overrides: list[str], folder: str = "", root: object = None) -> DictConfig:
    """Compose `conf/<folder>/config.yaml` with overrides, untyped; see `_composed`."""
    return _composed(overrides, folder, root)[0]


def _composed(overrides: list[str], folder: str = "", root: object = None) -> tuple[DictConfig, dict[str, Any]]:
    """A config, untyped, and the option that was chosen of every group; Hydra's errors become one sentence.

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
            found = hydra_compose("config", overrides=[*searchpath, *overrides], return_hydra_config=True)
    except YAMLError as error:
        raise RequestError(f"a config file is not valid YAML: {' '.join(str(error).split())}.") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises ValueError for group=null
        _parsed([text.removeprefix("++") for text in overrides], one_value=True)  # says which one cannot be read
        raise RequestError(_sentence(error, keys_of(root) if root else known_keys(), folder)) from error
    choices = dict(found.hydra.runtime.choices)
    with open_dict(found):
        del found["hydra"]
    if own:
        _refuse_hidden_files(own / folder, conf_directory() / folder, choices)
    return found, choices


def typed(plain: DictConfig, root: T, gone: Sequence[str] = ()) -> T:
    """A composed config as dataclasses, so that `+typo=1` and wrong types are refused.

    Args:
        plain: untyped.
        root: an instance of the dataclass to fill.
        gone: keys that other values were made from, and that the dataclass does not have.

    Raises:
        RequestError: an unknown key, a wrong type or a missing value.
    """
    try:
        _refuse_missing(plain)
        OmegaConf.resolve(plain)
        with open_dict(plain):
            for key in gone:
                plain.pop(key, None)
        with _mergeable():
            config = OmegaConf.merge(OmegaConf.structured(root), plain)
            _refuse_missing(config)
            return cast(T, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise RequestError(_sentence(error, keys_of(root))) from error


def _typed_experiment(plain: DictConfig) -> Experiment:
    name = plain.algorithm.get("name") if "algorithm" in plain else None
    if name not in ALGORITHMS:
        raise RequestError(f"algorithm.name is {name!r}; allowed: {', '.join(ALGORITHMS)}.")
    _complete_merges(plain)
    _name_served(plain)
    return typed(plain, Experiment(algorithm=ALGORITHMS[name]()), gone=GONE_KEYS)


def _complete_merges(plain: DictConfig) -> None:
    """Give every model of kind merge what follows from the rest: equal weights where none are given, and its path."""
    if isinstance(plain.get("references"), ListConfig):
        plain.references = [_completed(one) for one in plain.references]
    if isinstance(plain.get("policy"), DictConfig):
        plain.policy = _completed(plain.policy)


def _completed(model: Any) -> Any:
    if not isinstance(model, DictConfig) or not merges.is_given(model):
        return model
    try:
        given = cast(dict[str, Any], OmegaConf.to_container(model, resolve=True))
    except OmegaConfBaseException as error:
        raise RequestError(_sentence(error, known_keys())) from error
    return OmegaConf.create(merges.completed({key: value for key, value in given.items() if value != "???"}))


def _name_served(plain: DictConfig) -> None:
    """Give references that a server answers for a path, made of their model's name.

    Raises:
        RequestError: a model without a server, or the other way round.
    """
    references = plain.get("references")
    with open_dict(plain):
        for one in references if isinstance(references, ListConfig) else ():
            server, model = (one.get(key) if isinstance(one, DictConfig) else None for key in ("server", "model"))
            if server is None and model is None:
                continue
            if server is None or model is None:
                raise RequestError(
                    f"references: {one.get('name')} has a {'model' if server is None else 'server'} alone; a served "
                    "reference is written {name: NAME, server: URL, model: NAME_ON_THE_SERVER}."
                )
            if one.get("path") not in (None, f"{SERVED}{model}"):
                raise RequestError(
                    f"references: {one.get('name')} has a path and a server; give one of them (the tokens of a served "
                    "model: tokenizer)."
                )
            one.path = f"{SERVED}{model}"


def _refuse_lost_pair(plain: DictConfig, choices: dict[str, Any]) -> None:
    """Refuse paths of references=pair beside other references, where nothing reads them."""
    lost = [key for key in PAIR_KEYS if key in plain]
    if lost and choices.get("references") != "pair":
        raise RequestError(f"{lost[0]}= is the path of a reference of references=pair; add references=pair.")


def _wants_start(found: Experiment, overrides: Sequence[str]) -> bool:
    """Whether nobody named references, and those of the embedded world stand beside a policy of another world."""
    toys = [reference.path.startswith("toy:") for reference in found.references]
    paths = [part.path for part, _ in merges.members(found.policy)] or [found.policy.path]
    stranger = not all(path.startswith("toy:") for path in paths)
    return bool(toys) and all(toys) and stranger and not named(overrides, "references")


def _towards_start(found: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with its policy's own start as the only reference.

    Raises:
        RequestError: it gives weights, but no references to weigh.
    """
    if named(overrides, "alpha") and found.algorithm.regularized:
        raise RequestError(
            "alpha weighs references, and none is named: give references=pair first=PATH second=PATH, or leave alpha "
            "out to train towards the policy's own start alone."
        )
    policy = found.policy
    start = ReferenceSpec(name="start", **{one.name: getattr(policy, one.name) for one in fields(Model)})
    return replace(found, references=[start], alpha=None)


# Longest response of the embedded world's evaluations (toy_offline): its models have 128 positions.
_EMBEDDED_TOKENS = 40


def _answers_shortly(found: Experiment, overrides: Sequence[str], choices: Mapping[str, Any]) -> bool:
    """Whether a policy of the embedded world is measured as any other one, and nobody said how long it may answer."""
    unsaid = choices.get("experiment") is None and choices.get("evaluation") == "standard"
    return (
        unsaid
        and found.policy.path.startswith("toy:")
        and found.evaluation.prompts > 0
        and not named(overrides, "evaluation.max_new_tokens")
    )


def refuse_idle_alpha(found: Experiment, overrides: Sequence[str]) -> None:
    """Refuse weights that somebody wrote where a single reference has them all; those of a file are left alone.

    Raises:
        RequestError: another weight than 1.
    """
    alone = found.algorithm.regularized and len(found.references) == 1
    if alone and named(overrides, "alpha") and found.alpha not in (None, 1, [1]):
        raise RequestError(
            f"alpha weighs several references, and {found.references[0].name} is the only one here: leave alpha out, "
            "or name another reference."
        )


def _named(found: Regularizer, option: str | None) -> Regularizer:
    """The regularizer under the name of its file where it is what the file says, else under that of its numbers."""
    found = found.canonical
    own = replace(found, name=found.derived_name)
    if option is None or found.name == own.name:
        return own
    file = regularizer_of(option)
    return file if file is not None and replace(found, name=file.name) == file else own


def regularizer_of(option: str) -> Regularizer | None:
    """The regularizer of a file of conf/regularizer/; None where it is none.

    Raises:
        RequestError: there is no such file.
    """
    return _typed_experiment(compose_plain([f"regularizer={option}"])).regularizer


def _refuse_missing(config: object) -> None:
    try:
        missing = sorted(OmegaConf.missing_keys(config))
    except InterpolationToMissingValueError as error:  # a key that is missing where it is used
        raise RequestError(_sentence(error, known_keys())) from error
    if missing:
        raise RequestError(no_value(missing[0]))


def _refuse_hidden_files(own: Path, shipped: Path, choices: dict[str, Any]) -> None:
    """An own file with the name of a shipped one would never be read: say so instead of ignoring it."""
    for group, option in choices.items():
        hidden = own / group / f"{option}.yaml"
        if hidden.is_file() and (shipped / group / f"{option}.yaml").is_file():
            raise RequestError(f"{shown(hidden)} has the name of a file that multiref ships: give it another name.")


def _addable(override: str) -> str:
    # A key of the schema can be set even where the chosen YAML file does not list it (Hydra's "++").
    key = override.partition("=")[0]
    known = (key in known_keys() and key not in groups()) or is_open(key)
    return f"++{override}" if "=" in override and known else override


def _parsed(overrides: list[str], one_value: bool = False) -> list[Any]:
    """The overrides as Hydra parses them.

    Args:
        overrides: as `written` gives them.
        one_value: refuse several values for one key.

    Raises:
        RequestError: naming the first that cannot be read, and how it is written.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, found = OverridesParser.create(), []
    for text in overrides:
        try:
            found += parser.parse_overrides([text])
        except HydraException as error:
            raise RequestError(unreadable(text, known_keys())) from error
        if one_value and found[-1].is_sweep_override():
            raise RequestError(several_values(text))
    return found


def expand_axes(overrides: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Split overrides into sweep axes and fixed overrides.

    Args:
        overrides: an axis has several values: `alpha=0.1,0.5`, `seed=range(0,3)`, `'alpha=[0.2,0.8],[0.5,0.5]'`,
            `regularizer=choice(rkl,fkl)`, `regularizer=glob(rkl*)`.

    Returns:
        (axes, fixed): key -> list of values as override texts, in the given order; the overrides with one value.

    Raises:
        RequestError: an override that does not parse, or an axis without values.
    """
    from hydra.core.override_parser.types import Glob, RangeSweep

    overrides = written(overrides)
    axes: dict[str, list[str]] = {}
    fixed: list[str] = []
    for text, override in zip(overrides, _parsed(overrides)):
        if not override.is_sweep_override():
            fixed.append(text)
            continue
        value = override.value()
        if isinstance(value, RangeSweep):
            _check_range(text, value)
        if isinstance(value, Glob):
            values = value.filter(options(override.key_or_group))
        else:
            values = list(override.sweep_string_iterator())
        if isinstance(value, RangeSweep):  # 0.1 + 0.2 is 0.30000000000000004, and so another hash than 0.3
            values = [f"{float(one):.12g}" for one in values]
        if not values:
            raise RequestError(f"{text} names no option; allowed: {', '.join(options(override.key_or_group))}.")
        axes[override.get_key_element()] = values
    return axes, fixed


# An axis has no more values: what gives millions is a mistyped step.
_MOST_VALUES = 100_000


def _check_range(text: str, value: Any) -> None:
    """Refuse a range of Hydra's grammar, range(FROM,BELOW,STEP), that has no values or no end.

    Raises:
        RequestError: saying why.
    """
    from hydra.errors import HydraException

    start, stop, step = float(value.start), float(value.stop), float(value.step)
    up = step > 0
    why = f"from {start:g} to below {stop:g} in steps of {step:g}" if up else f"from {start:g} to above {stop:g}"
    if step == 0:
        raise RequestError(f"{text} has no end: its step, the third number, is 0.")
    try:
        values = list(islice(value.range(), _MOST_VALUES + 1))
    except (ArithmeticError, HydraException, ValueError) as error:  # nan
        raise RequestError(f"{text} cannot be read; a range takes three numbers, range(FROM,BELOW,STEP).") from error
    if not values:
        raise RequestError(f"{text} is empty: no number lies {why}; give range(FROM,BELOW,STEP).")
    if len(values) > _MOST_VALUES:
        raise RequestError(f"{text} has more than {_MOST_VALUES} values; give a larger step.")


@contextmanager
def _hydra_alone() -> Iterator[None]:
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


@contextmanager
def _mergeable() -> Iterator[None]:
    # OmegaConf makes the config of a frozen dataclass read-only before anything can be merged into it.
    found = (value for module in (schema, regularizer, terms, algorithms) for value in vars(module).values())
    kinds: list[Any] = [value for value in found if isinstance(value, type) and is_dataclass(value)]
    for kind in kinds:
        kind.__dataclass_params__.frozen = False
    try:
        yield
    finally:
        for kind in kinds:
            kind.__dataclass_params__.frozen = True


def _sentence(error: Exception, keys: set[str], folder: str = "") -> str:
    def options_of(group: str) -> list[str]:
        return options(os.path.join(folder, group.removeprefix(f"{folder}/")))

    return sentence(error, keys, options_of)


@cache
def known_keys() -> set[str]:
    """Dotted keys of experiments with any algorithm, and the groups."""
    return set().union(*(keys_of(Experiment(algorithm=kind())) for kind in ALGORITHMS.values()))


def keys_of(root: object) -> set[str]:
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
