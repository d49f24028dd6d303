"""Adapters behind a gateway: read by one server, asked there again, and found when they come later."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from fake_engine import FakeLoaded, fake_adapter
from gateways import Gated, gating
from pagoda.engine.adapter_folder import AdapterFolder
from pagoda.engine.adapters import AdapterStore
from serving import Served, serving, wait_for


def ask(gated: Gated, adapter: str) -> str:
    """→ the upstream that has answered"""
    response = gated.client.post("/v1/completions", json={"model": adapter, "prompt": "hello", "max_tokens": 2})
    assert response.status_code == 200, response.text
    return response.headers["x-pagoda-upstream"]


def in_memory(served: Served) -> set[str]:
    cards = served.client.get("/v1/models").json()["data"]
    return {card["id"] for card in cards if card.get("status") == {"value": "loaded"}}


def test_each_adapter_is_read_by_one_server_and_asked_there_again(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.gguf").write_text(name)
    with ExitStack() as stack:
        stores = [AdapterStore(fake_adapter, max_in_memory=4, folder=AdapterFolder(tmp_path)) for _ in range(2)]
        servers = [stack.enter_context(serving(FakeLoaded(adapters=store))) for store in stores]
        gated = stack.enter_context(gating(*[one.url for one in servers]))
        home = {name: ask(gated, name) for name in "abcd"}
        assert len(set(home.values())) == 2
        for _ in range(3):
            assert {name: ask(gated, name) for name in "abcd"} == home
        assert [in_memory(one) for one in servers] == [
            {name for name, url in home.items() if one.url.endswith(url)} for one in servers
        ]
        (tmp_path / "late.gguf").write_text("late")
        wait_for(lambda: "late" in {card["id"] for card in gated.client.get("/v1/models").json()["data"]})
        assert ask(gated, "late") == ask(gated, "late")
