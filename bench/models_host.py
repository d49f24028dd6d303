"""Three models on one machine with room for two: nothing is lost, and what is loaded and unloaded is what was planned.

    python bench/models_host.py [MODEL] [REQUESTS] [CLIENTS]

One after the other, 15 requests have to cause the very loads and unloads of a cache that forgets what was used longest
ago. Then clients ask for models at random, and halfway one model's process is killed with -9. Exits with 1 when an
answer is lost or differs, more than two models are in memory, or the killed one is not back within 5 s and its time to
load.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagoda.client import HttpClient, HttpError
from pagoda.sources import resolve
from servers import Server, serving

NAMES = ("first", "second", "third")
ROOM, IN_ORDER, BAR_S = 2, 15, 5.0
LOADED, UNLOADED, ENDED = "a model is loaded", "a model is unloaded", "a model's process has ended; it is started again"


@dataclass
class Found:
    """What the clients saw."""

    texts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


async def ask(url: str, name: str, found: Found) -> None:
    body = {"model": name, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    client, start = HttpClient(url), time.perf_counter()
    try:
        answer = json.loads(await client.post("/v1/completions", json.dumps(body).encode()))
        found.texts[answer["choices"][0]["text"]] += 1
    except (HttpError, OSError) as error:
        found.failures.append(f"{name}: {error}")
    finally:
        client.close()
    found.seconds.append(time.perf_counter() - start)


def events(server: Server) -> list[dict[str, Any]]:
    """Lines of the log about models that come and go."""
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("{")]
    told = [json.loads(line) for line in lines]
    return [one for one in told if one.get("message") in (LOADED, UNLOADED, ENDED)]


def most_in_memory(told: list[dict[str, Any]]) -> int:
    """Models in memory at once, at most. AssertionError: one was loaded twice, or unloaded while it was not there."""
    here: set[str] = set()
    most = 0
    for one in told:
        name, comes = one["model"], one["message"] == LOADED
        assert (name in here) != comes, f"{one['message']}: {name}"
        here = here | {name} if comes else here - {name}
        most = max(most, len(here))
    return most


def planned(order: list[str]) -> list[tuple[str, str]]:
    """What a cache of ROOM models that forgets the one used longest ago does."""
    here: list[str] = []
    does = []
    for name in order:
        if name in here:
            here.remove(name)
        else:
            if len(here) == ROOM:
                does.append((UNLOADED, here.pop(0)))
            does.append((LOADED, name))
        here.append(name)
    return does


async def in_order(server: Server, found: Found) -> bool:
    """One after the other. → whether loads and unloads were the planned ones"""
    order = random.Random(0).choices(NAMES, k=IN_ORDER)
    for name in order:
        await ask(server.url, name, found)
    return [(one["message"], one["model"]) for one in events(server)] == planned(order)


async def at_random(server: Server, count: int, clients: int, found: Found) -> float:
    """Many at once, with a model killed halfway. → seconds until it was there again"""
    left = random.Random(1).choices(NAMES, k=count)
    back: list[float] = []

    async def client() -> None:
        while left:
            if len(left) == count // 2 and not back:
                back.append(0.0)
                killing.append(asyncio.create_task(kill(server)))
            await ask(server.url, left.pop(), found)

    killing: list[asyncio.Task[float]] = []
    await asyncio.gather(*[client() for _ in range(clients)])
    return await killing[0]


async def kill(server: Server) -> float:
    """Kill one loaded model. → seconds until it is loaded again"""
    listed = json.loads(await HttpClient(server.url).get("/v1/models"))["data"]
    name = next(one["id"] for one in listed if one["status"]["value"] == "loaded")
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    pid = next(int(pid) for pid in pids if f"\0{name}\0" in Path(f"/proc/{pid}/cmdline").read_text())
    before, start = len(events(server)), time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while not any(one["message"] == LOADED and one["model"] == name for one in events(server)[before:]):
        await asyncio.sleep(0.02)
    return time.perf_counter() - start


def main(model: str = "smollm2-135m", requests: str = "300", clients: str = "6") -> int:
    source = resolve(model).path
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.gguf" for name in NAMES]
        for path in paths:
            path.symlink_to(source)
        command = [sys.executable, "-m", "pagoda", "serve", *map(str, paths), "--models-max", str(ROOM)]
        command += ["--kv-memory", "64MiB", "--log-format", "json"]
        with serving(lambda port: [*command, "--port", str(port)], "/ready") as server:
            return report(server, int(requests), int(clients))


def report(server: Server, requests: int, clients: int) -> int:
    found = Found()
    was_planned = asyncio.run(in_order(server, found))
    start = time.perf_counter()
    back_s = asyncio.run(at_random(server, requests, clients, found))
    wall = time.perf_counter() - start
    told = events(server)
    loads = [one["seconds"] for one in told if one["message"] == LOADED]
    load_s = sorted(loads)[len(loads) // 2]
    most = most_in_memory(told)
    waits = sorted(found.seconds[IN_ORDER:])
    print(f"in order: {IN_ORDER} requests, loads and unloads {'as planned' if was_planned else 'NOT as planned'}")
    print(f"at random: {requests} requests by {clients} clients in {wall:.0f} s, {len(found.failures)} lost,")
    print(f"  {len(found.texts)} different answers, p50 {waits[len(waits) // 2]:.2f} s, longest {waits[-1]:.2f} s")
    print(f"{len(loads)} loads of {load_s:.2f} s at the median, at most {most} models in memory")
    print(f"killed with -9: back after {back_s:.2f} s")
    for failure in found.failures:
        print(f"  {failure}")
    good = was_planned and not found.failures and len(found.texts) == 1 and most <= ROOM and back_s <= BAR_S + load_s
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
