"""Whether a measurement had the machine to itself: how much of the CPU time that its threads could get they got."""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET_SHARE = 0.8  # less than that, and other programs took so much that figures say little of the machine


class CpuShare:
    """A stopwatch of wall and CPU time, which runs within `with` and adds up."""

    def __init__(
        self,
        cpus: float,
        *,
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        """`cpus`: how many the threads could have kept busy; a cgroup's quota may be less than their number."""
        self._cpus, self._wall, self._cpu = cpus, wall, cpu
        self._wall_s = self._cpu_s = 0.0

    def __enter__(self) -> CpuShare:
        self._wall_s -= self._wall()
        self._cpu_s -= self._cpu()
        return self

    def __exit__(self, *error: object) -> None:
        self._wall_s += self._wall()
        self._cpu_s += self._cpu()

    @property
    def share(self) -> float:
        """From 0 to about 1; 1 where nothing was measured."""
        return self._cpu_s / self._wall_s / self._cpus if self._wall_s else 1.0
