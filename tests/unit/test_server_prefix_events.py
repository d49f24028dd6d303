"""/v1/kv_events: who is told what, and what becomes of who does not listen."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fake_engine import FakeLoaded
from pagoda.engine.engine import Engine
from pagoda.routing.prefixes import HEADER, pieces_header, prefix_hashes
from pagoda.server import prefix_events
from pagoda.server.prefix_events import Listener
from raw_http import connected, get
from serving import HANG_S, Served, serving, wait_for
from watched import prompt, watched

ADMIN = {"Authorization": "Bearer root"}


class Heard:
    """A connection that is read event by event."""

    def __init__(self, served: Served, headers: dict[str, str] | None = None) -> None:
        self._stream = httpx.stream("GET", f"{served.url}/v1/kv_events", headers=headers, timeout=HANG_S)
        self.response = self._stream.__enter__()
        self._lines = self.response.iter_lines()
        self.blocks: set[str] = set()
        self.pieces: set[str] = set()

    def event(self) -> dict[str, Any]:
        """The next one, taken in."""
        line = next(line for line in self._lines if line.startswith("data: "))
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if event["type"] == "cleared":
            self.blocks, self.pieces = set(), set()
        elif event["type"] == "stored":
            self.blocks |= set(event["blocks"])
            self.pieces |= set(event["pieces"])
        else:
            self.blocks -= set(event["blocks"])
            self.pieces -= set(event["pieces"])
        return event

    def until(self, engine: Engine) -> None:
        """All that the engine holds has been told."""
        held = {key.hex() for key in engine.kv.prefix.all_keys()}
        while self.blocks != held:
            self.event()

    def close(self) -> None:
        self._stream.__exit__(None, None, None)


@pytest.fixture
def server() -> Iterator[tuple[Served, Engine]]:
    with watched(num_blocks=40) as server:
        yield server


def ask(served: Served, seed: int, headers: dict[str, str] | None = None) -> None:
    body = {"prompt": prompt(seed), "max_tokens": 2, "ignore_eos": True, "temperature": 0}
    response = served.client.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text


def labels(seed: int) -> dict[str, str]:
    text = json.dumps(prompt(seed)).encode()
    return {HEADER: pieces_header(prefix_hashes([text]), len(text))}


def test_what_is_held_and_how_it_changes(server: tuple[Served, Engine]) -> None:
    served, engine = server
    ask(served, 1)
    heard = Heard(served)
    assert heard.event() == {"type": "cleared", "block_size": 16, "model": "fake"}
    heard.until(engine)
    assert len(heard.blocks) == 20
    ask(served, 2)
    ask(served, 3)  # 60 blocks do not fit in 40
    heard.until(engine)
    heard.close()
    again = Heard(served)  # who comes again gets all that is there
    again.event()
    assert len(again.event()["blocks"]) == len(engine.kv.prefix)
    assert again.blocks == heard.blocks
    again.close()


def test_pieces_are_told_by_the_names_that_the_router_gave(server: tuple[Served, Engine]) -> None:
    served, engine = server
    ask(served, 1, labels(1))  # nobody listens: nothing is written down
    heard = Heard(served)
    heard.event()
    heard.until(engine)
    assert heard.pieces == set()
    ask(served, 2, labels(2))
    heard.until(engine)
    text = json.dumps(prompt(2)).encode()
    assert heard.pieces == {f"{one:016x}" for one in prefix_hashes([text])}
    assert len(heard.pieces) >= 3
    heard.close()


def test_a_damaged_header_is_refused_where_somebody_listens(server: tuple[Served, Engine]) -> None:
    served, _ = server
    ask(served, 1, {HEADER: "nonsense"})
    heard = Heard(served)
    heard.event()
    body = {"prompt": prompt(2), "max_tokens": 2}
    for told in ("nonsense", "900:AAAA", ":", "10:AAAAAAAAAAA="):
        response = served.client.post("/v1/completions", json=body, headers={HEADER: told})
        assert response.status_code == 400, told
        assert HEADER in response.json()["error"]["message"]
    heard.close()


def test_only_who_may_look_on_is_told() -> None:
    with watched(admin_key="root", api_keys=("client",)) as (served, _):
        assert served.client.get("/v1/kv_events").status_code == 401
        client = {"Authorization": "Bearer client"}
        refused = served.client.get("/v1/kv_events", headers=client)
        assert refused.status_code == 403
        assert "admin key" in refused.json()["error"]["message"]
        heard = Heard(served, ADMIN)
        assert heard.event()["type"] == "cleared"
        ask(served, 1, client | {HEADER: "nonsense"})  # nobody else names pieces
        heard.close()


def test_without_a_listener_the_engine_keeps_nothing(server: tuple[Served, Engine]) -> None:
    served, engine = server
    ask(served, 1, labels(1))
    assert engine.kv.prefix.watcher is None


def test_listeners_are_few(monkeypatch: pytest.MonkeyPatch, server: tuple[Served, Engine]) -> None:
    monkeypatch.setattr(prefix_events, "MAX_LISTENERS", 1)
    served, _ = server
    heard = Heard(served)
    heard.event()
    assert served.client.get("/v1/kv_events").status_code == 429
    heard.close()

    def comes_again() -> bool:
        second = Heard(served)
        second.close()
        return second.response.status_code == 200

    wait_for(comes_again)


def test_a_server_that_shuts_down_ends_the_stream(server: tuple[Served, Engine]) -> None:
    served, _ = server
    heard = Heard(served)
    heard.event()
    served.stop()
    assert list(heard._lines) == [""]
    heard.close()


def test_a_model_without_prefixes_has_nothing_to_tell() -> None:
    with serving(FakeLoaded()) as served:
        assert served.client.get("/v1/kv_events").status_code in (404, 503)


def test_who_does_not_read_is_cut_off_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, server: tuple[Served, Engine]
) -> None:
    """Events of 300 kB, so that the buffers of the connection are soon full."""
    monkeypatch.setattr(prefix_events, "_event", lambda data: b": " + b"x" * 300_000 + b"\n\n")
    monkeypatch.setattr(prefix_events, "MAX_UNREAD", 1_000_000)
    served, _ = server
    events = served.server.service.model().prefix_events
    with connected(served.url) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.sendall(get("/v1/kv_events"))
        wait_for(lambda: events.are_wanted)
        (listener,) = events._listeners
        for seed in range(200):
            ask(served, seed)
            if listener.is_cut_off:
                break
        assert listener.is_cut_off
        assert sum(map(len, listener._unread)) == 0


def test_a_slow_listener_is_cut_off_and_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_events, "MAX_UNREAD", 100)

    async def main() -> None:
        slow, quick = Listener(), Listener()
        for _ in range(30):
            for one in (slow, quick):
                one.put(b"data: ten bytes\n\n")
            assert await quick.take()
        assert slow.is_cut_off
        assert not quick.is_cut_off
        assert await slow.take() == b""

    asyncio.run(main())
