"""Entries in this process alone: gone when it ends."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from pagoda.cache.entry import Entry
from pagoda.cache.index import Indexes
from pagoda.cache.store import Selector
from pagoda.types import FloatArray


class MemoryStore:
    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}  # by key
        self._indexes = Indexes()
        self._lock = self._indexes.lock

    def put(self, entry: Entry, *, renew: bool = False) -> None:
        with self._lock:
            old = self._entries.pop(entry.key, None)
            if old is None and renew:
                return
            if old is not None and old.vector is not None:
                self._indexes.remove(old.partition, old.space, old.key)
            self._entries[entry.key] = entry
            if entry.vector is not None:
                self._indexes.put(entry.partition, entry.space, entry.key, entry.vector)

    def entries(self, selector: Selector) -> Iterator[Entry]:
        return iter(self._selected(selector))

    def count(self, selector: Selector) -> int:
        return len(self._entries) if selector == Selector() else len(self._selected(selector))

    def nearest(self, partition: str, space: str, vector: FloatArray, count: int) -> list[tuple[float, Entry]]:
        with self._lock:
            return [(s, self._entries[key]) for s, key in self._indexes.nearest(partition, space, vector, count)]

    def delete(self, selector: Selector) -> int:
        with self._lock:
            found = self._selected(selector)
            for entry in found:
                del self._entries[entry.key]
                if entry.vector is not None:
                    self._indexes.remove(entry.partition, entry.space, entry.key)
            return len(found)

    def close(self) -> None:
        """Nothing to let go of."""

    def _selected(self, selector: Selector) -> list[Entry]:
        """Newest first."""
        with self._lock:
            if selector.all_but is not None:
                surplus = max(len(self._entries) - selector.all_but, 0)
                return heapq.nsmallest(surplus, self._entries.values(), key=lambda entry: entry.created)[::-1]
            if selector.key is not None:
                entry = self._entries.get(selector.key)
                return [entry] if entry is not None and selector.matches(entry) else []
            end = selector.expired_at
            if end is not None and selector == Selector(expired_at=end):  # a sweep, which others wait for
                found = [entry for entry in self._entries.values() if entry.expires <= end]
            else:
                found = [entry for entry in self._entries.values() if selector.matches(entry)]
        return sorted(found, key=lambda entry: -entry.created)
