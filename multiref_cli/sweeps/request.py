"""What was asked for: a sweep file, axes, seeds, baselines and the folder, from override texts."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from multiref_cli.config.compose import expand_axes
from multiref_cli.config.folders import conf_directory, options, own_conf_directory
from multiref_cli.config.ranges import check_number
from multiref_cli.config.schema import Experiment
from multiref_cli.errors import RequestError
from multiref_cli.sweeps.space import Search, parse_search
from multiref_cli.tracking.places import check_name

_FILE_KEYS = ("common", "grids", "seeds", "baselines", "rivals", "launcher", "search", "seeds_max")
# seeds=auto: seeds of the first look, more at each further one, and most of all where nothing is said.
FIRST_SEEDS, MORE_SEEDS, SEEDS_MAX = 3, 2, 9
_MOST_SEEDS = 10_000
_OWN_KEYS = ("sweep", "seeds", "seeds_max", "seed", "baselines", "rivals", "run.name", "run.dir", "search")


@dataclass(frozen=True)
class Rivals:
    """What `rivals=true` adds: N candidates of best-of-N, and the reward model that chooses where training has none."""

    best_of: int = 8
    selector: str | None = None


@dataclass(frozen=True)
class Request:
    """A sweep as asked for. Each grid is a list of overrides with axes; `common` overrides belong to every grid.

    `search` tunes every condition of the grids before it is compared. `looks` are the numbers of seeds after which
    `seeds=auto` looks whether a comparison is undecided; `seeds` are then those of the first look.
    """

    common: tuple[str, ...]
    grids: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    baselines: bool
    folder: Path
    overrides: tuple[str, ...]
    launcher: dict[str, Any] = field(default_factory=dict)
    rivals: Rivals | None = None
    search: Search | None = None
    looks: tuple[int, ...] = ()


def parse_request(overrides: Sequence[str]) -> Request:
    """Read the overrides of `multiref sweep`.

    These keys belong to the sweep itself: `sweep=NAME` (a file of conf/sweep/), `seeds=3` (seeds 0 to 2; or
    `seeds=5,6,9`; or `seeds=auto` with `seeds_max=9`: more where a comparison is undecided), `baselines=false`,
    `rivals=true` with `rivals.best_of=N` and `rivals.selector=PATH` (see sweeps.rivals), `search.KEY=VALUE` (see
    `space.Search`; `search=null` drops a file's), and `launcher.KEY=VALUE` for the engine; `run.name` and `run.dir`
    name the sweep's folder.
    Every other override replaces the same key of the sweep file, in all its grids.

    Args:
        overrides: as on the command line.

    Raises:
        RequestError: an unknown sweep file, or a value that does not fit.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key in _OWN_KEYS or key.startswith(("launcher.", "rivals.", "search.")):
            own[key] = value
        else:
            rest.append(text)
    rest = list({key_of(text): text for text in rest}.values())  # as in Hydra, the last value of a key counts
    file = _read_file(own["sweep"]) if own.get("sweep") else {}
    if "seeds" in own and "seed" in own:
        raise RequestError("give seeds=NUMBER or seed=LIST, not both.")
    replaced = {key_of(text) for text in rest}
    common = [text for text in shlex.split(file.get("common", "")) if key_of(text) not in replaced] + rest
    grids = [[t for t in shlex.split(grid) if key_of(t) not in replaced] for grid in file.get("grids") or [""]]
    launcher = {**file.get("launcher", {}), **{k.partition(".")[2]: v for k, v in own.items() if "launcher." in k}}
    looks = _looks(own, file)
    seeds = tuple(range(looks[0])) if looks else _seeds(own, file.get("seeds", 1))
    return Request(
        common=tuple(common),
        grids=tuple(dict.fromkeys(tuple(grid) for grid in grids)),
        seeds=seeds,
        baselines=_boolean("baselines", own.get("baselines", file.get("baselines", True))),
        folder=_folder(own, rest),
        overrides=tuple(overrides),
        rivals=_rivals(own, file.get("rivals", False)),
        launcher={key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in launcher.items()},
        search=_search(own, file, tuple(range(looks[-1])) if looks else seeds),
        looks=looks,
    )


def key_of(override: str) -> str:
    """The config key of an override: `+a.b=1` is about a.b."""
    return override.partition("=")[0].lstrip("+~")


def _read_file(name: str) -> dict[str, Any]:
    folders = [folder / "sweep" for folder in (conf_directory(), own_conf_directory()) if folder]
    path = next((p for folder in folders if (p := folder / f"{name}.yaml").is_file()), None)
    if path is None:
        raise RequestError(f"sweep has no option {name!r}; allowed: {', '.join(options('sweep'))}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise RequestError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} has no keys; allowed: {', '.join(_FILE_KEYS)}.")
    unknown = [key for key in content if key not in _FILE_KEYS]
    if unknown:
        raise RequestError(f"{path}: there is no key {unknown[0]!r}; allowed: {', '.join(_FILE_KEYS)}.")
    texts = [content.get("common", ""), *(content.get("grids") or ())]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{path}: common and each of grids are texts as on the command line, not lists.")
    return content


def _seeds(own: dict[str, str], default: object) -> tuple[int, ...]:
    key = "seed" if "seed" in own else "seeds"
    text = own.get(key, str(default))
    axes, _ = expand_axes([f"{key}={text}"])
    values = axes.get(key, [text])
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        raise RequestError(f"{key} is {text!r}; give a whole number, or a list such as {key}=0,1,2.") from None
    if key == "seeds" and len(numbers) == 1:
        if numbers[0] > _MOST_SEEDS:
            raise RequestError(f"{key} is {text!r}; it is a number of seeds, at most {_MOST_SEEDS}.")
        numbers = list(range(numbers[0]))
    if not numbers or min(numbers) < 0:
        raise RequestError(f"{key} is {text!r}; at least one seed is needed, and seeds are 0 or more.")
    for number in numbers:
        check_number(Experiment, "seed", number, "seed")
    return tuple(dict.fromkeys(numbers))


def _looks(own: dict[str, str], file: dict[str, Any]) -> tuple[int, ...]:
    """The looks of `seeds=auto`: after FIRST_SEEDS, then after every MORE_SEEDS more, the last after `seeds_max`."""
    auto = own.get("seeds", None if "seed" in own else str(file.get("seeds", ""))) == "auto"
    if not auto:
        if "seeds_max" in own or ("seeds_max" in file and "seeds" not in own and "seed" not in own):
            raise RequestError("seeds_max is the bound of seeds=auto; give seeds=auto, or drop it.")
        return ()
    text = str(own.get("seeds_max", file.get("seeds_max", SEEDS_MAX)))
    if not text.isdecimal() or not FIRST_SEEDS < int(text) <= 1000:
        raise RequestError(f"seeds_max is {text!r}; give a whole number above {FIRST_SEEDS}, usual 5 to 10.")
    return (*range(FIRST_SEEDS, int(text), MORE_SEEDS), int(text))


def _search(own: dict[str, str], file: dict[str, Any], seeds: tuple[int, ...]) -> Search | None:
    given = {key.partition(".")[2]: value for key, value in own.items() if key.startswith("search.")}
    if own.get("search", "null") != "null":
        raise RequestError(f"search is {own['search']!r}; give its keys, such as search.space.beta=[0.01,3,log].")
    if "search" in own and given:
        raise RequestError("search=null drops the search of a sweep file; give it, or search.KEY=VALUE, not both.")
    return parse_search(None if "search" in own else file.get("search"), given, seeds)


def _boolean(key: str, value: object) -> bool:
    parsed = yaml.safe_load(value) if isinstance(value, str) else value
    if not isinstance(parsed, bool):
        raise RequestError(f"{key} is {value!r}; allowed: true, false.")
    return parsed


def _rivals(own: dict[str, str], default: object) -> Rivals | None:
    """What rivals are asked for; a file says true, false, or {best_of: N, selector: PATH}."""
    settings = dict(default) if isinstance(default, dict) else {}
    wanted = _boolean("rivals", own.get("rivals", bool(settings) or default))
    settings |= {
        key.partition(".")[2]: yaml.safe_load(value) for key, value in own.items() if key.startswith("rivals.")
    }
    unknown = sorted(set(settings) - {"best_of", "selector"})
    if unknown:
        raise RequestError(f"there is no key 'rivals.{unknown[0]}'; allowed: rivals.best_of, rivals.selector.")
    if not wanted:
        if any(key.startswith("rivals.") for key in own):
            raise RequestError("rivals.best_of and rivals.selector belong to rivals=true; add it.")
        return None
    best_of, selector = settings.get("best_of", Rivals.best_of), settings.get("selector")
    if not isinstance(best_of, int) or isinstance(best_of, bool) or not 2 <= best_of <= 10**6:
        raise RequestError(f"rivals.best_of is {best_of!r}; it must be a whole number from 2 to 1000000.")
    if not isinstance(selector, (str, type(None))):
        raise RequestError(f"rivals.selector is {selector!r}; give the path of a reward model.")
    return Rivals(best_of, selector)


def _folder(own: dict[str, str], rest: Sequence[str]) -> Path:
    """The folder as asked, or one named after what stays the same when the values of an axis are edited."""
    if own.get("run.dir"):
        return Path(own["run.dir"]).expanduser()
    if own.get("run.name"):
        check_name(own["run.name"], "run.name")
        return Path("runs") / own["run.name"]
    axes, fixed = expand_axes(list(rest))
    experiment = next((t.partition("=")[2] for t in fixed if key_of(t) == "experiment"), None)
    parts = [own.get("sweep") or experiment or "sweep", *(key.rpartition(".")[2].strip("+") for key in axes)]
    stem = "-".join(part.replace("/", "_") for part in parts)
    if own.get("sweep") and not rest:
        return Path("runs") / stem
    tuned = sorted(key for key in own if key.startswith("search."))
    identity = json.dumps([own.get("sweep"), sorted(fixed), sorted(axes), *tuned])
    return Path("runs") / f"{stem}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"
