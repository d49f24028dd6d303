"""What the gateway adds to a request, and what routing by prefix saves over two replicas.

    python bench/gateway.py overhead           # a request direct and through the gateway, in turn; 200 idle streams
    python bench/gateway.py affinity [MODEL]   # eight conversations of some 1,500 shared tokens over two replicas

Exits with 1 when a bar is broken: 1.5 ms at the median for the gateway's own time; with affinity at least 1.8 times
the prefix hits of random routing, at most 0.6 of its median TTFT, and no replica with more than 1.5 times the other's
requests. The replicas of `affinity` have KV memory for a little more than half of the conversations each: together they
hold all of them once. With room for all of them on each, random routing finds prefixes, too, after a few turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pagoda.client import HttpClient
from servers import Server, pagoda_command, serving

ROUNDS = 400
IDLE, IDLE_S = 200, 5.0
CONVERSATIONS, TURNS, CLIENTS, ANSWER = 8, 5, 2, 16
WORDS = ["river", "stone", "lantern", "winter", "copper", "garden", "signal", "harbour", "pencil", "mirror", "velvet"]
KV = "165MiB"  # of a replica: 23 KB a token of the default model, so 7,500 tokens
ANSWERED = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
).encode()
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'


def gateway_command(port: int, upstreams: Sequence[str], *flags: str) -> list[str]:
    named = [part for one in upstreams for part in ("--upstream", one)]
    quiet = ("--log-level", "warning", "--max-connections", "1000")
    return [sys.executable, "-m", "pagoda", "gateway", "--port", str(port), *named, *quiet, *flags]


def gateway_on(upstreams: Sequence[str], *flags: str) -> Callable[[int], list[str]]:
    """Its command on a port that is yet to be known."""
    return lambda port: gateway_command(port, upstreams, *flags)


# Overhead


async def instant(port: int) -> None:
    """An upstream that answers at once; to a request for a stream with one event, and then nothing more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                lengths = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
                body = await reader.readexactly(int(lengths[0]) if lengths else 0)
                if b'"stream":true' in body.replace(b" ", b""):
                    writer.write(stream_head() + f"{len(EVENT):x}\r\n".encode() + EVENT + b"\r\n")
                else:
                    answer = b'{"data": [{"id": "m"}]}' if head.startswith(b"GET") else ANSWERED
                    about = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
                    writer.write(f"{about}{len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def stream_head() -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def conversation(seed: str, num_words: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    text = " ".join(draw.choice(WORDS) for _ in range(num_words))
    return [{"role": "system", "content": f"{seed} {text}."}, {"role": "user", "content": "Which word comes first?"}]


def overhead() -> bool:
    """Milliseconds at the median, of requests of some 1,500 tokens, and seconds of CPU for streams that say nothing."""
    with serving(lambda port: [sys.executable, __file__, "instant", str(port)], "/ready") as upstream:
        urls = [upstream.url, upstream.url.replace("127.0.0.1", "localhost")]
        with serving(lambda port: gateway_command(port, urls), "/ready") as gate:
            medians = asyncio.run(pairs({"direct": upstream.url, "through": gate.url}))
            idle = asyncio.run(idle_streams(gate))
    added = medians["through"] - medians["direct"]
    print(f"direct {medians['direct']:.2f} ms, through the gateway {medians['through']:.2f}: {added:.2f} ms more")
    print(f"{IDLE} streams without events for {IDLE_S:g} s: {idle * 1000:.0f} ms of the gateway's CPU time")
    return added < 1.5


async def pairs(urls: dict[str, str]) -> dict[str, float]:
    """Median milliseconds of a request to each, in turn."""
    body = json.dumps({"messages": conversation("a", 1100), "max_tokens": 1}).encode()
    clients = {name: HttpClient(url) for name, url in urls.items()}
    times: dict[str, list[float]] = {name: [] for name in urls}
    for _ in range(ROUNDS):
        for name, client in clients.items():
            start = time.perf_counter()
            await client.post("/v1/chat/completions", body)
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values[ROUNDS // 8 :]) for name, values in times.items()}


async def idle_streams(gate: Server) -> float:
    """CPU seconds of the gateway while many streams are open."""
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    streams = [HttpClient(gate.url).events("/v1/chat/completions", body) for _ in range(IDLE)]
    for one in streams:
        await anext(one)
    before = cpu_of(gate.process.pid)
    await asyncio.sleep(IDLE_S)
    return cpu_of(gate.process.pid) - before


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


# Affinity


async def ask(url: str, body: dict[str, Any]) -> tuple[float, dict[str, Any], str]:
    """TTFT in seconds, usage, and the answer."""
    client = HttpClient(url)
    usage: dict[str, Any] = {}
    start, first, text = time.perf_counter(), 0.0, ""
    async for data in client.events("/v1/chat/completions", json.dumps(body).encode()):
        event = json.loads(data)
        assert "error" not in event, event
        for choice in event["choices"]:
            if piece := choice["delta"].get("content", ""):
                first = first or time.perf_counter() - start
                text += piece
        usage = event.get("usage") or usage
    client.close()
    return first, usage, text


async def talk(url: str, run: str) -> tuple[list[float], int, int]:
    """All turns of all conversations. → TTFT of each request, prompt tokens, and those of them that were cached"""
    chats = [conversation(f"{run}-{number}", 1400) for number in range(CONVERSATIONS)]
    ttfts, tokens, cached = [], 0, 0
    waiting = [(turn, number) for turn in range(TURNS) for number in range(CONVERSATIONS)][::-1]

    async def client() -> None:
        nonlocal tokens, cached
        while waiting:
            turn, number = waiting.pop()
            body = {
                "messages": chats[number],
                "max_tokens": ANSWER,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            ttft, usage, text = await ask(url, body | {"stream_options": {"include_usage": True}})
            ttfts.append(ttft)
            tokens += usage["prompt_tokens"]
            cached += usage["prompt_tokens_details"]["cached_tokens"]
            chats[number] += [{"role": "assistant", "content": text}, {"role": "user", "content": f"And {turn}?"}]

    await asyncio.gather(*[client() for _ in range(CLIENTS)])
    return ttfts, tokens, cached


def affinity(model: str) -> bool:
    flags = ("--threads", "1", "--kv-memory", KV, "--max-context", "4096", "--log-level", "warning")
    found: dict[str, tuple[float, float]] = {}
    balance = 1.0
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(serving(lambda port: pagoda_command(model, port, *flags), "/ready")) for _ in range(2)
        ]
        urls = [one.url for one in replicas]
        for routing in ("random", "affinity", "load"):
            with serving(gateway_on(urls, "--routing", routing), "/ready") as gate:
                before = [one.metrics()["pagoda_request_success_total"] for one in replicas]
                ttfts, tokens, cached = asyncio.run(talk(gate.url, routing))
                after = [one.metrics()["pagoda_request_success_total"] for one in replicas]
            shares = [b - a for a, b in zip(before, after, strict=True)]
            median = statistics.median(ttfts)
            found[routing] = (cached / tokens, median)
            ratio = max(shares) / max(min(shares), 1)
            balance = ratio if routing == "affinity" else balance
            print(
                f"{routing}: {cached / tokens:.1%} of {tokens} prompt tokens cached, TTFT {1000 * median:.0f} ms, "
                f"requests {shares[0]:.0f} and {shares[1]:.0f}"
            )
    hits = found["affinity"][0] / found["random"][0]
    ttft = found["affinity"][1] / found["random"][1]
    print(
        f"affinity: {hits:.2f} times the hits of random routing, {ttft:.2f} of its median TTFT, balance {balance:.2f}"
    )
    return hits >= 1.8 and ttft <= 0.6 and balance <= 1.5


def main(part: str = "overhead", argument: str = "") -> int:
    if part == "instant":
        asyncio.run(instant(int(argument)))
    return 0 if (overhead() if part == "overhead" else affinity(argument or "smollm2-135m")) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
