"""Pagoda on Ray Serve: engines and a gateway on this machine, 16 clients, and what goes wrong or changes meanwhile.

    python -m venv ray && ray/bin/pip install '.[ray]' && ray/bin/python bench/ray_serve.py [PART...]

Parts, all by default: disconnect, killed, rolled, scaled, adapters. Exits with 1 when a bar is broken:

    disconnect  a client that goes away frees the engine within 2 s
    killed      one of two engines is killed under load: clients without a token are answered, the others get an error
                within 2 s, and within 20 s tokens come as fast as before; on a machine that others use, look at the new
                engine's share of them instead
    rolled      a changed configuration is rolled out under load, and no request fails
    scaled      a second engine comes with load and goes after it, and no request fails
    adapters    a new version of an adapter of a folder is rolled out under load, and no request fails; one that is put
                there later is served
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import serve

from adapters import write_adapters
from pagoda.client import HttpClient, HttpError, event_data, status_error
from pagoda.deploy.ray import app, stop

MODEL = "smollm2-135m"
PORT, CLIENTS, TOKENS, ENGINES = 18766, 16, 64, 2
URL = f"http://127.0.0.1:{PORT}"
LATE_S, BACK_S, PATIENCE_S = 2.0, 20.0, 180.0
SHARE, WINDOW_S, BEFORE_S = 0.9, 3.0, 10.0  # of the throughput before, over so long, is that throughput again
FAIR = 0.4  # of the tokens, that a second engine makes


def deploy(**settings: Any) -> float:
    """Deploy, or replace what runs. → seconds"""
    start = time.monotonic()
    common = {"model": MODEL, "replicas": ENGINES, "threads": 1, "kv_memory_bytes": "100MiB", "max_context": 1024}
    serve.run(app({**common, "max_num_seqs": 4, "port": PORT, **settings}), name="pagoda", route_prefix="/")
    return time.monotonic() - start


async def get(path: str) -> Any:
    client = HttpClient(URL)
    try:
        return json.loads(await client.get(path))
    finally:
        client.close()


async def upstreams() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await get("/health"))["upstreams"]
    return found


async def until(condition: Callable[[list[dict[str, Any]]], bool]) -> float:
    """Seconds until it holds of the engines."""
    start = time.monotonic()
    while not condition(await upstreams()):
        if time.monotonic() - start > PATIENCE_S:
            sys.exit(f"waited {PATIENCE_S:g} s in vain: {await upstreams()}")
        await asyncio.sleep(0.1)
    return time.monotonic() - start


def there(number: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Whether so many engines are there, and answer."""
    return lambda found: len(found) == number and all(one["healthy"] for one in found)


@dataclass
class Outcome:
    """How a stream went: when its tokens came, how and when it ended, and which engine it came from."""

    began: float = field(default_factory=time.monotonic)
    tokens: list[float] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    ended: float | None = None
    upstream: str = ""


async def ask(outcome: Outcome, prompt: str, tokens: int = TOKENS, model: str | None = None) -> Outcome:
    client = HttpClient(URL)
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "model": model or MODEL}
    try:
        head, pieces = await client.begin("POST", "/v1/completions", json.dumps(body).encode())
        outcome.upstream = head.headers.get("x-pagoda-upstream", "")
        if head.status >= 400:
            raise status_error(head, b"".join([piece async for piece in pieces]))
        async for data in event_data(pieces):
            event = json.loads(data)
            if "error" in event:
                outcome.error = str(event["error"]["message"])
            for choice in event.get("choices", ()):
                outcome.tokens.append(time.monotonic())
                outcome.finish = choice["finish_reason"] or outcome.finish
    except (HttpError, OSError) as error:
        outcome.error = str(error)
    client.close()
    outcome.ended = time.monotonic()
    return outcome


class Load:
    """Clients that ask again as soon as they are answered."""

    def __init__(self, tokens: int, models: tuple[str | None, ...] = (None,)) -> None:
        self.outcomes: list[Outcome] = []
        self.running = True
        self._tokens, self._models = tokens, models

    async def client(self, number: int) -> None:
        while self.running:
            self.outcomes.append(outcome := Outcome())
            model = self._models[len(self.outcomes) % len(self._models)]
            await ask(outcome, f"{number}: Once upon a time", self._tokens, model)

    def rate(self, since: float, until: float, upstream: str | None = None) -> float:
        """Tokens a second, of all engines or of one."""
        asked = [one for one in self.outcomes if upstream in (None, one.upstream)]
        return sum(since <= at < until for one in asked for at in one.tokens) / (until - since)

    @property
    def failed(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.error is not None]


@asynccontextmanager
async def loaded(clients: int, tokens: int = TOKENS, models: tuple[str | None, ...] = (None,)) -> Any:
    """Load for as long as the block takes; its last requests are waited for."""
    load = Load(tokens, models)
    tasks = [asyncio.create_task(load.client(number)) for number in range(clients)]
    try:
        yield load
    finally:
        load.running = False
        await asyncio.gather(*tasks)


async def disconnect() -> bool:
    """A client reads one token and goes away."""
    deploy()
    await until(there(ENGINES))
    body = {"prompt": "a", "max_tokens": 900, "stream": True, "ignore_eos": True}
    stream = HttpClient(URL).events("/v1/completions", json.dumps(body).encode())
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    seconds = await until(lambda found: not any(one["in_flight"] for one in found))
    print(f"a client went away: its request was gone after {seconds:.2f} s")
    return seconds < LATE_S


