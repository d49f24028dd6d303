"""The load generator against a small server of our own, that counts and misbehaves on purpose."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from pagoda.benchmark.load import Exchange, Load, compare, parse, run_load, summarize, takes_ids
from pagoda.benchmark.stats import percentile, spread
from pagoda.cli.bench_serve import LoadSettings, _measure
from pagoda.client import HttpClient, HttpError, list_models
from pagoda.errors import PagodaError

Handler = Callable[[str, dict, asyncio.StreamWriter], Awaitable[None]]


def event(payload: object) -> bytes:
    data = payload if isinstance(payload, bytes) else b"data: " + json.dumps(payload).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
END = event(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def plain(status: str, payload: object) -> bytes:
    body = json.dumps(payload).encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


async def answer(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
    """A completion whose words depend on the prompt alone; the event boundaries do not fall on chunk boundaries."""
    if path == "/v1/models":
        writer.write(plain("200 OK", {"data": [{"id": "m", "meta": {"n_vocab": 5000}}]}))
        return
    words = [f" {sum(body['prompt']) % 97 + i}" for i in range(body["max_tokens"])]
    writer.write(HEAD)
    for i, word in enumerate(words):
        last = i == len(words) - 1
        writer.write(event({"choices": [{"text": word, "finish_reason": "length" if last else None}]}))
        await writer.drain()
        await asyncio.sleep(0.002)
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(words)}
    data = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    for cut in (data[:9], data[9:]):
        writer.write(b"%x\r\n%s\r\n" % (len(cut), cut))
    writer.write(END)


@asynccontextmanager
async def serving(handler: Handler, *, per_connection: int = 1_000_000) -> AsyncIterator[str]:
    """A server that closes each connection after `per_connection` requests without saying so."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(per_connection):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(x[16:]) for x in head.split("\r\n") if x.startswith("Content-Length: ")), 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                await handler(head.split(" ")[1], body, writer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def load(url: str, **changes: object) -> Load:
    fields = {"concurrency": 4, "prompt": 8, "output": 5, "requests": 10, "model": "m", "vocab_size": 5000}
    return Load(url=url, **(fields | changes))  # type: ignore[arg-type]


def test_counts_and_times_of_a_load() -> None:
    async def run() -> None:
        async with serving(answer) as url:
            assert (await list_models(url + "/v1"))[0]["id"] == "m"
            plan = load(url)
            assert await takes_ids(plan)
            exchanges, seconds = await run_load(plan)
        report = summarize(plan, exchanges, seconds, slo_ttft=10_000, slo_tpot=0.001)
        assert (report["completed"], report["errors"]) == (10, {})
        assert (report["prompt_tokens"], report["output_tokens"]) == (80, 50)
        assert report["output_tok_s"] == pytest.approx(50 / seconds, rel=0.01)
        assert report["tpot_ms"]["p50"] >= 2  # the server sleeps that long between tokens
        assert report["ttft_ms"]["p50"] < report["e2e_ms"]["p50"]
        assert report["goodput_request_s"] == 0  # no answer meets a TPOT of a microsecond

    asyncio.run(run())


def test_reuses_connections_and_survives_their_silent_end() -> None:
    async def run() -> None:
        async with serving(answer, per_connection=3) as url:
            exchanges, _ = await run_load(load(url, concurrency=1))
        assert [exchange.error for exchange in exchanges] == [None] * 10

    asyncio.run(run())


