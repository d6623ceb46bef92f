"""Who may import what, read from the source: layers, libraries with one owner, heavy imports inside commands only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "multiref_cli"

# Nothing imports a layer above its own. A module counts for the longest name listed here that it begins with.
LAYERS = {
    "multiref_cli": 0,
    "multiref_cli.dotted": 0,
    "multiref_cli.errors": 0,
    "multiref_cli.files": 0,
    "multiref_cli.parallel": 0,
    "multiref_cli.seeding": 0,
    "multiref_cli.sharding": 0,
    "multiref_cli.types": 0,
    "multiref_cli.config.algorithms": 0,
    "multiref_cli.config.folders": 0,
    "multiref_cli.config.plain": 0,
    "multiref_cli.config.ranges": 0,
    "multiref_cli.config.regularizer": 0,
    "multiref_cli.config.schedules": 0,
    "multiref_cli.config.schema": 0,
    "multiref_cli.config.terms": 0,
    "multiref_cli.config.weights": 0,
    "multiref_cli.config": 1,
    "multiref_cli.objectives": 1,
    "multiref_cli.theory": 1,
    "multiref_cli.evaluation.crossed": 1,
    "multiref_cli.evaluation.measures": 1,
    "multiref_cli.evaluation.selection": 1,
    "multiref_cli.evaluation.sequential": 1,
    "multiref_cli.evaluation.statistics": 1,
    "multiref_cli.tracking": 1,
    "multiref_cli.data": 2,
    "multiref_cli.models": 2,
    "multiref_cli.rollouts": 2,
    "multiref_cli.rewards": 2,
    "multiref_cli.references": 2,
    "multiref_cli.evaluation": 3,
    "multiref_cli.world": 4,
    "multiref_cli.algorithms": 4,
    "multiref_cli.training": 5,
    "multiref_cli.runs": 6,
    "multiref_cli.sweeps": 7,
    "multiref_cli.reports": 8,  # reads files only: run folders and the ledgers of sweeps
    "multiref_cli.cli": 9,
}
# Libraries that one module owns.
OWNERS = {
    "hydra": "multiref_cli.config.compose",
    "rich": "multiref_cli.cli.display",
    "wandb": "multiref_cli.tracking.wandb",
    "trackio": "multiref_cli.tracking.trackio",
}
# Pure mathematics: the standard library, these two, and one another.
PURE = (
    "multiref_cli.objectives",
    "multiref_cli.theory",
    "multiref_cli.evaluation.crossed",
    "multiref_cli.evaluation.measures",
    "multiref_cli.evaluation.selection",
    "multiref_cli.evaluation.sequential",
    "multiref_cli.evaluation.statistics",
)
PURE_LIBRARIES = {"torch", "numpy"}
# Reading configs, printing help and drawing reports must not wait for these.
HEAVY = {"torch", "transformers", "datasets", "wandb", "accelerate", "peft", "vllm", "ray", "hydra", "matplotlib"}
LIGHT_AT_THE_TOP = ("multiref_cli.cli", "multiref_cli.config", "multiref_cli.errors")


@dataclass(frozen=True)
class Import:
    """One name imported by a module; `top` where importing the module alone imports it."""

    module: str
    imported: str
    line: int
    top: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


def belongs(module: str, names) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def imports_of(module: str, source: str, is_package: bool = False) -> list[Import]:
    """Every import of a module, inside functions too; those for type checkers alone are left out."""

    def visit(node: ast.AST, top: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                yield from visit(child, top)
            return
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                longer = f"{base}.{alias.name}"
                own_module = (ROOT / longer.replace(".", "/")).with_suffix(".py").is_file()
                is_folder = (ROOT / longer.replace(".", "/")).is_dir()
                yield Import(module, longer if own_module or is_folder else base, node.lineno, top)
        inside = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return list(visit(ast.parse(source), True))


def package_imports() -> list[Import]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        found += imports_of(module, path.read_text(encoding="utf-8"), is_package)
    return found


def layer(module: str) -> int:
    known = [name for name in LAYERS if belongs(module, [name])]
    name = max(known, key=len)
    if name == "multiref_cli" and module != "multiref_cli":
        raise KeyError(f"{module} has no layer: add it to LAYERS")
    return LAYERS[name]


def upward(imports: list[Import]) -> list[str]:
    own = [i for i in imports if belongs(i.imported, ["multiref_cli"])]
    return [str(i) for i in own if layer(i.imported) > layer(i.module)]


def disowned(imports: list[Import]) -> list[str]:
    return [str(i) for i in imports if OWNERS.get(i.imported.split(".")[0], i.module) != i.module]


def impure(imports: list[Import]) -> list[str]:
    def allowed(name: str) -> bool:
        library = name.split(".")[0]
        if library == "multiref_cli":
            return belongs(name, PURE) or layer(name) == 0
        return library in sys.stdlib_module_names or library in PURE_LIBRARIES

    return [str(i) for i in imports if belongs(i.module, PURE) and not allowed(i.imported)]


def heavy_at_the_top(imports: list[Import]) -> list[str]:
    """Also through other modules of the package, which are imported for them."""
    tops: dict[str, list[Import]] = {}
    for one in imports:
        if one.top:
            tops.setdefault(one.module, []).append(one)

    def reached(module: str, seen: set[str]) -> Iterator[Import]:
        for one in tops.get(module, []):
            if one.imported.split(".")[0] in HEAVY:
                yield one
            elif one.imported not in seen:
                seen.add(one.imported)
                yield from reached(one.imported, seen)

    light = sorted({i.module for i in imports if belongs(i.module, LIGHT_AT_THE_TOP)})
    return [f"{module}: {one}" for module in light for one in reached(module, {module})]


IMPORTS = package_imports()


def test_the_package_was_read():
    modules = {i.module for i in IMPORTS}
    assert len(modules) > 40 and len(IMPORTS) > 200
    assert {"multiref_cli.objectives.mixing", "multiref_cli.config.compose", "multiref_cli.cli.app"} <= modules


def test_nothing_imports_a_layer_above_its_own():
    assert upward(IMPORTS) == []


def circles(imports: list[Import]) -> list[list[str]]:
    """Groups of modules that import one another, inside functions too."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        if belongs(one.imported, ["multiref_cli"]) and one.imported != one.module:
            graph.setdefault(one.module, set()).add(one.imported)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph.get(module, ())
        return seen

    beyond = {module: reached(module) for module in graph}
    return sorted([m, n] for m in beyond for n in beyond[m] if m < n and m in beyond.get(n, ()))


