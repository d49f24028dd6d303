"""What serving costs on top of the native calls: the engine's steps while clients stream over real HTTP.

The server runs in this process, its clients in another. Of the time from the end of one step to the end of the next,
with all clients decoding, everything but the backend's forward pass counts: sampling, scheduling and text, handing
over to the event loop (sinks, metrics, waiting for the interpreter), and the CPU time of the event loop's thread.
The latter runs beside the native call but takes a core from it, so it is counted in full.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pagoda.config import ServerSettings
from pagoda.errors import EngineError
from pagoda.server.listen import bind, url
from pagoda.server.run import make_server
from pagoda.server.service import Loaded, Model
from pagoda.types import StepResult

START_TIMEOUT = 60.0  # seconds


@dataclass(slots=True)
class StepClock:
    """An observer of steps: notes those in which `batch` sequences decode and nothing else happens."""

    batch: int
    loop_clock: int  # of the event loop's thread
    intervals: list[tuple[float, StepResult]] = field(default_factory=list)  # seconds since the step before
    loop_cpu: float = 0.0  # seconds, over these intervals
    _last: tuple[float, float] | None = None  # time and loop CPU at the end of the last such step

    def __call__(self, step: StepResult) -> None:
        if step.num_generation_tokens != self.batch or step.num_prompt_tokens:
            self._last = None
            return
        now, cpu = time.perf_counter(), time.clock_gettime(self.loop_clock)
        if self._last is not None:
            self.intervals.append((now - self._last[0], step))
            self.loop_cpu += cpu - self._last[1]
        self._last = now, cpu


def profile_serving(loaded: Loaded, batch: int, prompt: int, gen: int) -> dict[str, Any]:
    """Rows of where a decode step's time goes while `batch` clients stream. Starts the engine's thread: comes last.

    Raises EngineError when the clients fail, or never decode all at once.
    """
    with _serving(loaded) as (address, loop_clock):
        clock = StepClock(batch, loop_clock)
        loaded.engine.on_step.append(clock)
        _load(address, batch, prompt, gen)
    if not clock.intervals:
        raise EngineError(f"the {batch} clients never decoded all at once; raise --gen or lower --prompt")
    return _report(clock)


def _report(clock: StepClock) -> dict[str, Any]:
    steps = [step for _, step in clock.intervals]
    total = sum(seconds for seconds, _ in clock.intervals)
    forward, sample = sum(step.forward_s for step in steps), sum(step.sample_s for step in steps)
    verify, draft = sum(step.verify_s for step in steps), sum(step.draft_s for step in steps)
    inside = sum(step.step_s for step in steps)
    parts = {
        "forward pass": forward,
        "sampling": sample - verify,
        "verifying drafts": verify,
        "drafting": draft,
        "scheduling and text": inside - forward - sample - draft,
        "hand-over": total - inside,
        "HTTP, on its own thread": clock.loop_cpu,
    }
    rows = [
        {"part": part, "seconds": round(seconds, 6), "time_share": round(seconds / total, 4)}
        for part, seconds in parts.items()
    ]
    outside = round((total - forward + clock.loop_cpu) / total, 4)
    return {"batch": clock.batch, "steps": len(steps), "seconds": round(total, 6), "parts": rows, "outside": outside}


@contextmanager
def _serving(loaded: Loaded) -> Iterator[tuple[str, int]]:
    """The server on a free port of this machine: its address, and the CPU clock of its event loop's thread."""
    sock = bind("127.0.0.1", 0)
    loading: Future[Loaded] = Future()
    ready = threading.Event()

    def on_ready(model: Model) -> None:
        ready.set()

    server = make_server(ServerSettings(), loading, on_ready)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]), name="pagoda-bench-server")
    thread.start()
    loading.set_result(loaded)
    try:
        if not ready.wait(START_TIMEOUT):
            raise EngineError(f"the server did not start: {server.failure}")
        assert thread.ident is not None
        yield url(sock), time.pthread_getcpuclockid(thread.ident)
    finally:
        server.stop()
        thread.join()


def _load(address: str, batch: int, prompt: int, gen: int) -> None:
    """`pagoda bench serve` in a process of its own."""
    shape = ["--concurrency", str(batch), "--requests", str(batch), "--prompt", str(prompt), "--output", str(gen)]
    command = [sys.executable, "-m", "pagoda", "bench", "serve", "--url", address, *shape, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"the clients failed: {(done.stdout + done.stderr)[-500:].strip()}")
