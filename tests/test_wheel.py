"""The wheel as users install it: it finds its configs anywhere, and declares what the code imports."""

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from multiref_cli import __version__
from multiref_cli.world.worlds import PARTS

ROOT = Path(__file__).parents[1]
# transformers renders chat templates with it, and asks for it in an extra of its own alone.
NEEDED_BY_OTHERS = {"jinja2"}
# torch.utils.tensorboard writes with it.
NEEDED_BY_TORCH = {"tensorboard"}
# Tools of the dev extra that are called by name or loaded as plugins.
NOT_IMPORTED = {"ruff", "mypy", "pytest-xdist", "pytest-timeout", "hatchling"}


def run(*command, **options) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from this checkout by the backend that is installed; nothing is downloaded."""
    pytest.importorskip("hatchling", reason="the build backend comes with the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT)
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *build)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts of a fresh environment that has the wheel, and this environment's packages behind it."""
    environment = tmp_path_factory.mktemp("clean") / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    target = Path(run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", scripts / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel)
    # Behind the wheel and not read for .pth files, so that an editable install of multiref there stays out of the way.
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (target / "shared.pth").write_text("\n".join(shared))
    return scripts


@pytest.fixture
def outside(tmp_path) -> dict:
    """Another working directory, and an environment that knows nothing of the checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return {"cwd": tmp_path, "env": environment | {"MULTIREF_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}}


def test_it_carries_every_config_file_and_nothing_else_of_the_checkout(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    carried = {name.removeprefix("multiref_cli/conf/") for name in names if name.startswith("multiref_cli/conf/")}
    assert carried == {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert all(name.startswith(("multiref_cli/", f"multiref-{__version__}.dist-info/")) for name in names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "multiref_cli").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_it_carries_the_whole_shipped_world(wheel):
    folder = "multiref_cli/world/shipped/"
    with zipfile.ZipFile(wheel) as opened:
        written = json.loads(opened.read(f"{folder}fingerprints.json"))
        files = {f"{folder}{part}/{file}": sha256 for part, found in written.items() for file, sha256 in found.items()}
        carried = {name for name in opened.namelist() if name.startswith(folder)}
        assert carried == {*files, f"{folder}fingerprints.json"}
        assert all(hashlib.sha256(opened.read(name)).hexdigest() == sha256 for name, sha256 in files.items())
        assert set(written) == set(PARTS) and wheel.stat().st_size < 7 * 2**20


def test_it_runs_in_an_environment_of_its_own(installed, outside):
    code = "import multiref_cli, multiref_cli.config.folders as f; print(multiref_cli.__file__, f.conf_directory())"
    package, conf = run(installed / "python", "-c", code, **outside).split()
    assert Path(package).is_relative_to(installed.parent) and Path(conf) == Path(package).parent / "conf"
    assert run(installed / "multiref", "--version", **outside) == f"multiref {__version__}\n"
    assert "mrpo_ctro_adaptive" in run(installed / "multiref", "list", "regularizer", **outside)
    plan = run(installed / "multiref", "train", "experiment=offline_toy", "alpha=0.3", "--dry-run", **outside)
    assert "alpha: 0.3" in plan and "name: toy_preferences" in plan


def imported(folder: str) -> set[str]:
    """Distributions that the Python files of a folder import, in their normalized names."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"multiref_cli", "tests"}
    known = importlib.metadata.packages_distributions()
    return {normalized(known.get(name, [name])[0]) for name in names - own - set(sys.stdlib_module_names)}


def normalized(requirement: str) -> str:
    """Name of a distribution out of a requirement, as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


@pytest.fixture(scope="module")
def declared() -> dict[str, set[str]]:
    """Distributions of pyproject.toml: `run` is what the package always needs, the rest are its extras."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"run": project["dependencies"], **project["optional-dependencies"]}
    return {name: {normalized(one) for one in requirements} for name, requirements in groups.items()}


def test_what_the_package_imports_is_declared_and_the_reverse(declared):
    used, extras = (
        imported("multiref_cli"),
        set().union(*(declared[name] for name in declared if name not in ("run", "dev"))),
    )
    assert used - declared["run"] - extras == set()
    assert declared["run"] - used == NEEDED_BY_OTHERS
    assert extras - used == NEEDED_BY_TORCH


def test_what_the_tests_import_is_declared(declared):
    extras = set().union(*declared.values())
    assert imported("tests") - extras == set()
    assert declared["dev"] - NOT_IMPORTED - imported("tests") - imported("multiref_cli") == set()


def test_names_of_extras_are_those_that_every_pip_finds(declared):
    """A wheel's metadata has them with hyphens, and pip before 23.3 looks for them as they are typed."""
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in declared)
