"""`pagoda gateway` over real HTTP: its upstreams are servers with a fake engine, and servers that do as told."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeLoaded
from gateways import Gated, Scripted, begin_stream, end_stream, gating, reset, respond, said, send_event, whole
from pagoda.gateway.settings import UpstreamSettings
from pagoda.observe.cost import CostSettings
from serving import HANG_S, Served, events, serving, wait_for

CACHE = "x-pagoda-cache"
UPSTREAM = "x-pagoda-upstream"


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(FakeLoaded()) as served:
        yield served


def answering(text: str = "Yes.", **message: Any) -> Scripted:
    return Scripted(lambda sock, body: respond(sock, whole(text, **message)))


def refusing(status: int, *headers: str) -> Scripted:
    error = {"error": {"message": f"no, {status}", "type": "t", "param": None, "code": "c"}}
    return Scripted(lambda sock, body: respond(sock, error, status, *headers))


def breaking(*chunks: Any) -> Scripted:
    """Begins a stream, sends these, and is gone."""

    def behave(sock: socket.socket, body: bytes) -> None:
        begin_stream(sock)
        for chunk in chunks:
            send_event(sock, chunk)
        time.sleep(0.1)  # a reset may overtake what was sent
        reset(sock)

    return Scripted(behave)


def dead() -> str:
    """The address of a server that is not there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def first(*upstreams: Scripted) -> list[UpstreamSettings]:
    """Asked in this order: each is a fallback of those before it, by weight."""
    return [UpstreamSettings(one.url, one.name, fallback=place > 0) for place, one in enumerate(upstreams)]


# Answers


def test_an_answer_is_the_upstreams_own(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "Say it."}], "temperature": 0, "max_tokens": 8}
    direct = served.post("/v1/chat/completions", **body).json()
    with gating(served.url) as gated:
        through = gated.client.post("/v1/chat/completions", json=body)
    assert through.status_code == 200, through.text
    assert through.headers[UPSTREAM] == served.url.removeprefix("http://")
    assert {**through.json(), "id": 0, "created": 0} == {**direct, "id": 0, "created": 0}


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_has_the_upstreams_events(served: Served, options: dict[str, Any]) -> None:
    asked = {"messages": [{"role": "user", "content": "Say it."}], "temperature": 0, "max_tokens": 8, "stream": True}
    direct = events(served.post("/v1/chat/completions", **asked, **options))
    with gating(served.url) as gated:
        through = events(gated.client.post("/v1/chat/completions", json=asked | options))
    assert [one["choices"] for one in through] == [one["choices"] for one in direct]
    assert [one.get("usage") for one in through if one.get("usage")] == [
        one["usage"] for one in direct if one.get("usage")
    ]


def test_unknown_fields_and_shapes_pass_through() -> None:
    answer = whole("Hm.", reasoning_content="Let me think.") | {"provider_says": {"x": [1]}}
    upstream = Scripted(lambda sock, body: respond(sock, answer))
    with gating(upstream.url) as gated:
        assert gated.chat(thinking={"type": "enabled"}, top_k=3, deadline_ms=9000).json() == answer
    (sent,) = upstream.bodies
    assert (sent["thinking"], sent["top_k"]) == ({"type": "enabled"}, 3)
    assert "deadline_ms" not in sent


def test_events_come_as_they_are_sent() -> None:
    told = threading.Event()

    def behave(sock: socket.socket, body: bytes) -> None:
        begin_stream(sock)
        send_event(sock, said("One"))
        assert told.wait(HANG_S)
        send_event(sock, said(finish="stop"))
        end_stream(sock)

    with gating(Scripted(behave).url) as gated:
        body = {"messages": [{"role": "user", "content": "Count."}], "stream": True}
        with gated.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"] == {"content": "One"}
            told.set()
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_client_that_goes_away_ends_the_upstreams_work() -> None:
    gone = threading.Event()

    def behave(sock: socket.socket, body: bytes) -> None:
        begin_stream(sock)
        send_event(sock, said("One"))
        sock.settimeout(10)
        if sock.recv(1) == b"":
            gone.set()
        reset(sock)

    with gating(Scripted(behave).url) as gated:
        body = {"messages": [{"role": "user", "content": "Count."}], "stream": True}
        with gated.client.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
        assert gone.wait(HANG_S)


