"""Embedded worlds: world 0 is shipped with the package, every other is made from its seed and kept in the cache.

The models of one recipe come out differently on processors with other instruction sets, so what is compared across
machines must start from the same files. Those of world 0 are checked against their sha256 before they are used.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

from multiref_cli.config.plain import changed
from multiref_cli.config.schema import TOY, Experiment
from multiref_cli.errors import RequestError
from multiref_cli.files import read_object, sync_folder, sync_tree, write_json
from multiref_cli.models.files import file_sha256
from multiref_cli.tracking.progress import Progress
from multiref_cli.world.recipes import Train, key, make, names, uses

# What a world is for those who train in it; corpora are made where somebody wants one.
PARTS = (
    *("tokenizer", "prompts", "instruct", "instruct_large", "math", "judge"),
    *("preferences", "reward_pairs", "reward_model"),
)
SHIPPED = Path(__file__).resolve().parent / "shipped"
# In the shipped folder: name -> file -> sha256.
FINGERPRINTS = "fingerprints.json"


@dataclass(frozen=True)
class World:
    """Where the parts of a world lie.

    Args:
        seed: names the world.
        cache: folder of everything that is made once per machine.
        shipped: whether world 0 is the shipped one; else it is made like any other.
    """

    seed: int
    cache: Path
    shipped: bool = True

    @property
    def folder(self) -> Path:
        """Folder of what this machine made of it."""
        return self.cache / "embedded" / f"world_{self.seed}"

    def ships(self, name: str) -> bool:
        """Whether a part came with the package."""
        return self.seed == 0 and self.shipped and name in PARTS

    def place(self, name: str) -> Path:
        """Folder of a part, whether it is there or not."""
        return SHIPPED / name if self.ships(name) else self.folder / f"{name}-{key(name, self.seed)}"


def worlds(cache: Path) -> list[World]:
    """The shipped world, and those that this machine has begun to make."""
    seeds = [path.name.removeprefix("world_") for path in (cache / "embedded").glob("world_*")]
    return [World(0, cache), *(World(int(seed), cache) for seed in sorted(seeds, key=int) if int(seed))]


def world_of(experiment: Experiment) -> World:
    """The world that an experiment's `toy:` names are of."""
    return World(experiment.world, experiment.hardware.cache_folder)


def localized(experiment: Experiment, progress: Progress, train: Train) -> Experiment:
    """The same experiment with a local folder in place of every `toy:<name>`, made now if it is not there yet.

    Raises:
        RequestError: an unknown name, or a shipped file that is damaged.
    """
    world = world_of(experiment)

    def folder(text: str) -> str:
        return str(ensure(text.removeprefix(TOY), world, progress, train)) if text.startswith(TOY) else text

    return changed(experiment, folder)


def needed(experiment: Experiment, made: Callable[[str], bool] = lambda name: False) -> dict[str, tuple[str, ...]]:
    """Models and data sets that have to be made for an experiment, each after what it is made from.

    Args:
        experiment: with `toy:` names.
        made: says of a name that it need not be made; neither need what it is made from. Shipped ones never need.

    Returns:
        name -> names that must exist before it; names whose own lists are done can be made side by side.

    Raises:
        RequestError: an unknown name.
    """
    found: dict[str, tuple[str, ...]] = {}
    world = world_of(experiment)

    def visit(name: str) -> None:
        """Add a name behind everything that it is made from."""
        if name in found:
            return
        _refuse_unknown(name)
        if not world.ships(name) and not made(name):
            for other in uses(name):
                visit(other)
            found[name] = tuple(other for other in uses(name) if not world.ships(other))

    for name in experiment.toy_names:
        visit(name)
    return found


def missing(experiment: Experiment) -> list[str]:
    """Models and data sets, as `toy:<name>`, that this machine would have to make before a run.

    Raises:
        RequestError: an unknown name.
    """
    world = world_of(experiment)
    return [TOY + name for name in needed(experiment, lambda name: world.place(name).is_dir())]


def ensure(name: str, world: World, progress: Progress, train: Train) -> Path:
    """The folder of a part of a world: the shipped one, else one that is made once per machine.

    Args:
        name: what stands after `toy:`.
        world: which one, and where it is kept.
        progress: told while something is made.
        train: trains a model, see `Train`.

    Raises:
        RequestError: an unknown name, or a shipped file that is damaged.
    """
    _refuse_unknown(name)
    target = world.place(name)
    if world.ships(name):
        check_files(SHIPPED, name)
    elif not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                making = target.with_name(f".{target.name}.making")
                shutil.rmtree(making, ignore_errors=True)
                making.mkdir()
                make(name, world.seed, making, lambda other: ensure(other, world, progress, train), progress, train)
                sync_tree(making)
                making.rename(target)
                sync_folder(target.parent)
    return target


def make_world(world: World, progress: Progress, train: Train) -> dict[str, Path]:
    """Make every part of a world that is not there; name -> folder."""
    return {name: ensure(name, world, progress, train) for name in PARTS}


def write_world(parts: dict[str, Path], folder: Path) -> None:
    """Copy the parts of a world into one folder, with the sha256 of every file, as the shipped world lies.

    Raises:
        RequestError: the folder is there already and not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RequestError(f"{folder} exists already and is not empty; give another folder.")
    for name, source in parts.items():
        shutil.copytree(source, folder / name, copy_function=shutil.copyfile)  # not with its permissions
    write_json(folder / FINGERPRINTS, {name: fingerprints(folder / name) for name in parts})


def fingerprints(folder: Path) -> dict[str, str]:
    """File -> sha256, of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


@cache
def check_files(folder: Path, name: str) -> None:
    """Compare the files of a part with the sha256 that stand beside them.

    Raises:
        RequestError: a file is missing or is another one.
    """
    written: dict[str, str] = (read_object(folder / FINGERPRINTS) or {}).get(name) or {FINGERPRINTS: ""}
    found = fingerprints(folder / name)
    for file, sha256 in written.items():
        if found.get(file) != sha256:
            what = "is damaged" if file in found else "is missing"
            raise RequestError(f"{folder / name / file}, which multiref ships, {what}: install multiref again.")


def _refuse_unknown(name: str) -> None:
    if name not in names():
        raise RequestError(f"there is no {TOY}{name}; allowed: {', '.join(TOY + n for n in names())}.")
