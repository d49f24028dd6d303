"""What one client can do to the others: streams run, /health is asked, and another sends bodies as long as may be.

    python bench/hostile.py [--model NAME] [--copies 50]

For each kind of body: the longest pause of a stream, and the slowest /health, without the body, with one and with many.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

MB = 2**20
SIZE = 7 * MB  # just below --max-body
HEALTH_EVERY_S = 0.02


def words(num_bytes: int) -> str:
    """Text of made-up words, about `num_bytes` long."""
    rng = random.Random(0)
    some = ["".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randint(2, 9))) for _ in range(2000)]
    return " ".join(rng.choice(some) for _ in range(num_bytes // 6))[:num_bytes]


TEXT = words(SIZE)
AMBIGUOUS = 'start: e\ne: e e | /[a-z ]+/ | "(" e ")" | \n'
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def schema(num_properties: int) -> dict[str, Any]:
    properties = {f"p{i:06d}": {"type": "string"} for i in range(num_properties)}
    return under({"type": "object", "properties": properties})


def under(form: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": form}}


def constrained(**fields: Any) -> dict[str, Any]:
    """A new one each time where `fields` differ: what is compiled already costs nothing."""
    return {"messages": [user("a")], "max_tokens": 8, **fields}


def tools(number: int) -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {}}
    return [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}} for i in range(number)]


KINDS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "a prompt": (COMPLETION, lambda: {"prompt": TEXT}),
    "a prompt, truncated": (COMPLETION, lambda: {"prompt": TEXT, "truncate_prompt_tokens": 16, "max_tokens": 1}),
    "a message": (CHAT, lambda: {"messages": [user(TEXT)]}),
    "a message of 30 kB": (CHAT, lambda: {"messages": [user(TEXT[:30_000])]}),
    "a message of 2 kB": (CHAT, lambda: {"messages": [user(TEXT[:1_900])], "max_tokens": 1}),
    "one word": (COMPLETION, lambda: {"prompt": "a" * SIZE}),
    "one word of 500 kB": (COMPLETION, lambda: {"prompt": "a" * 500_000}),
    "control tokens": (COMPLETION, lambda: {"prompt": "<|im_start|>" * (SIZE // 12)}),
    "many messages": (CHAT, lambda: {"messages": [user("a")] * (SIZE // 31)}),
    "many parts": (CHAT, lambda: {"messages": [user([{"type": "text", "text": "a"}] * (SIZE // 27))]}),
    "many ids": (COMPLETION, lambda: {"prompt": [1] * (SIZE // 2)}),
    "many prompts": (COMPLETION, lambda: {"prompt": ["a"] * (SIZE // 4)}),
    "many lists": (COMPLETION, lambda: {"prompt": [[1]] * (SIZE // 4)}),
    "128 prompts": (
        COMPLETION,
        lambda: {"prompt": [TEXT[i * 1000 : i * 1000 + 500] for i in range(128)], "max_tokens": 1},
    ),
    "many fields": (CHAT, lambda: {f"f{i}": 1 for i in range(SIZE // 12)}),
    "metadata": (
        COMPLETION,
        lambda: {"prompt": "a", "max_tokens": 1, "metadata": {f"f{i}": "x" for i in range(SIZE // 14)}},
    ),
    "stop strings": (COMPLETION, lambda: {"prompt": "a", "stop": [f"s{i}" for i in range(SIZE // 12)]}),
    "bad words": (
        COMPLETION,
        lambda: {"prompt": "a", "max_tokens": 1, "n": 64, "bad_words": [f"s{i}" for i in range(256)]},
    ),
    "biases": (COMPLETION, lambda: {"prompt": "a", "logit_bias": {str(i): 1 for i in range(SIZE // 10)}}),
    "allowed ids": (
        COMPLETION,
        lambda: {"prompt": "a", "max_tokens": 1, "n": 64, "allowed_token_ids": list(range(49_000))},
    ),
    "prompt logprobs": (COMPLETION, lambda: {"prompt": TEXT[:12_000], "max_tokens": 1, "prompt_logprobs": 20}),
    "echo": (COMPLETION, lambda: {"prompt": TEXT[:12_000], "max_tokens": 1, "logprobs": 20, "echo": True}),
    "n logprobs": (COMPLETION, lambda: {"prompt": "a", "max_tokens": 30, "n": 64, "logprobs": 20}),
    "a schema": (CHAT, lambda: {"messages": [user("a")], "max_tokens": 1, "response_format": schema(SIZE // 30)}),
    "a schema of 30 kB": (CHAT, lambda: {"messages": [user("a")], "max_tokens": 1, "response_format": schema(1000)}),
    "an enum of 200 kB": (
        CHAT,
        lambda: constrained(response_format=under({"enum": [f"value {i:06d}" for i in range(12_000)]})),
    ),
    "a text of 200 kB": (CHAT, lambda: constrained(response_format=under({"const": TEXT[:200_000]}))),
    "40 patterns at once": (
        CHAT,
        lambda: constrained(response_format=under({"allOf": [{"pattern": f"a{i}"} for i in range(40)]})),
    ),
    "an ambiguous grammar": (CHAT, lambda: constrained(structured_outputs={"grammar": AMBIGUOUS}, max_tokens=200)),
    "many tools": (CHAT, lambda: {"messages": [user("a")], "max_tokens": 1, "tools": tools(SIZE // 100)}),
    "tokenize": ("/tokenize", lambda: {"prompt": TEXT[:MB], "return_token_strs": True}),
    "detokenize": ("/detokenize", lambda: {"tokens": [1000] * (SIZE // 5)}),
}


@dataclass
class Watch:
    """Pauses of streams and times of /health, in seconds."""

    pauses: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)

    def worst(self) -> str:
        pause, health = max(self.pauses, default=0.0), max(self.health, default=0.0)
        return f"pause {pause * 1000:5.0f} ms, /health {health * 1000:5.0f} ms"


async def request(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        answer = await reader.read()
        return int(answer.split(b" ", 2)[1]), answer
    finally:
        writer.close()


async def stream(port: int, watch: Watch, stop: asyncio.Event) -> None:
    """One stream after the other; the time between pieces of one."""
    body = orjson.dumps({"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True})
    while not stop.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {COMPLETION} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"\n\n")
        last = time.perf_counter()
        while not stop.is_set():
            piece = await reader.read(65536)
            now = time.perf_counter()
            watch.pauses.append(now - last)
            last = now
            if b"[DONE]" in piece or not piece:
                break
        writer.close()


async def ask_health(port: int, watch: Watch, stop: asyncio.Event) -> None:
    while not stop.is_set():
        start = time.perf_counter()
        await request(port, "GET", "/health")
        watch.health.append(time.perf_counter() - start)
        await asyncio.sleep(HEALTH_EVERY_S)


async def watched(port: int, path: str, body: bytes, copies: int, seconds: float) -> tuple[Watch, list[int], float]:
    """Streams and /health while `copies` of a body are sent at once; for `seconds` at least."""
    watch, stop = Watch(), asyncio.Event()
    watching = [asyncio.create_task(stream(port, watch, stop)) for _ in range(2)]
    watching.append(asyncio.create_task(ask_health(port, watch, stop)))
    await asyncio.sleep(0.5)
    watch.pauses.clear()
    watch.health.clear()
    start = time.perf_counter()
    statuses, _ = await asyncio.gather(send(port, path, body, copies), asyncio.sleep(seconds))
    took = time.perf_counter() - start
    stop.set()
    await asyncio.gather(*watching)
    return watch, statuses, took


async def send(port: int, path: str, body: bytes, copies: int) -> list[int]:
    """Send copies from a process of their own, so that this one sees what the server does, not what sending costs."""
    if not copies:
        return []
    command = [sys.executable, __file__, "--send", f"{port}", path, f"{copies}"]
    sender = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    output, _ = await sender.communicate(body)
    return sorted({int(status) for status in output.split()})


async def send_all(port: int, path: str, copies: int) -> None:
    """The other process: the body comes on standard input."""
    body = sys.stdin.buffer.read()
    answers = await asyncio.gather(*(request(port, "POST", path, body) for _ in range(copies)))
    print(*(status for status, _ in answers))


async def measure(port: int, only: str | None, copies: int) -> None:
    for name, (path, make) in KINDS.items():
        if only and only not in name:
            continue
        body = orjson.dumps(make())
        none, _, _ = await watched(port, path, body, 0, 2.0)
        one, statuses, took = await watched(port, path, body, 1, 1.0)
        many, more, total = await watched(port, path, body, copies, 1.0)
        print(f"{name} ({len(body):,} bytes, {statuses} in {took:.2f} s; {copies}: {more} in {total:.1f} s)")
        print(f"    without {none.worst()}; one: {one.worst()}; {copies}: {many.worst()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--only")
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        port, path, copies = arguments.send
        asyncio.run(send_all(int(port), path, int(copies)))
        return
    command = [sys.executable, "-m", "pagoda", "serve", arguments.model, "--port", "0", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        for line in server.stderr:
            found = re.search(rb'"url":\s*"http://127.0.0.1:(\d+)', line)
            if found:
                break
        else:
            raise SystemExit("the server has not started")
        drained = asyncio.new_event_loop()
        try:
            drained.run_until_complete(
                _measure_and_drain(server.stderr, int(found[1]), arguments.only, arguments.copies)
            )
        finally:
            server.terminate()


async def _measure_and_drain(log: Any, port: int, only: str | None, copies: int) -> None:
    """Measure, and take in what the server logs meanwhile, so that it never waits for us."""
    draining = asyncio.create_task(asyncio.to_thread(_say_all, log))
    await measure(port, only, copies)
    draining.cancel()


def _say_all(log: Iterable[bytes]) -> None:
    for line in log:
        _say(line)


def _say(line: bytes) -> None:
    if b'"error"' in line or b'"warning"' in line:
        print("    log:", json.loads(line).get("message") if line.startswith(b"{") else line, flush=True)


if __name__ == "__main__":
    main()
