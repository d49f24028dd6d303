"""Many clients at once, real model: no error, no leak, and every answer is the one that its request gets alone."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving import HANG_S, Process, process, series_sums

SECONDS = float(os.environ.get("PAGODA_TEST_LOAD_SECONDS", "20"))
CLIENTS = 64
KINDS = [(num_chars, output) for num_chars in (10, 200, 1000) for output in (1, 12, 40)]
TEXT = "The old river bends past the stones where seven herons wait for evening. " * 20
WARM_UP = 0.25  # of the time, after which memory is to stay flat


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    log = tmp_path_factory.mktemp("load") / "log"
    with process(default_model, log, "--kv-memory", "256MiB", "--max-num-seqs", "32") as server:
        yield server


def body(kind: int) -> dict[str, object]:
    num_chars, output = KINDS[kind]
    prompt = TEXT[3 * kind :][:num_chars]
    return {"prompt": prompt, "max_tokens": output, "ignore_eos": True, "stream": True, "temperature": 0}


async def answer(client: httpx.AsyncClient, kind: int) -> str:
    response = await client.post("/v1/completions", json=body(kind))
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    return "".join(json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines[:-1])


def series(server: Process) -> dict[str, float]:
    return series_sums(server.client.get("/metrics").text)


@pytest.mark.slow
def test_64_clients(server: Process) -> None:
    rng = random.Random(1)
    counts = {"answers": 0}
    memory: list[float] = []

    async def user(client: httpx.AsyncClient, alone: list[str], end: float) -> None:
        while time.monotonic() < end:
            kind = rng.randrange(len(KINDS))
            assert await answer(client, kind) == alone[kind]
            counts["answers"] += 1

    async def leaver(client: httpx.AsyncClient, end: float) -> None:
        """Goes away in the middle of answers."""
        while time.monotonic() < end:
            async with client.stream("POST", "/v1/completions", json=body(8)) as response:
                await anext(response.aiter_raw())
            await asyncio.sleep(0.2)

    async def scenario() -> None:
        limits = httpx.Limits(max_connections=CLIENTS + 4)
        async with httpx.AsyncClient(base_url=server.client.base_url, timeout=HANG_S, limits=limits) as client:
            alone = [await answer(client, kind) for kind in range(len(KINDS))]
            start = time.monotonic()
            users = [user(client, alone, start + SECONDS) for _ in range(CLIENTS)]
            everyone = asyncio.gather(*users, leaver(client, start + SECONDS))
            await asyncio.sleep(SECONDS * WARM_UP)
            memory.append(await asyncio.to_thread(lambda: series(server)["process_resident_memory_bytes"]))
            await everyone

    asyncio.run(scenario())
    after = series(server)
    assert counts["answers"] > CLIENTS
    assert after["pagoda_kv_blocks_used"] == 0
    assert after["pagoda_num_requests_running"] == after["pagoda_num_requests_waiting"] == 0
    assert after["process_resident_memory_bytes"] < memory[0] * 1.05 + 8 * 2**20
