"""The house: imports point down only, files and functions stay small. ARCHITECTURE.md shows the floors."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "hardpatch"
FLOORS = (
    ("cli",),
    ("study", "report", "check", "export", "predict", "rank", "view"),
    ("finetune", "segment", "detect", "evaluate"),
    ("bench",),
    ("pretrain",),
    ("page",),
    ("interchange",),
    ("configuration",),
    ("train",),
    ("measure",),
    ("methods",),
    ("models",),
    ("data",),
    ("",),
)
"""Packages from the top floor down; the empty name stands for the modules of ``hardpatch`` itself."""
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}
MODULES = {
    ".".join(("hardpatch", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"  # starts the command line
}


def package_of(module: str) -> str:
    """Return the package of a module, empty for one of ``hardpatch`` itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else ""


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of this project that a file imports, those inside functions and for types included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for name in node.names:
                submodule = f"{node.module}.{name.name}"
                yield submodule if submodule in MODULES else node.module


# The public names of `hardpatch` come from all floors; `__version__` is what the others take from it.
GRAPH = {name: set(imports_of(path)) - {"hardpatch"} for name, path in MODULES.items() if name != "hardpatch"}


def functions() -> Iterator[tuple[str, int]]:
    """Yield every function and its number of lines."""
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def test_every_package_has_a_floor() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert packages == set(FLOOR) - {""}


@pytest.mark.parametrize("package", FLOOR)
def test_imports_point_down(package: str) -> None:
    upward = [
        f"{module} -> {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if package_of(module) == package != package_of(target) and FLOOR[package_of(target)] <= FLOOR[package]
    ]
    assert upward == []


def test_no_circle_of_files() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in sorted(GRAPH[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_files_are_small() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    written = [length for length in lengths.values() if length > 5]  # an __init__ with a docstring is no file to read
    assert statistics.median(written) <= 130
    tests = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in Path(__file__).parent.rglob("*.py")}
    assert {str(path): length for path, length in (lengths | tests).items() if length > 350} == {}


def test_functions_are_small() -> None:
    assert {name: length for name, length in functions() if length > 60} == {}