def test_other_doors_pass_through(served: Served) -> None:
    with gating(served.url) as gated:
        ask = {"max_tokens": 8, "messages": [{"role": "user", "content": "Say it."}], "model": "m"}
        names = [one["id"] for one in gated.client.get("/v1/models").json()["data"]]
        ask["model"] = names[0]
        message = gated.client.post("/v1/messages", json=ask)
        assert message.json()["type"] == "message", message.text
        stream = gated.client.post("/v1/messages", json=ask | {"stream": True})
        kinds = [line.removeprefix("event: ") for line in stream.text.split("\n") if line.startswith("event: ")]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
        assert "[DONE]" not in stream.text
        assert gated.gateway.metrics.gateway.completion_tokens.values[(served.url.removeprefix("http://"),)] == 16


# Failures


def test_a_dead_upstream_is_replaced_and_comes_back(served: Served) -> None:
    good, address = answering(), dead()
    with gating(UpstreamSettings(address, "a"), UpstreamSettings(good.url, "b", fallback=True)) as gated:
        assert gated.chat().headers[UPSTREAM] == "b"
        assert gated.client.get("/ready").status_code == 200
        (state, _) = gated.client.get("/health").json()["upstreams"]
        assert state["healthy"] is False
        assert "refused" in state["why"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 529])
def test_what_is_no_fault_of_the_request_is_asked_elsewhere(status: int) -> None:
    bad, good = refusing(status), answering("Good.")
    with gating(*first(bad, good)) as gated:
        response = gated.chat()
        assert response.json()["choices"][0]["message"]["content"] == "Good."
        assert response.headers[UPSTREAM] == good.name
        assert gated.gateway.metrics.gateway.failures.values == {(bad.name, "early"): 1}


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_that_anybody_would_give_is_passed_on(status: int) -> None:
    bad, good = refusing(status), answering()
    with gating(*first(bad, good)) as gated:
        response = gated.chat()
        assert (response.status_code, response.json()["error"]["message"]) == (status, f"no, {status}")
        assert not good.bodies


def test_before_the_first_token_another_upstream_begins_anew() -> None:
    bad, good = breaking(said(role="assistant")), Scripted(lambda sock, body: stream(sock, "Good."))
    with gating(*first(bad, good)) as gated:
        got = events(gated.chat(stream=True))
    assert [one["choices"][0]["delta"] for one in got] == [{"content": "Good."}, {}]
    assert len(bad.bodies) == len(good.bodies) == 1


def stream(sock: socket.socket, *texts: str) -> None:
    begin_stream(sock)
    for text in texts:
        send_event(sock, said(text))
    send_event(sock, said(finish="stop"))
    end_stream(sock)


