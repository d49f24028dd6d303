"""Where entries are kept: six methods, the same promises in memory, SQLite, Redis and PostgreSQL.

A store is used by several threads at once. It gives back what was put in or nothing: a row that cannot be read is
dropped. Vectors are of length 1; none that is zero or not finite gets here (`cache.SemanticCache` refuses them).
Whether an entry is still alive is for the caller to see, and `sweep` removes those that are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pagoda.cache.entry import Entry
from pagoda.errors import PagodaError
from pagoda.types import FloatArray


class StoreError(PagodaError):
    """A store is away, full or broken; for a request that is a miss."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Which entries: those for which everything that is stated holds. With nothing stated, all."""

    key: str | None = None
    id: str | None = None
    tenant: str | None = None
    tag: str | None = None
    model: str | None = None
    created_before: float | None = None  # time.time() seconds
    expired_at: float | None = None  # those that are no longer alive then
    all_but: int | None = None  # of all that is there, without the so many newest; goes with nothing else

    def matches(self, entry: Entry) -> bool:
        return (
            (self.key is None or entry.key == self.key)
            and (self.id is None or entry.id == self.id)
            and (self.tenant is None or entry.tenant == self.tenant)
            and (self.tag is None or self.tag in entry.tags)
            and (self.model is None or entry.model == self.model)
            and (self.created_before is None or entry.created < self.created_before)
            and (self.expired_at is None or entry.expires <= self.expired_at)
        )


class Store(Protocol):
    """All raise StoreError, and nothing else."""

    def put(self, entry: Entry, *, renew: bool = False) -> None:
        """Keep the entry, in place of the one of its key; with `renew`, only where one of that key is there.

        It is found by whoever asks after this returns.
        """

    def entries(self, selector: Selector) -> Iterator[Entry]:
        """The entries of the selector, newest first."""

    def count(self, selector: Selector) -> int:
        """How many these are, damaged ones among them."""

    def nearest(self, partition: str, space: str, vector: FloatArray, count: int) -> list[tuple[float, Entry]]:
        """Up to `count` entries of the partition whose vectors are of `space`, with their cosines, nearest first.

        `vector`: [d], of length 1. An approximate index (HNSW) may leave out one that is among the nearest; none gives
        an entry of another partition or space.
        """

    def delete(self, selector: Selector) -> int:
        """Remove the entries of the selector. → how many there were."""

    def close(self) -> None:
        """Let go of files and connections. Idempotent."""