async def killed() -> bool:
    """One engine is killed while both are busy."""
    deploy()
    await until(there(ENGINES))
    async with loaded(CLIENTS) as load:
        await asyncio.sleep(BEFORE_S)
        pids = subprocess.run(["pgrep", "-f", "ServeReplica:pagoda:engine"], capture_output=True, text=True).stdout
        names = {one["name"] for one in await upstreams()}
        moment = time.monotonic()
        before = load.rate(moment - BEFORE_S + 2, moment)
        under_way = [one for one in load.outcomes if one.ended is None]
        os.kill(int(pids.split()[0]), signal.SIGKILL)
        await until(lambda found: not there(ENGINES)(found))
        noticed = time.monotonic() - moment
        await until(there(ENGINES))
        engines = time.monotonic() - moment
        (new,) = {one["name"] for one in await upstreams()} - names
        half = throughput = float("inf")
        while throughput > PATIENCE_S and time.monotonic() - moment < 2 * BACK_S:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            rate, its = load.rate(now - WINDOW_S, now), load.rate(now - WINDOW_S, now, new)
            half = min(half, now - moment - WINDOW_S) if its > FAIR * rate else half
            throughput = now - moment - WINDOW_S if rate >= SHARE * before else throughput
    broken = [one for one in load.failed if one.tokens]
    early = [one for one in load.failed if not one.tokens]
    slowest = max((one.ended - moment for one in broken if one.ended is not None), default=0.0)
    print(
        f"an engine killed under {CLIENTS} clients at {before:.0f} tokens/s: of {len(under_way)} requests under way "
        f"{len(broken)} broke off within {slowest:.2f} s, {len(early)} of all without a token failed"
    )
    print(
        f"noticed after {noticed:.1f} s, both engines answer after {engines:.1f} s, the new one makes {FAIR:.0%} of "
        f"the tokens from {half:.1f} s on, and both together {SHARE:.0%} of those before from {throughput:.1f} s on"
    )
    return not early and slowest < LATE_S and throughput < BACK_S


async def rolled() -> bool:
    """The configuration changes under load."""
    deploy()
    await until(there(ENGINES))
    async with loaded(4, 8) as load:
        seconds = await asyncio.to_thread(deploy, kv_memory_bytes="110MiB")
    print(f"rolled out in {seconds:.0f} s under load: {len(load.outcomes)} requests, {len(load.failed)} failed")
    return not load.failed


async def scaled() -> bool:
    """From one engine to two, and back."""
    deploy(replicas=1, max_replicas=2, target_requests=4, upscale_delay=1, downscale_delay=4)
    await until(there(1))
    async with loaded(12, 32) as load:
        start = time.monotonic()
        await until(there(2))
        up = time.monotonic() - start
        await asyncio.sleep(3)
    down = await until(there(1))
    print(
        f"12 clients: a second engine after {up:.1f} s; it was gone {down:.1f} s after them; "
        f"{len(load.outcomes)} requests, {len(load.failed)} failed"
    )
    return not load.failed


async def adapters() -> bool:
    """Four adapters of a folder; then a new version of one; then a fifth."""
    with tempfile.TemporaryDirectory() as name:
        made, folder = Path(name) / "made", Path(name) / "adapters"
        made.mkdir()
        folder.mkdir()
        write_adapters(made, 6, 8)
        names = tuple(f"adapter-{number}" for number in range(4))
        for number, one in enumerate(names):
            (folder / one).symlink_to(made / str(number))
        deploy(lora_dir=str(folder), health_interval=1.0)
        await until(there(ENGINES))
        first = await digests(names)
        async with loaded(4, 8, names) as load:
            await asyncio.sleep(5)
            (folder / ".next").symlink_to(made / "4")
            os.replace(folder / ".next", folder / names[0])
            await asyncio.sleep(5)
        second = await digests(names)
        (folder / "late").symlink_to(made / "5")
        late = Outcome()
        start = time.monotonic()
        while late.finish is None and time.monotonic() - start < 30:
            late = await ask(Outcome(), "Once", 8, "late")
        seconds = time.monotonic() - start
        held = [await on_disk_alone(url) for url in engine_urls()]
    changed = [one for one in names if first[one] != second[one]]
    print(
        f"{len(load.outcomes)} requests for four adapters, {len(load.failed)} failed; answers changed of {changed}; "
        f"one that was put there later answered after {seconds:.1f} s; engines have on disk alone {held}"
    )
    return not load.failed and changed == [names[0]] and late.finish is not None


async def digests(names: tuple[str, ...]) -> Mapping[str, str]:
    """What each adapter answers, greedily."""
    found, client = {}, HttpClient(URL)
    for name in names:
        body = {"prompt": "The sea is", "max_tokens": 16, "temperature": 0, "model": name}
        answer = json.loads(await client.post("/v1/completions", json.dumps(body).encode()))
        found[name] = answer["choices"][0]["text"]
    client.close()
    return found


def engine_urls() -> list[str]:
    registry: Any = ray.get_actor("pagoda-registry", namespace="pagoda")
    return list(ray.get(registry.urls.remote()).values())


async def on_disk_alone(url: str) -> list[str]:
    """The adapters that an engine does not have in memory."""
    client = HttpClient(url)
    cards = json.loads(await client.get("/v1/models"))["data"]
    client.close()
    return [card["id"] for card in cards if card.get("status") == {"value": "unloaded"}]


PARTS: dict[str, Callable[[], Coroutine[Any, Any, bool]]] = {
    "disconnect": disconnect, "killed": killed, "rolled": rolled, "scaled": scaled, "adapters": adapters,
}  # fmt: skip


def main(*wanted: str) -> int:
    ray.init(num_cpus=2 * ENGINES, include_dashboard=False, namespace="pagoda", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    found: dict[str, bool] = {}
    for name in wanted or PARTS:
        found[name] = asyncio.run(PARTS[name]())
    stop("pagoda")
    serve.shutdown()
    for name, good in found.items():
        print(f"{name}: {'holds' if good else 'BROKEN'}")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