def test_after_the_first_token_a_failure_is_an_error() -> None:
    bad, good = breaking(said(role="assistant"), said("One")), answering()
    with gating(*first(bad, good)) as gated:
        lines = [line for line in gated.chat(stream=True).text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert (error["code"], bad.name in error["message"]) == ("upstream_failed", True)
    assert not good.bodies


def test_an_answer_that_stops_without_an_end_is_an_error() -> None:
    def behave(sock: socket.socket, body: bytes) -> None:
        begin_stream(sock)
        send_event(sock, said("One"))
        end_stream(sock)

    with gating(Scripted(behave).url) as gated:
        text = gated.chat(stream=True).text
    assert "ended before its time" in text


def test_an_answer_ends_where_it_says_so() -> None:
    """An upstream that leaves its response open afterwards does not keep the client waiting."""
    told = threading.Event()

    def behave(sock: socket.socket, body: bytes) -> None:
        begin_stream(sock)
        send_event(sock, said("One"))
        send_event(sock, said(finish="stop"))
        send_event(sock, b"data: [DONE]\n\n")
        told.wait(HANG_S)

    with gating(Scripted(behave).url) as gated:
        assert len(events(gated.chat(stream=True))) == 2
        told.set()


def test_nobody_answers() -> None:
    a, b = dead(), dead()
    with gating(UpstreamSettings(a, "a"), UpstreamSettings(b, "b")) as gated:
        assert gated.client.get("/ready").status_code == 503
        response = gated.chat()
        assert response.status_code == 502
        error = response.json()["error"]
        assert error["code"] == "upstream_failed"
        assert f"a: no connection to {a}" in error["message"]
        assert f"b: no connection to {b}" in error["message"]


def test_nobody_is_there() -> None:
    with gating() as gated:
        response = gated.chat()
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        assert response.json()["error"]["code"] == "no_upstream"


def test_all_are_busy() -> None:
    with gating(*first(refusing(429, "Retry-After: 7"), refusing(503, "Retry-After: 3"))) as gated:
        response = gated.chat()
        assert (response.status_code, response.headers["retry-after"]) == (503, "3")


def test_a_wrong_key_is_the_gateways_fault() -> None:
    with gating(refusing(401).url) as gated:
        response = gated.chat()
        assert response.status_code == 502
        assert "key-env" in response.json()["error"]["message"]


hanging = threading.Event()  # never set: upstreams that take a request and say nothing


def test_silence_and_deadlines_end() -> None:
    hang = Scripted(lambda sock, body: hanging.wait(HANG_S))
    with gating(hang.url, told={"timeout": 0.3}) as gated:
        response = gated.chat()
        assert (response.status_code, "nothing came for 0.3 s" in response.text) == (502, True)
    with gating(hang.url) as gated:
        assert gated.chat(deadline_ms=200).status_code == 504
        assert gated.gateway.router.replicas[0].healthy


def test_an_upstream_that_hangs_is_left_while_there_is_no_token() -> None:
    hang, good = Scripted(lambda sock, body: hanging.wait(HANG_S)), answering("Good.")
    with gating(*first(hang, good)) as gated:
        upstream = gated.gateway.router.replicas[0]

        def leave() -> None:
            wait_for(lambda: hang.bodies)
            upstream.why = "no answer"
            gated.gateway.upstreams.move_from(upstream)

        loop: Any = gated.server._loop
        threading.Thread(target=lambda: (wait_for(lambda: hang.bodies), loop.call_soon_threadsafe(leave))).start()
        assert gated.chat().json()["choices"][0]["message"]["content"] == "Good."


# Names, keys, money


def test_models_are_mapped_by_name() -> None:
    upstream = answering()
    row = UpstreamSettings(upstream.url, "a", key="sk-secret", models={"small": "gpt-4o-mini"})
    with gating(row) as gated:
        assert gated.chat(model="small").status_code == 200
        assert upstream.bodies[0]["model"] == "gpt-4o-mini"
        assert "Authorization: Bearer sk-secret" in upstream.heads[0]
        assert [one["id"] for one in gated.client.get("/v1/models").json()["data"]] == ["small"]
        unknown = gated.chat(model="gpt-4o-mini")
        assert unknown.status_code == 404
        assert "The upstreams have small" in unknown.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/docs", "/live"])
def test_pages_have_all_that_they_load(path: str) -> None:
    with gating(UpstreamSettings(answering().url, "a")) as gated:
        loaded = re.findall(r'(?:href|src)="([^"#]+)"', gated.client.get(path).text)
        assert "page/icon.svg" in loaded
        assert {name: gated.client.get(f"/{name}").status_code for name in loaded} == dict.fromkeys(loaded, 200)


def test_the_document_lists_what_is_passed_on_and_its_shapes() -> None:
    with gating(UpstreamSettings(answering().url, "a")) as gated:
        document = gated.client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/messages", "/v1/models"} < set(document["paths"])
    assert not {"/api/chat", "/tokenize", "/v1/load_lora_adapter"} & set(document["paths"])
    named = set(re.findall(r'#/components/schemas/([^"]+)"', json.dumps(document)))
    assert named == set(document["components"]["schemas"])


def test_models_are_listed_in_the_order_of_the_upstreams() -> None:
    rows = [UpstreamSettings(answering().url, name, models={name: name}) for name in ("small", "big")]
    with gating(*rows) as gated:
        assert [one["id"] for one in gated.client.get("/v1/models").json()["data"]] == ["small", "big"]


@pytest.mark.parametrize(
    ("base", "there"),
    [
        ("", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/openai/v1", "/openai/v1/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
    ],
)
def test_a_url_with_a_path_is_the_base(base: str, there: str) -> None:
    upstream = answering()
    with gating(UpstreamSettings(upstream.url + base, "a")) as gated:
        assert gated.chat().status_code == 200
    assert upstream.heads[0].startswith(f"POST {there} HTTP/1.1")
    assert "User-Agent: pagoda/" in upstream.heads[0]


def test_a_model_goes_to_who_lists_it() -> None:
    a, b = (
        Scripted(lambda sock, body: respond(sock, whole("a")), ("one",)),
        Scripted(lambda sock, body: respond(sock, whole("b")), ("two",)),
    )
    with gating(a.url, b.url) as gated:
        assert [gated.chat(model=name).headers[UPSTREAM] for name in ("two", "one", "two")] == [b.name, a.name, b.name]


def test_tokens_cost_and_are_logged(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    prices = CostSettings(token_prices=("m=2/10/1",))
    usd = (6 * 2 + 4 * 1 + 2 * 10) / 1e6
    with gating(answering().url, cost=prices, request_log=log) as gated:
        response = gated.chat(model="m", include_cost=True)
        assert response.json()["usage"]["cost_usd"] == pytest.approx(usd)
        assert float(response.headers["x-cost-usd"]) == pytest.approx(usd)
        gated.gateway.metrics.update_costs()
        assert gated.gateway.ledger.series.saved.values == {"prefix_cache": pytest.approx(4 * 1 / 1e6)}
    line = json.loads(log.read_text())
    assert (line["model"], line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == ("m", 10, 4, 2)
    assert line["cost_usd"] == pytest.approx(usd)
    assert line["upstream"].startswith("127.0.0.1:")


# The cache


@pytest.fixture
def cached() -> Iterator[tuple[Gated, Scripted]]:
    def behave(sock: socket.socket, body: bytes) -> None:
        if json.loads(body).get("stream"):
            stream(sock, "Ye", "s.")
        else:
            respond(sock, whole())

    upstream = Scripted(behave)
    prices = CostSettings(token_prices=("*=2/10",))
    with gating(upstream.url, cost=prices, cache_store="memory", cache_embedder="none", cache_budget=5) as gated:
        yield gated, upstream


def test_a_repeat_is_answered_by_the_cache(cached: tuple[Gated, Scripted]) -> None:
    gated, upstream = cached
    question = "What is rust?"
    fresh = gated.chat(question)
    gated.kept()
    again = gated.chat("what is RUST")
    assert (fresh.headers[CACHE][:4], again.headers[CACHE][:15]) == ("miss", "hit; normalized")
    assert UPSTREAM not in again.headers
    assert again.json()["choices"][0]["message"]["content"] == "Yes."
    assert (again.json()["usage"]["total_tokens"], again.json()["usage"]["cached"]) == (0, True)
    got = events(gated.chat(question, stream=True, stream_options={"include_usage": True}))
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in got[:-1]) == "Yes."
    assert got[-1]["usage"]["cached"] is True
    assert len(upstream.bodies) == 1
    gated.gateway.metrics.update_costs()
    assert gated.gateway.ledger.series.saved.values["semantic_cache"] == pytest.approx(2 * (10 * 2 + 2 * 10) / 1e6)


def test_a_stream_is_kept_too(cached: tuple[Gated, Scripted]) -> None:
    gated, upstream = cached
    gated.chat("What is rust?", stream=True)
    gated.kept()
    assert gated.chat("What is rust?").json()["choices"][0]["message"]["content"] == "Yes."
    assert len(upstream.bodies) == 1


@pytest.mark.parametrize("streams", [False, True])
def test_completions_are_kept_too(streams: bool) -> None:
    said_there = {"index": 0, "text": "Yes.", "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 4, "completion_tokens": 2}

    def behave(sock: socket.socket, body: bytes) -> None:
        if not streams:
            return respond(sock, {"object": "text_completion", "choices": [said_there], "usage": usage})
        begin_stream(sock)
        send_event(sock, {"choices": [said_there]})
        end_stream(sock)

    upstream = Scripted(behave)
    asked = {"prompt": "What is rust?", "temperature": 0, "max_tokens": 8, "stream": streams}
    with gating(upstream.url, cache_store="memory", cache_embedder="none", cache_budget=5) as gated:
        for outcome in ("miss", "hit"):
            response = gated.client.post("/v1/completions", json=asked)
            assert response.headers[CACHE].startswith(outcome)
            gated.kept()
            bodies = events(response) if streams else [response.json()]
            assert "".join(body["choices"][0]["text"] for body in bodies) == "Yes."
    assert len(upstream.bodies) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "What is rust?"}]},
        {"model": "m"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"temperature": 0.9},
        {"some_provider_field": 1},
    ],
)
def test_what_differs_is_not_shared(cached: tuple[Gated, Scripted], other: dict[str, Any]) -> None:
    gated, _ = cached
    gated.chat("What is rust?")
    gated.kept()
    assert gated.chat("What is rust?").headers[CACHE].startswith("hit")
    assert gated.chat("What is rust?", **other).headers[CACHE].startswith("miss")


