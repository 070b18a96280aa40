"""Imports point down from tools to kernels, and in no circle, wherever in a file they stand.

All that a syntax tree shows counts: imports inside functions and those for type checkers as well.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = sys.stdlib_module_names
# a package may import those of its own rank and of the ranks above it in this list
RANKS = (
    "ops",  # serves mmcv, imports nothing of ours; the registry puts it in place
    "version errors serialization registry own_configs startup",  # and vig_mm: known to all
    "kernels",
    "nets",
    "models timm",
    "checkpoints datasets",
    "engine checks visualization export",
    "apis",
)
RANK = {f"vig_mm.{one}": rank for rank, packages in enumerate(RANKS) for one in packages.split()}
RANK |= {"vig_mm": 1, "tools": len(RANKS)}


def module_name(path: Path) -> str:
    """The name by which a file is imported; the folder `kernels` is `vig_mm.kernels`."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"vig_mm.{name}" if name.partition(".")[0] == "kernels" else name


FILES = {
    module_name(path): path
    for folder in ("kernels", "vig_mm", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
# tools import each other by their file's name
TOOLS = {name.rpartition(".")[2]: name for name in FILES if name.startswith("tools.")}


def ancestors(name: str) -> set[str]:
    """``a.b.c`` -> ``a``, ``a.b``: what Python imports before it."""
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


@cache
def imports(name: str) -> frozenset[str]:
    """All that a module imports by absolute names: modules here, and other packages' names."""
    is_package = FILES[name].name == "__init__.py"
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".")
                folder = here[: len(here) - node.level + is_package]
                base = ".".join([*folder, *filter(None, [node.module])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            modules = inside & FILES.keys()
            found |= modules | ({base} if modules != inside else set())
    if name.startswith("tools."):
        found = {TOOLS.get(one, one) for one in found}
    return frozenset(found)


def imports_here(name: str) -> set[str]:
    """The modules of this repository that a module imports, with their packages' ``__init__``."""
    found = imports(name) & FILES.keys()
    outer = set().union(*map(ancestors, found)) & FILES.keys()
    return (found | outer) - ancestors(name) - {name}


def package(name: str) -> str:
    """The entry of `RANKS` that a module belongs to."""
    (found,) = ({name, *ancestors(name)} & RANK.keys()) - {"vig_mm"} or {"vig_mm"}
    return found


def outside(name: str) -> Iterator[str]:
    """Top-level names that a module imports from elsewhere."""
    return (one.partition(".")[0] for one in imports(name) - FILES.keys())


@pytest.mark.parametrize("unit", [str, package], ids=["modules", "packages"])
def test_no_circle(unit):
    graph = {unit(name): set() for name in FILES}
    for name in FILES:
        graph[unit(name)] |= {unit(one) for one in imports_here(name)} - {unit(name)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


def test_imports_point_down():
    upwards = [
        f"{name} imports {one}"
        for name in FILES
        for one in imports_here(name)
        if RANK[package(one)] > RANK[package(name)]
    ]
    assert upwards == []


def test_what_kernels_networks_and_models_need():
    libraries = {"mmdet", "mmseg", "mmpretrain"}
    for name in FILES:
        needed, packages = set(outside(name)), {package(one) for one in imports_here(name)}
        if package(name) == "vig_mm.kernels":
            assert not {one for one in needed if one.startswith("mm")}, name
            assert packages <= {"vig_mm.kernels"}, name
        elif package(name) == "vig_mm.nets":
            assert needed <= STANDARD | {"torch"}, name
            assert packages <= {"vig_mm.kernels", "vig_mm.nets"}, name
        # only mmdet's configs import the test-time augmentation
        elif package(name) == "vig_mm.models" and ".test_time_augs" not in name:
            assert not needed & libraries, name
        elif name.startswith(("vig_mm.engine.optimizers", "vig_mm.registry")):
            assert not needed & libraries, name
