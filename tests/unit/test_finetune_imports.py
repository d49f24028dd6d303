"""What training does not use is not imported, wherever it is installed."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from pagoda.finetune.imports import UNUSED, without_unused


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Of the standard library: one module that is not imported yet, and one that is."""
    monkeypatch.delitem(sys.modules, "this", raising=False)
    monkeypatch.setattr("pagoda.finetune.imports.UNUSED", ("this", "json"))
    return "this", "json"


def test_meanwhile_they_are_not_there(unused: tuple[str, str]) -> None:
    later, there = unused
    with without_unused():
        assert importlib.util.find_spec(later) is None  # as peft and transformers ask
        with pytest.raises(ImportError):
            importlib.import_module(later)
        assert importlib.import_module(there)  # was imported before
    assert importlib.util.find_spec(later) is not None
    assert later not in sys.modules


def test_they_come_back_after_an_error(unused: tuple[str, str]) -> None:
    with pytest.raises(KeyError), without_unused():
        raise KeyError
    assert importlib.util.find_spec(unused[0]) is not None


def test_none_of_them_is_what_training_is_made_of() -> None:
    assert not {"torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "safetensors"} & set(UNUSED)
