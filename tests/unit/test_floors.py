"""Imports point down the floors of docs/structure.md only, in no circles, and none is hidden in a string."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pagoda

SOURCE = Path(pagoda.__file__).parent

FLOORS: dict[str, float] = {
    "errors": 0, "constraint": 0, "types": 0.05, "settings": 0.1, "settings_file": 0.1, "crypt": 0.1,
    "cache_settings": 0.15, "kv_settings": 0.15, "adapter_settings": 0.17, "config": 0.2,
    "_native": 0.9, "formats": 1, "text": 1.1, "sources": 1, "client": 1, "routing": 1,
    "backends": 2, "hardware": 2.5,
    "kv": 3, "sampling": 3, "models": 3, "grammar": 3, "adapters": 3.1,
    "engine": 4, "scoring": 4.5, "plan": 5.5,
    "observe": 5, "quantize": 5, "evals": 5, "cache": 5, "finetune": 5.8,
    "server": 6, "gateway": 6.2, "deploy": 6.4, "benchmark": 6.5,
    "cli": 7,
}  # fmt: skip

TABLE_OF_VERBS = "cli/main.py"  # imports a verb when it is called, by a string of its own part


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> set[tuple[str, ...]]:
    """What the file imports of pagoda, wherever the import stands: (part, module, …, perhaps a name)."""
    found: set[tuple[str, ...]] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found.update(tuple(name.split(".")[1:]) for name in names if name.startswith("pagoda."))
    return found


@cache
def file_of(name: tuple[str, ...]) -> Path | None:
    """The file behind an import: of a name that stands in a module, the module's. None for the extension."""
    for length in range(len(name), 0, -1):
        place = SOURCE.joinpath(*name[:length])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE or path.stem in FLOORS]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


@pytest.mark.parametrize("part", FLOORS)
def test_parts_are_there(part: str) -> None:
    assert list(SOURCE.glob(f"{part}/__init__.py")) or list(SOURCE.glob(f"{part}.py*"))


@each_file
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    floor = FLOORS[part]
    for other in {name[0] for name in imports(path)}:
        if other != part:
            assert FLOORS[other] < floor, f"{part} (floor {floor}) imports {other} (floor {FLOORS[other]})"


def called(function: ast.expr) -> str:
    """The last part of a function's name, empty of what is no name."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@each_file
def test_no_import_is_hidden(path: Path) -> None:
    """`import_module` is for packages that may not be installed, named as they are."""
    if path == SOURCE / TABLE_OF_VERBS:
        return
    for node in nodes(path):
        if isinstance(node, ast.Call) and called(node.func) in ("import_module", "__import__"):
            name = node.args[0]
            assert isinstance(name, ast.Constant), f"{path}:{node.lineno} imports what only running it would tell"
            assert not str(name.value).startswith("pagoda"), f"{path}:{node.lineno} hides an import in a string"


def test_files_import_each_other_in_no_circle() -> None:
    sorter = TopologicalSorter({path: {file_of(name) for name in imports(path)} - {path, None} for path in FILES})
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(str(path.relative_to(SOURCE)) for path in reversed(error.args[1])))
