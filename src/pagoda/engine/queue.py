"""Who waits, and who is next: by priority; preempted ones first; then the tenant that was served least.

Served tokens are counted a tenant, as in 'Fairness in Serving Large Language Models' (Sheng et al., OSDI 2024): a
tenant that comes back after a pause starts level with the least served active one, so that pauses save up nothing.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from pagoda.engine.sequence import Sequence

MAX_REMEMBERED_TENANTS = 10_000


class FairShare:
    """Tokens served to each tenant."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        self._active: Counter[str] = Counter()  # sequences a tenant that have not ended

    def enter(self, tenant: str) -> None:
        """A sequence of the tenant came in."""
        if not self._active[tenant]:
            level = min((self.served[other] for other, n in self._active.items() if n), default=0)
            self.served[tenant] = max(self.served.get(tenant, 0), level)
        self._active[tenant] += 1

    def leave(self, tenant: str) -> None:
        """A sequence of the tenant ended."""
        self._active[tenant] -= 1
        if not self._active[tenant]:
            del self._active[tenant]
            if len(self.served) > MAX_REMEMBERED_TENANTS:
                self.served = {active: self.served[active] for active in self._active}

    def charge(self, tenant: str, num_tokens: int) -> None:
        self.served[tenant] += num_tokens


class _Class:
    """Waiting sequences of one priority."""

    def __init__(self) -> None:
        self.resumed: list[Sequence] = []  # preempted, by rank
        self.tenants: dict[str, OrderedDict[Sequence, None]] = {}  # new, by arrival

    def __bool__(self) -> bool:
        return bool(self.resumed or self.tenants)

    def first(self, share: FairShare, fits: Callable[[Sequence], bool]) -> Sequence | None:
        resumed = next(filter(fits, self.resumed), None)
        if resumed is not None:
            return resumed
        firsts = ((tenant, next(filter(fits, line), None)) for tenant, line in self.tenants.items())
        heads = [(share.served[tenant], seq) for tenant, seq in firsts if seq is not None]
        return min(heads, key=lambda head: (head[0], head[1].rank))[1] if heads else None

    def remove(self, seq: Sequence) -> None:
        tenant = seq.request.tenant
        line = self.tenants.get(tenant)
        if line is None or seq not in line:
            self.resumed.remove(seq)
            return
        del line[seq]
        if not line:
            del self.tenants[tenant]


class WaitingQueue:
    """All waiting sequences."""

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._classes: dict[int, _Class] = {}
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Sequence]:
        for group in self._classes.values():
            yield from group.resumed
            for line in group.tenants.values():
                yield from line

    def push(self, seq: Sequence) -> None:
        """A new sequence, at the end of its tenant's line."""
        group = self._classes.setdefault(seq.request.priority, _Class())
        group.tenants.setdefault(seq.request.tenant, OrderedDict())[seq] = None
        self._len += 1

    def push_front(self, seq: Sequence) -> None:
        """A sequence that has run already, before all new ones of its priority."""
        group = self._classes.setdefault(seq.request.priority, _Class())
        insort(group.resumed, seq, key=lambda s: s.rank)
        self._len += 1

    def first(self, fits: Callable[[Sequence], bool] = lambda seq: True) -> Sequence | None:
        """Who is next, of those that fit; stays in the queue until `remove`."""
        found = (self._classes[priority].first(self._share, fits) for priority in sorted(self._classes))
        return next((seq for seq in found if seq is not None), None)

    def remove(self, seq: Sequence) -> None:
        group = self._classes[seq.request.priority]
        group.remove(seq)
        if not group:
            del self._classes[seq.request.priority]
        self._len -= 1
