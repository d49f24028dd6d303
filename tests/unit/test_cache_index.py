"""Vectors in memory against numpy's own search, exactly and through a graph."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pagoda.cache import index as index_module
from pagoda.cache.index import Indexes, VectorIndex


def unit_rows(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def settled(index: VectorIndex) -> bool:
    for _ in range(500):
        if index._graph is not None:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("approximate", [False, True])
def test_random_changes(approximate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many random puts and removals the nearest are those of a plain search."""
    if approximate:
        pytest.importorskip("usearch")
        monkeypatch.setattr(index_module, "EXACT_UP_TO", 60)
    index, rng, kept = VectorIndex(), np.random.default_rng(5), {}
    for step, vector in enumerate(unit_rows(600, 1)):
        key = f"k{rng.integers(150)}"
        with index._lock:
            if rng.random() < 0.2:
                index.remove(key)
                kept.pop(key, None)
            else:
                index.put(key, vector)
                kept[key] = vector
        if step % 50 == 0:
            assert len(index) == len(kept)
    assert settled(index) is approximate or not approximate
    keys, matrix = list(kept), np.stack(list(kept.values()))
    right = 0
    for query in unit_rows(40, 2):
        expected = [keys[i] for i in np.argsort(-(matrix @ query))[:5]]
        found = index.nearest(query, 5)
        assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)
        assert all(abs(score - kept[key] @ query) < 1e-5 for score, key in found)
        right += len({key for _, key in found} & set(expected))
    assert right >= (190 if approximate else 200)


@pytest.mark.parametrize("approximate", [False, True])
def test_filled_at_once_and_changed_afterwards(approximate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if approximate:
        pytest.importorskip("usearch")
        monkeypatch.setattr(index_module, "EXACT_UP_TO", 60)
    indexes, rows = Indexes(), unit_rows(100, 1)
    indexes.fill("p", "s", [f"k{place}" for place in range(100)], rows)
    assert settled(indexes._indexes["p", "s"]) or not approximate
    assert indexes.nearest("p", "s", rows[7], 1)[0][1] == "k7"
    indexes.remove("p", "s", "k7")
    indexes.put("p", "s", "new", rows[7])
    indexes.put("p", "s", "further", -rows[7])
    assert next(key for _, key in indexes.nearest("p", "s", rows[7], 200)) == "new"
    assert indexes.nearest("p", "s", -rows[7], 1)[0][1] == "further"
    assert len(indexes._indexes["p", "s"]) == 101


def test_bytes_find_what_is_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after rows were removed, written anew, and moved into a larger matrix."""
    pytest.importorskip("usearch")
    monkeypatch.setattr(index_module, "BYTES_FROM", 64)
    index, rng = VectorIndex(), np.random.default_rng(7)
    rows = rng.normal(size=(500, 96)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for place in range(400):
        index.put(f"k{place}", rows[place])
    for place in range(0, 100, 2):
        index.remove(f"k{place}")
    for place in range(400, 500):
        index.put(f"k{place}", rows[place])
    assert index._codes is not None
    kept = [place for place in range(500) if place >= 100 or place % 2]
    for query in rows[::25]:
        expected = sorted(((float(rows[place] @ query), f"k{place}") for place in kept), reverse=True)[:5]
        found = index.nearest(query, 5)
        assert [key for _, key in found] == [key for _, key in expected]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-6)


def test_vectors_of_another_width_find_nothing() -> None:
    index = VectorIndex()
    index.put("a", unit_rows(1, 1)[0])
    assert index.nearest(np.ones(3, np.float32), 5) == []


def test_empty_partitions_are_given_up() -> None:
    indexes = Indexes()
    indexes.put("p", "s", "a", unit_rows(1, 1)[0])
    indexes.remove("p", "s", "a")
    indexes.remove("p", "s", "a")
    assert indexes._indexes == {}
