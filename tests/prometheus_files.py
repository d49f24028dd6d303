"""The rules and dashboards of deploy/, for tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/rules.yml"


def dashboards() -> ModuleType:
    path = ROOT / "deploy/grafana/dashboards.py"
    spec = importlib.util.spec_from_file_location("dashboards", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module