def test_no_module_imports_one_that_imports_it():
    assert circles(IMPORTS) == []


def test_a_circle_is_seen_through_other_modules_and_inside_functions():
    found = imports_of("multiref_cli.a", "from multiref_cli.config import check")
    found += imports_of("multiref_cli.config.check", "def f():\n    from multiref_cli.config import schema")
    found += [Import("multiref_cli.config.schema", "multiref_cli.a", 1, False)]
    assert ["multiref_cli.a", "multiref_cli.config.check"] in circles(found)


def test_only_their_owners_import_hydra_rich_and_wandb():
    assert disowned(IMPORTS) == []


def test_mathematics_imports_torch_and_numpy_only():
    assert impure(IMPORTS) == []


def test_command_line_and_config_import_nothing_heavy():
    assert heavy_at_the_top(IMPORTS) == []


def test_reports_read_files_and_load_no_model():
    forbidden = (
        "torch",
        "transformers",
        "datasets",
        "multiref_cli.models",
        "multiref_cli.algorithms",
        "multiref_cli.training",
        "multiref_cli.runs",
        "multiref_cli.rollouts",
    )
    assert [
        str(i) for i in IMPORTS if belongs(i.module, ["multiref_cli.reports"]) and belongs(i.imported, forbidden)
    ] == []


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (upward, "multiref_cli.data.rows", "def f():\n    from multiref_cli.training.loop import run"),
        (upward, "multiref_cli.objectives.x", "from multiref_cli.models import logprobs"),
        (upward, "multiref_cli.objectives.x", "from ..models import logprobs"),
        (upward, "multiref_cli.training.loop", "import multiref_cli.cli.app as app"),
        (upward, "multiref_cli.errors", "from multiref_cli import config"),
        (disowned, "multiref_cli.sweeps.plan", "from hydra.core.override_parser import types"),
        (disowned, "multiref_cli.cli.train", "import rich.table"),
        (disowned, "multiref_cli.runs.run", "def f():\n    import wandb"),
        (impure, "multiref_cli.objectives.x", "import transformers"),
        (impure, "multiref_cli.theory.exact", "from scipy import optimize"),
        (impure, "multiref_cli.evaluation.statistics", "from multiref_cli.evaluation.evaluate import score"),
        (heavy_at_the_top, "multiref_cli.cli.app", "if True:\n    import torch"),
        (heavy_at_the_top, "multiref_cli.config.schema", "class A:\n    from datasets import Dataset"),
    ],
)
def test_the_rules_see_what_they_forbid(rule, module, source):
    assert len(rule(imports_of(module, source))) == 1


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (upward, "multiref_cli.cli.train", "from multiref_cli.runs.run import train"),
        (upward, "multiref_cli.rewards.model", "from multiref_cli.data import chat"),
        (disowned, "multiref_cli.config.compose", "from hydra import compose"),
        (
            impure,
            "multiref_cli.theory.exact",
            "import math\nfrom torch import Tensor\nfrom multiref_cli.errors import RunError",
        ),
        (heavy_at_the_top, "multiref_cli.cli.app", "def f():\n    import torch"),
        (
            heavy_at_the_top,
            "multiref_cli.config.schema",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        ),
    ],
)
def test_the_rules_let_pass_what_they_allow(rule, module, source):
    assert rule(imports_of(module, source)) == []


def test_a_heavy_import_is_found_through_another_module():
    chain = imports_of("multiref_cli.cli.app", "from multiref_cli.tracking import run_dir")
    chain += imports_of("multiref_cli.tracking.run_dir", "import torch")
    assert heavy_at_the_top(chain)[0].startswith("multiref_cli.cli.app: multiref_cli.tracking.run_dir:1 imports torch")


def test_the_command_line_starts_without_torch():
    modules = "multiref_cli.cli.app, multiref_cli.config.check, multiref_cli.config.compose"
    code = f"import sys, {modules}; print([m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"
