"""Where config files lie and what can be chosen of them, read from folders alone: lists and completion are instant."""

from pathlib import Path

from multiref_cli.errors import RequestError


def conf_directory() -> Path:
    """The folder of the shipped configs: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise RequestError(f"no conf/ folder beside {package}: install multiref again.")


def own_conf_directory() -> Path | None:
    """A user's own `conf/` in the working directory; its files join the shipped ones, under names of their own."""
    own = Path.cwd() / "conf"
    return own if own.is_dir() and own.resolve() != conf_directory().resolve() else None


def options(group: str) -> list[str]:
    """Names that `group=` accepts, found on disk (no Hydra), sorted."""
    folders = [folder / group for folder in (conf_directory(), own_conf_directory()) if folder]
    found = {str(p.relative_to(f).with_suffix("")) for f in folders for p in f.rglob("*.yaml")}
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("_"))


def groups() -> list[str]:
    """Names of the config groups, found on disk."""
    folders = [folder for folder in (conf_directory(), own_conf_directory()) if folder]
    return sorted({p.name for folder in folders for p in folder.iterdir() if p.is_dir() and p.name != "theory"})
