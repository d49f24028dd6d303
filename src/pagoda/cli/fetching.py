"""What `pagoda serve` shows of a download: bars on a terminal, lines in a log that something else reads."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from pagoda.sources import LocalModel, Progress, resolve

LOG_EVERY_S = 10.0

logger = logging.getLogger("pagoda.server")


def fetch(name: str, *, bars: bool) -> LocalModel:
    """`resolve`, with progress on standard error. What draws bars is imported when there is something to draw."""
    if not (bars and sys.stderr.isatty()):
        return resolve(name, progress=DownloadLog())
    with ExitStack() as stack:
        drawing: list[Progress] = []

        def draw(what: str, done: int, total: int | None) -> None:
            if not drawing:
                from pagoda.cli.progress import download_progress

                drawing.append(stack.enter_context(download_progress()))
            drawing[0](what, done, total)

        return resolve(name, progress=draw)


class DownloadLog:
    """Logs each file when it begins, every ten seconds, and when it is there."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._what: str | None = None
        self._next = 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = self._clock()
        if what == self._what and done != total and now < self._next:
            return
        self._what, self._next = what, now + LOG_EVERY_S
        facts = {"file": what, "mb": round(done / 1e6, 1), "of_mb": total and round(total / 1e6, 1)}
        logger.info("downloading", extra={"facts": facts})
