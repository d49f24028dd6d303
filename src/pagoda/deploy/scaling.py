"""How many engines a load asks for: what each engine says of itself → a number. It knows nothing of Ray.

An engine's demand is its work as a share of what one engine is to have: of requests, or of KV memory, whichever is
more. Requests that wait are taken to want as much KV memory as those that run hold on average:

    requests = running + waiting
    demand   = max(requests / target_requests,  kv_usage · requests / running / target_kv_usage)

As many engines are wanted as the demands of all come to, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.1  # of the engines there are: so much more demand starts no further one
ROUNDING = 1e-9  # of sums of floats


@dataclass(frozen=True, slots=True)
class Targets:
    """What an engine is to have at a time."""

    requests: float  # running and waiting
    kv_usage: float  # of its KV blocks, held by sequences: 0 to 1


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine says of itself, averaged over a while. The names are those under which it says so."""

    running: float  # requests
    waiting: float
    kv_usage: float  # 0 to 1

    def demand(self, targets: Targets) -> float:
        """Engines that its work asks for."""
        requests = self.running + self.waiting
        # of a fraction of a request, on average, nothing can be learned about the others
        kv_usage = self.kv_usage * requests / max(self.running, 1.0) if requests > self.running else self.kv_usage
        return max(requests / targets.requests, kv_usage / targets.kv_usage)


def engines_for(loads: Sequence[EngineLoad], now: int, targets: Targets) -> int:
    """How many engines the loads ask for, at least one, where there are to be `now` so far.

    An engine that says nothing, because it is starting or has died, adds nothing; where none says anything, the number
    stays as it is.
    """
    if not loads:
        return now
    total = sum(load.demand(targets) for load in loads)
    if now < total <= now * (1 + TOLERANCE):
        return now
    return max(1, math.ceil(total - ROUNDING))
