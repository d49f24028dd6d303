"""Imports point down the floors of docs/structure.md only."""

import ast
from pathlib import Path

import pytest

import pagoda

SOURCE = Path(pagoda.__file__).parent

FLOORS: dict[str, float] = {
    "errors": 0, "types": 0, "settings": 0.1, "config": 0.2,
    "formats": 1, "text": 1.1, "sources": 1, "_native": 1, "client": 1,
    "backends": 2,
    "kv": 3, "sampling": 3, "models": 3,
    "engine": 4, "plan": 5.5,
    "observe": 5, "cache": 5, "evals": 5, "finetune": 5, "quantize": 5,
    "server": 6, "gateway": 6, "deploy": 6, "benchmark": 6.5,
    "cli": 7,
}  # fmt: skip


def imported_parts(path: Path) -> set[str]:
    """Top-level parts of pagoda that the file imports, wherever in the file the import stands."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "pagoda" else [module]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("pagoda.")}
    return parts


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE or path.stem in FLOORS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    floor = FLOORS[part]
    for other in imported_parts(path):
        if other != part:
            assert FLOORS[other] < floor, f"{part} (floor {floor}) imports {other} (floor {FLOORS[other]})"