def test_two_servers_are_compared_prompt_by_prompt() -> None:
    async def other(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
        await answer(path, body | ({"prompt": [1]} if body["prompt"] == odd else {}), writer)

    async def run() -> None:
        async with serving(answer) as left, serving(other) as right:
            ours, _ = await run_load(load(left))
            theirs, _ = await run_load(load(right))
        assert compare(ours, theirs) == {"compared": 10, "equal": 9, "different": [3]}

    odd = json.loads(load("http://x").body(3))["prompt"]
    asyncio.run(run())


async def refuse_ids(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
    if isinstance(body["prompt"], list):
        writer.write(plain("400 Bad Request", {"error": "no ids"}))
    else:
        await answer(path, body | {"prompt": [7]}, writer)


def test_finds_out_that_a_server_takes_no_ids() -> None:
    async def run() -> tuple[bool, bool]:
        async with serving(refuse_ids) as url:
            return await takes_ids(load(url)), await takes_ids(load(url, as_text=True))

    assert asyncio.run(run()) == (False, True)


async def half_an_answer(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + event({"choices": [{"text": "a", "finish_reason": None}]}))
    await writer.drain()
    writer.close()


async def error_in_stream(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + event({"error": {"message": "engine died"}}) + END)


async def not_http(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def overloaded(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
    writer.write(plain("429 Too Many Requests", {"error": "full"}))


async def silent(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (half_an_answer, "closed the connection in the middle"),
        (error_in_stream, "engine died"),
        (not_http, "not an HTTP answer"),
        (overloaded, "429"),
        (silent, "no whole answer within 0.2 s"),
    ],
)
def test_failures_are_counted_by_message(handler: Handler, says: str) -> None:
    async def run() -> dict[str, int]:
        async with serving(handler) as url:
            plan = load(url, requests=2, concurrency=2, timeout=0.2)
            report = summarize(plan, *await run_load(plan), None, None)
        assert report["completed"] == 0
        return report["errors"]

    errors = asyncio.run(run())
    assert list(errors.values()) == [2]
    assert says in next(iter(errors))


def test_nobody_there() -> None:
    with pytest.raises(PagodaError, match="nobody answers"):
        asyncio.run(list_models("http://127.0.0.1:9"))


@pytest.mark.parametrize("url", ["", "ftp://x", "http://"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(PagodaError, match="not the address of a server"):
        HttpClient(url)


def test_chunks_count_where_there_is_no_usage() -> None:
    events = [(1.5, b'{"choices":[{"text":"a"}]}'), (2.0, b'{"choices":[{"text":"b"}]}')]
    parsed = parse(Exchange(0, 1.0, [*events, (2.5, b'{"choices":[{"text":"","finish_reason":"length"}]}')]))
    assert (parsed.text, parsed.output_tokens, parsed.ttft, parsed.e2e, parsed.tpot) == ("ab", 2, 0.5, 1.0, 0.5)
    with pytest.raises(HttpError, match="without any token"):
        parse(Exchange(0, 1.0, []))


def test_prompts_are_those_of_the_seed() -> None:
    body = load("http://x").body(1)
    assert body == load("http://y").body(1)
    assert body != load("http://x", seed=1).body(1)
    assert body != load("http://x").body(2)
    ids = json.loads(body)["prompt"]
    assert len(ids) == 8
    assert all(1000 <= i < 5000 for i in ids)


def test_percentiles_are_numpys() -> None:
    import numpy as np

    values = sorted([3.0, 1.0, 4.0, 1.5, 9.0, 2.6])
    for share in (0, 0.1, 0.5, 0.9, 0.99, 1):
        assert percentile(values, share) == pytest.approx(np.quantile(values, share))
    assert spread([]) is None
    assert spread([0.25]) == {"mean": 250, "p50": 250, "p90": 250, "p99": 250}


def test_the_gain_of_speculation_is_over_the_same_prompts() -> None:
    bodies: list[dict] = []

    async def noting(path: str, body: dict, writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        await answer(path, body, writer)

    async def run() -> dict:
        async with serving(noting) as url:
            settings = LoadSettings(url=url, requests=3, prompt=8, output=5, speculation_gain=True, json=True)
            return await _measure(settings)

    found = asyncio.run(run())["speculation"]
    assert (found["compared"], found["equal"]) == (3, 3)
    assert found["gain"] > 0
    off = [body for body in bodies if body.get("speculation") == {"enabled": False}]
    on = [body["prompt"] for body in bodies if body.get("prompt") and body not in off]
    assert all(body["prompt"] in on for body in off)
    assert len(off) == 3
    assert {body["cache_salt"] for body in off} == {"without speculation"}
