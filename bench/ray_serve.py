"""Pagoda on Ray Serve: two engines and a gateway on this machine, 16 clients, one engine killed, then all replaced.

    python -m venv ray && ray/bin/pip install '.[ray]' && ray/bin/python bench/ray_serve.py [MODEL]

Exits with 1 when a bar is broken: a client that goes away frees the engine; of the clients of a killed engine those
without a token are answered and the others get an error within 2 s; both engines are back within 20 s of that and the
time that a model loads; while a changed configuration is rolled out no request fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve

from pagoda.client import HttpClient, HttpError
from pagoda.deploy.ray import app, stop

PORT, CLIENTS, TOKENS, ENGINES = 18766, 16, 64, 2
URL = f"http://127.0.0.1:{PORT}"
LATE_S, BACK_S, PATIENCE_S = 2.0, 20.0, 180.0


@dataclass
class Outcome:
    """How a stream went: when its first token came, how and when it ended."""

    first: float | None = None
    finish: str | None = None
    error: str | None = None
    ended: float = 0.0


def deploy(model: str, kv: str) -> float:
    """Deploy, or replace what runs. → seconds"""
    start = time.monotonic()
    settings = {"model": model, "replicas": ENGINES, "threads": 1, "kv_memory_bytes": kv, "max_context": 1024}
    serve.run(app({**settings, "max_num_seqs": 4, "port": PORT}), name="pagoda", route_prefix="/")
    return time.monotonic() - start


async def upstreams() -> list[dict[str, Any]]:
    client = HttpClient(URL)
    found: list[dict[str, Any]] = json.loads(await client.get("/health"))["upstreams"]
    client.close()
    return found


async def until(condition: Any) -> float:
    """Seconds until it holds of the engines."""
    start = time.monotonic()
    while not condition(await upstreams()):
        if time.monotonic() - start > PATIENCE_S:
            sys.exit(f"waited {PATIENCE_S:g} s in vain: {await upstreams()}")
        await asyncio.sleep(0.1)
    return time.monotonic() - start


def all_there(found: list[dict[str, Any]]) -> bool:
    return len(found) == ENGINES and all(one["healthy"] for one in found)


async def ask(number: int, tokens: int = TOKENS) -> Outcome:
    outcome, client = Outcome(), HttpClient(URL)
    body = {"prompt": f"{number}: Once upon a time", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    try:
        async for data in client.events("/v1/completions", json.dumps(body).encode()):
            event = json.loads(data)
            outcome.error = event.get("error", {}).get("code")
            for choice in event.get("choices", ()):
                outcome.first = outcome.first or time.monotonic()
                outcome.finish = choice["finish_reason"] or outcome.finish
    except (HttpError, OSError) as error:
        outcome.error = str(error)
    client.close()
    outcome.ended = time.monotonic()
    return outcome


async def disconnect() -> bool:
    """A client reads one token and goes away."""
    stream = HttpClient(URL).events("/v1/completions", json.dumps({"prompt": "a", "max_tokens": 900, "stream": True,
                                                                  "ignore_eos": True}).encode())  # fmt: skip
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    seconds = await until(lambda found: not any(one["in_flight"] for one in found))
    print(f"a client went away: its request was gone after {seconds:.2f} s")
    return seconds < LATE_S


async def killed() -> bool:
    """One engine is killed while both are busy."""
    tasks = [asyncio.create_task(ask(number)) for number in range(CLIENTS)]
    await until(lambda found: sum(one["in_flight"] for one in found) == CLIENTS)
    await asyncio.sleep(1)
    pids = subprocess.run(["pgrep", "-f", "ServeReplica:pagoda:engine"], capture_output=True, text=True).stdout.split()
    os.kill(int(pids[0]), signal.SIGKILL)
    moment = time.monotonic()
    outcomes = await asyncio.gather(*tasks)
    broken = [one for one in outcomes if one.error is not None]
    early = [one for one in broken if one.first is None]
    slowest = max((one.ended - moment for one in broken), default=0.0)
    whole = sum(one.finish == "length" for one in outcomes)
    print(f"an engine killed: of {CLIENTS} clients {whole} answered, {len(broken)} broken off within {slowest:.2f} s")
    await until(all_there)
    back = time.monotonic() - moment
    print(f"both engines answer again after {back:.1f} s")
    return not early and slowest < LATE_S and whole + len(broken) == CLIENTS


async def rolled(model: str) -> bool:
    """The configuration changes under load."""
    done, failed, running = 0, 0, True

    async def client(number: int) -> None:
        nonlocal done, failed
        while running:
            outcome = await ask(number, 8)
            done += 1
            failed += outcome.error is not None

    tasks = [asyncio.create_task(client(number)) for number in range(4)]
    seconds = await asyncio.to_thread(deploy, model, "110MiB")
    running = False
    await asyncio.gather(*tasks)
    print(f"rolled out in {seconds:.0f} s under load: {done} requests, {failed} failed")
    return not failed


async def checks(model: str) -> list[bool]:
    await until(all_there)
    return [await disconnect(), await killed(), await rolled(model)]


def main(model: str = "smollm2-135m") -> int:
    ray.init(num_cpus=2 * ENGINES, include_dashboard=False, namespace="pagoda", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    print(f"deployed in {deploy(model, '100MiB'):.0f} s")
    found = asyncio.run(checks(model))
    stop("pagoda")
    serve.shutdown()
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
