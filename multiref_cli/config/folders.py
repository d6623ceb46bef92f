"""Where config files lie and what can be chosen of them, read from folders alone: lists and completion are instant."""

import os
from pathlib import Path

from multiref_cli.errors import RequestError

CONF = "MULTIREF_CONF"


def conf_directory() -> Path:
    """The folder of the shipped configs: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise RequestError(f"no conf/ folder beside {package}: install multiref again.")


def own_conf_directory() -> Path | None:
    """A user's own `conf/`, whose files join the shipped ones under names of their own.

    It is that of MULTIREF_CONF (`--conf`), else the one where the user works, else the nearest above with a folder
    that is called like a group.
    """
    shipped = conf_directory()
    given = os.environ.get(CONF)
    if given:
        return Path(given) if Path(given).resolve() != shipped.resolve() else None
    here = Path.cwd()
    for folder in (here, *here.parents):
        own = folder / "conf"
        if own.is_dir() and (folder == here or any((own / group).is_dir() for group in _shipped_groups())):
            return own if own.resolve() != shipped.resolve() else None
    return None


def use_conf(folder: str | None) -> str | None:
    """Take a folder for the user's own `conf/`, in this process and in those that it starts.

    Raises:
        RequestError: it is no folder.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise RequestError(f"--conf is {folder!r}, which is no folder; give one with regularizer/, data/, ...")
        os.environ[CONF] = str(Path(folder).absolute())
    return folder


def _shipped_groups() -> list[str]:
    return [one.name for one in conf_directory().iterdir() if one.is_dir()]


def options(group: str) -> list[str]:
    """Names that `group=` accepts, found on disk (no Hydra), sorted."""
    folders = [folder / group for folder in (conf_directory(), own_conf_directory()) if folder]
    found = {str(p.relative_to(f).with_suffix("")) for f in folders for p in f.rglob("*.yaml")}
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("_"))


def groups() -> list[str]:
    """Names of the config groups, found on disk."""
    folders = [folder for folder in (conf_directory(), own_conf_directory()) if folder]
    return sorted({p.name for folder in folders for p in folder.iterdir() if p.is_dir() and p.name != "theory"})
