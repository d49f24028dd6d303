"""The small JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pagoda.errors import FormatError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty if there is no such file. Of a key that stands twice, the last counts."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise FormatError(f"not JSON: {error}", path=str(path)) from error
    if not isinstance(value, dict):
        raise FormatError("not a JSON object", path=str(path))
    return value
