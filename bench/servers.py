"""A server as a child process: started on a free port, waited for, watched, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT = 120.0  # seconds
STOP_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers. `ready_s` is the time from its start to its first 200 on the ready route."""

    url: str
    process: subprocess.Popen[bytes]
    ready_s: float
    log: Path

    def rss(self) -> int:
        """Resident bytes of the process, file pages that it has mapped included."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def metrics(self) -> dict[str, float]:
        """Prometheus series of /metrics by name; series that differ in labels are added up."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            return parse_metrics(answer.read().decode())


def parse_metrics(text: str) -> dict[str, float]:
    series: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name = line.partition("{")[0].partition(" ")[0]
            series[name] = series.get(name, 0.0) + float(line.rpartition("}")[2].split()[-1])
    return series


def pagoda_command(model: Path | str, port: int, *flags: str) -> list[str]:
    return [sys.executable, "-m", "pagoda", "serve", str(model), "--port", str(port), *flags]


@contextmanager
def serving(command: Callable[[int], Sequence[str]], ready_route: str) -> Iterator[Server]:
    """Run `command(port)` until the block ends, or SIGTERM comes. SystemExit with its last output if it fails."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        started = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(command(port), stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, url + ready_route, log)
            yield Server(url, process, time.perf_counter() - started, log)
            if process.poll() is not None:
                raise SystemExit(f"the server exited with {process.returncode}: {tail(log)}")
        finally:
            _stop(process)


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].strip()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} exited with {process.returncode}: {tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):  # refused, or 503 while it loads
            time.sleep(0.02)  # asking takes time from the one that is asked
    raise SystemExit(f"{process.args!r} is not ready after {START_TIMEOUT:g} s: {tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