@pytest.mark.parametrize(
    "message",
    [{"tool_calls": [{"id": "x"}]}, {"reasoning_content": "Hm."}, {"refusal": "No."}, {"audio": {"id": "x"}}],
)
def test_only_plain_text_is_kept(message: dict[str, Any]) -> None:
    with gating(answering(**message).url, cache_store="memory", cache_embedder="none", cache_budget=5) as gated:
        for _ in range(2):
            assert gated.chat("What is rust?").headers[CACHE].startswith("miss")
            gated.kept()


def test_equal_questions_at_once_are_asked_once() -> None:
    told = threading.Event()

    def behave(sock: socket.socket, body: bytes) -> None:
        assert told.wait(HANG_S)
        respond(sock, whole())

    upstream = Scripted(behave)
    with gating(upstream.url, cache_store="memory", cache_embedder="none", cache_budget=5) as gated:
        responses: list[Any] = []
        threads = [threading.Thread(target=lambda: responses.append(gated.chat("What is rust?"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: gated.gateway.metrics.cache.hits.values)
        told.set()
        for thread in threads:
            thread.join(HANG_S)
    assert len(upstream.bodies) == 1
    assert sorted(response.json()["usage"].get("cached", False) for response in responses) == [False, True, True]


def test_tenants_have_answers_and_budgets_of_their_own(tmp_path: Path) -> None:
    from pagoda.server.key_store import KeyStore, Limits

    store = KeyStore(tmp_path / "keys")
    keys = {name: store.create(name, Limits(tokens_per_day=1000)) for name in ("a", "b")}
    store.close()
    settings: dict[str, Any] = {"keys_file": tmp_path / "keys", "cache_store": "memory", "cache_embedder": "none"}
    with gating(answering().url, cache_budget=5, **settings) as gated:
        assert gated.chat("What is rust?").status_code == 401
        seen = []
        for name in ("a", "a", "b"):
            response = gated.chat("What is rust?", {"Authorization": f"Bearer {keys[name]}"})
            seen.append(response.headers[CACHE].split(";")[0])
            gated.kept()
        assert seen == ["miss", "hit", "miss"]
        budgets = gated.gateway.budgets
        assert budgets is not None
        assert budgets.store.used("a", "day", time.time()).tokens == 12


def test_upstreams_come_and_go() -> None:
    """As a cluster's replicas do; a request under way at one that goes is finished."""
    told = threading.Event()

    def behave(sock: socket.socket, body: bytes) -> None:
        assert told.wait(HANG_S)
        respond(sock, whole())

    old, new = Scripted(behave), answering("New.")
    with gating(UpstreamSettings(old.url, "old")) as gated:
        gateway, loop = gated.gateway, gated.server._loop
        assert loop is not None
        responses: list[Any] = []
        thread = threading.Thread(target=lambda: responses.append(gated.chat()))
        thread.start()
        wait_for(lambda: old.bodies)
        rows = [UpstreamSettings(new.url, "new")]
        asyncio.run_coroutine_threadsafe(gateway.set_upstreams(rows), loop).result(HANG_S)
        assert [one.name for one in gateway.router.replicas] == ["new"]
        assert gated.chat().headers[UPSTREAM] == "new"
        told.set()
        thread.join(HANG_S)
        assert responses[0].headers[UPSTREAM] == "old"
