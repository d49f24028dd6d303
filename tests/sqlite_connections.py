"""Which connections to SQLite files code opens, and whether it closes them: of open ones only Python 3.13 warns."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest


def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Those that are opened from now on."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(path: Path, **options: Any) -> sqlite3.Connection:
        opened.append(connect(path, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    return opened


def is_closed(db: sqlite3.Connection) -> bool:
    try:
        db.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return True
    except sqlite3.Error:  # of the file
        return False
    return False
