"""How many of each tenant's hits by meaning were checked, and how many of these were wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pagoda.cache.evidence import clopper_pearson

MAX_TENANTS = 100  # counted apart; the rest together
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Checked:
    """One tenant's hits that were checked."""

    num_hits: int
    num_wrong: int

    @property
    def share(self) -> float:
        """The share of wrong ones; 0 where nothing was checked."""
        return self.num_wrong / self.num_hits if self.num_hits else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """That holds the true share with a confidence of 95 %."""
        return clopper_pearson(self.num_wrong, self.num_hits, 0.95)


class CheckedHits:
    """Counts by tenant. Any thread may call."""

    def __init__(self) -> None:
        self._counts: dict[str, Checked] = {}
        self._lock = threading.Lock()

    def add(self, tenant: str, *, wrong: bool) -> None:
        """One hit more was checked."""
        with self._lock:
            known = tenant in self._counts or len(self._counts) < MAX_TENANTS
            name = tenant if known else OTHER
            old = self._counts.get(name, Checked(0, 0))
            self._counts[name] = Checked(old.num_hits + 1, old.num_wrong + wrong)

    def __iter__(self) -> Iterator[tuple[str, Checked]]:
        with self._lock:
            return iter(list(self._counts.items()))

    def to_json(self) -> dict[str, list[int]]:
        return {tenant: [one.num_hits, one.num_wrong] for tenant, one in self}

    def restore(self, shape: Any) -> None:
        """Go on from what `to_json` gave. Raises ValueError for anything else, and then changes nothing."""
        try:
            counts = {str(tenant): Checked(int(hits), int(wrong)) for tenant, (hits, wrong) in shape.items()}
        except (AttributeError, TypeError, ValueError):
            raise ValueError("its counts by tenant are none") from None
        if any(not 0 <= one.num_wrong <= one.num_hits for one in counts.values()) or len(counts) > MAX_TENANTS + 1:
            raise ValueError("its counts by tenant cannot be")
        with self._lock:
            self._counts = counts
