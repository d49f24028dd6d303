"""One upstream's connections: none is left open, whoever is cancelled and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateways import Scripted, respond, whole
from pagoda.client import Head, HttpClient
from pagoda.gateway.settings import UpstreamSettings
from pagoda.gateway.upstream import Upstream


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "once the answer is there"])
def test_a_look_that_is_cancelled_leaves_no_connection(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that ends cancels its looks. Python 3.11's wait_for hands over an answer that came in the same turn of
    the loop, and the cancellation is forgotten."""
    scripted = Scripted(lambda sock, body: respond(sock, whole()))
    clients: list[HttpClient] = []

    async def run() -> None:
        upstream = Upstream(UpstreamSettings(scripted.url, "there"))
        ask = upstream._models

        async def cancelled(client: HttpClient) -> tuple[Head, bytes]:
            clients.append(client)
            answer = await ask(client)
            upstream.retire()
            look.cancel()
            if not late:
                await asyncio.sleep(0)
            return answer

        monkeypatch.setattr(upstream, "_models", cancelled)
        look: asyncio.Task[Any] = asyncio.create_task(upstream.look(5.0))
        await asyncio.wait([look])
        assert not clients[0].is_open

    asyncio.run(run())
    scripted.close()
