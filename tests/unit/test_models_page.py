"""docs/models.md against the registry that it is made of."""

from __future__ import annotations

from pathlib import Path

import models_page

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_what_the_registry_says() -> None:
    remedy = "run PYTHONPATH=src:tests python tests/models_page.py > docs/models.md"
    assert PAGE.read_text() == models_page.markdown(), remedy
