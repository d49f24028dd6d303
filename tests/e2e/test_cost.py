"""The bill of the real engine: a mixed load with shared prompts, cancelled requests and preemptions adds up."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from pagoda.benchmark.load import Load, parse_all, run_load
from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from pagoda.observe.cost import CostSettings
from pagoda.observe.request_log import read_lines
from serving import HANG_S, Served, series_sums, serving, wait_for

PRICE = 3600.0  # USD an hour: one a second
SHARED = "The lighthouse keeper lit the lamp and looked out over the grey water. " * 6


def figures(served: Served) -> dict[str, float]:
    return series_sums(served.client.get("/metrics").text)


async def load(url: str) -> None:
    """Six clients: each asks for answers of many lengths, and leaves every third before its end."""

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=HANG_S) as http:
            for i in range(3):
                prompt = SHARED + str(number) * (i + 1)
                body = {"prompt": prompt, "max_tokens": 60 + 20 * i, "ignore_eos": True, "stream": True}
                async with http.stream("POST", "/v1/completions", json=body) as response:
                    count = 0
                    async for line in response.aiter_lines():
                        count += line.startswith("data: {")
                        if i == 1 and count > 10:
                            break

    await asyncio.gather(*(client(number) for number in range(6)))


def test_a_mixed_load_adds_up(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    loaded = load_engine(EngineSettings(max_context=256, max_num_seqs=6, kv_memory_bytes=12 << 20, prefix_caching=True))
    with serving(loaded, cost=CostSettings(price=PRICE), request_log=log) as served:
        earliest, before, started = time.monotonic(), figures(served), time.monotonic()
        asyncio.run(load(served.url))
        wait_for(lambda: len(list(read_lines(log))) == 18)
        served.ok("/v1/completions", prompt="The end", max_tokens=2)  # a step after the last one that was cancelled
        wait_for(lambda: figures(served)["pagoda_num_requests_running"] == 0)
        ended, found, latest = time.monotonic(), figures(served), time.monotonic()
    bill = ("pagoda_cost_usd_total", "pagoda_cost_unbilled_usd_total")
    total = sum(found[name] for name in bill) - sum(before.get(name, 0.0) for name in bill)
    assert 0.999 * (ended - started) <= total <= 1.001 * (latest - earliest)  # a dollar is a second
    lines = list(read_lines(log))
    assert sum(line.cost_usd or 0.0 for line in lines) == pytest.approx(found["pagoda_cost_usd_total"], rel=0.02)
    cancelled = [line for line in lines if line.finish == "unfinished"]
    assert len(cancelled) == 6
    assert all(line.cost_usd for line in cancelled)
    assert found["pagoda_num_preemptions_total"] > 0
    assert found["pagoda_prefix_cache_hits_total"] > 0
    loaded.close()


def test_series_count_what_a_client_counts() -> None:
    loaded = load_engine(EngineSettings(max_context=256, max_num_seqs=4, kv_memory_bytes=32 << 20))
    with serving(loaded) as served:
        before = figures(served)
        asked = Load(
            served.url, concurrency=4, prompt=48, output=12, requests=8, model="smollm2-135m", vocab_size=49152
        )
        exchanges, _ = asyncio.run(run_load(asked))
        answers, errors = parse_all(exchanges)
        wait_for(lambda: figures(served)["pagoda_num_requests_running"] == 0)
        after = figures(served)
    loaded.close()
    assert not errors
    rise = {name: after[name] - before.get(name, 0.0) for name in after}
    assert rise["pagoda_generation_tokens_total"] == sum(answer.output_tokens for answer in answers) == 96
    prompts = rise["pagoda_prompt_tokens_total"] + rise["pagoda_prompt_tokens_cached_total"]
    assert prompts == sum(answer.prompt_tokens for answer in answers) == 384
    assert rise["pagoda_time_to_first_token_seconds_count"] == 8
    assert rise["pagoda_inter_token_latency_seconds_count"] == 88
    assert rise["pagoda_request_success_total"] == 8
