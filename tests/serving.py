"""Real HTTP servers for tests: in this process, and in one of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from pagoda.config import ServerSettings
from pagoda.observe.cost import CostSettings
from pagoda.server.listen import bind, url
from pagoda.server.run import PagodaServer, make_server
from pagoda.server.service import Loaded, Model

T = TypeVar("T")
HANG_S = 300.0  # what takes longer hangs: tests wait for what is to happen, however slow the machine


@dataclass
class Served:
    """A running server."""

    url: str
    server: PagodaServer
    loaded: Any
    client: httpx.Client

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def ok(self, path: str, **body: Any) -> Any:
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
        response = self.post(path, **body)
        assert response.status_code == status, response.text
        error: dict[str, Any] = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def model(self) -> Model:
        """The one that is served, with its metrics and all."""
        service: Any = self.server.service
        model: Model = service.model()
        return model

    def stop(self) -> None:
        """As SIGTERM does; a second one would end this process."""
        self.server.handle_exit(signal.SIGTERM, None)


@contextmanager
def serving(loaded: Loaded, *, cost: CostSettings | None = None, **settings: Any) -> Iterator[Served]:
    """Serve `loaded` on a free port. Stopped at the end, if the test has not."""
    sock = bind("127.0.0.1", 0)
    loading: Future[Loaded] = Future()
    server = make_server(ServerSettings(port=0, **settings), loading, cost=cost)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]))
    thread.start()
    loading.set_result(loaded)
    served = Served(url(sock), server, loaded, httpx.Client(base_url=url(sock), timeout=HANG_S))
    try:
        wait_for(lambda: server.service.ready or not thread.is_alive())
        yield served
    finally:
        served.client.close()
        if not server._stop_asked:
            served.stop()
        loaded.engine.stop()
        thread.join(HANG_S)
        assert not thread.is_alive(), "the server does not end"
        assert server.failure is None, server.failure


def wait_for(condition: Callable[[], T | None], what: str = "it") -> T:
    """Until `condition` holds. → its value; AssertionError, which names `what`, after `HANG_S`."""
    deadline = time.monotonic() + HANG_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.002)
    return found


def series_sums(text: str, **labels: str) -> dict[str, float]:
    """Of a page in Prometheus' text format, each series' sum over those samples that have `labels`; no buckets."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "le" not in sample.labels and labels.items() <= sample.labels.items():
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def events(response: httpx.Response) -> list[Any]:
    """The JSON objects of a server-sent event stream, whose last line must be [DONE]."""
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines), lines
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Process:
    """`pagoda serve` on a free port, which its log names."""

    def __init__(self, model: Path, log: Path, *flags: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "pagoda", "serve", str(model), "--port", "0", "--log-format", "json"]
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen([*command, "--max-context", "1024", *flags], stderr=stderr)
        self.client = httpx.Client(timeout=HANG_S)

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait_ready(self) -> None:
        wait_for(lambda: self.popen.poll() is not None or self.announced())
        assert self.popen.poll() is None, self.log.read_text()
        self.client.base_url = httpx.URL(str(self.announced()).removesuffix("/v1"))

    def announced(self) -> object:
        return next((line["url"] for line in self.lines() if line["message"] == "listening"), None)

    def wait_end(self) -> int:
        return self.popen.wait(HANG_S)


@contextmanager
def process(model: Path, log: Path, *flags: str) -> Iterator[Process]:
    running = Process(model, log, *flags)
    try:
        running.wait_ready()
        yield running
    finally:
        running.client.close()
        running.popen.kill()
        running.popen.wait()
