"""The law of cost under a mixed load: what requests pay, what was computed again and idle time are hours times price.

    PYTHONPATH=src:tests python bench/cost_law.py [MODEL] [--minutes 10]        # 2 for a short look

A server with little KV memory, a semantic cache and a request log; for so many minutes clients ask prompts with a
common start, go away in the middle of answers, repeat questions, rest. Then, within 0.1 %: the series add up to the
time that went by; the log's requests, its idle time and what was computed again add up to the machine's bill, as
`pagoda cost report` prints it. Hits of the cache pay nothing, those who went away for what they used, and nobody for a
token that was computed again after a preemption. Exits with 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner

from pagoda.cli.main import app
from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from pagoda.observe.cost import CostSettings
from serving import Served, series_sums, serving, wait_for

PRICE = 3600.0  # USD an hour: one a second
SHARED = "The lighthouse keeper lit the lamp and looked out over the grey water. " * 6
CLIENTS = 8
TOLERANCE = 0.001


def figures(served: Served) -> dict[str, float]:
    return series_sums(served.client.get("/metrics").text)


async def client(url: str, number: int, until: float) -> None:
    """Asks, goes away, repeats and rests until the time is over."""
    rng = random.Random(number)
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        while time.monotonic() < until:
            kind = rng.random()
            if kind < 0.3:  # a question that is asked again and again
                messages = [{"role": "user", "content": f"What is the number {rng.randrange(6)} called in Latin?"}]
                body = {"messages": messages, "max_tokens": 100, "temperature": 0, "include_cost": True}
                answer = await http.post("/v1/chat/completions", json=body)
                usage = answer.json().get("usage", {})
                if answer.headers.get("x-pagoda-cache", "").startswith("hit"):
                    assert usage["cost_usd"] == 0.0, usage
            elif kind < 0.9:  # long ones, more at once than there are KV blocks for; a third is given up
                prompt = SHARED + f"{number} {rng.randrange(50)}"
                body = {"prompt": prompt, "max_tokens": rng.choice((60, 90, 120)), "ignore_eos": True, "stream": True}
                await read(http, body, leaves=rng.random() < 0.33)
            else:
                await asyncio.sleep(rng.uniform(0.5, 3.0))


async def read(http: httpx.AsyncClient, body: dict[str, Any], *, leaves: bool) -> None:
    async with http.stream("POST", "/v1/completions", json=body) as response:
        count = 0
        async for line in response.aiter_lines():
            count += line.startswith("data: {")
            if leaves and count > 10:
                return


async def load(url: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(url, number, until) for number in range(CLIENTS)))
    await asyncio.sleep(min(5.0, seconds / 10))  # idle at the end


def check(name: str, value: float, expected: float, room: float = 0.0) -> bool:
    """Within TOLERANCE of what is expected, and `room` seconds that asking itself takes."""
    apart = abs(value - expected)
    good = apart <= TOLERANCE * expected + room
    print(f"{'ok  ' if good else 'BAD '} {name}: {value:.3f} beside {expected:.3f} ({apart / expected:.4%})")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    settings = EngineSettings(model=args.model, max_context=256, max_num_seqs=8, kv_memory_bytes=12 << 20)
    loaded = load_engine(settings)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.jsonl"
        cost = CostSettings(price=PRICE)
        options: dict[str, Any] = {"cache_store": "memory", "cache_embedder": "none", "cache_budget": 1.0}
        with serving(loaded, cost=cost, request_log=log, **options) as served:
            before, started = figures(served), time.monotonic()
            asyncio.run(load(served.url, 60 * args.minutes))
            served.ok("/v1/completions", prompt="The end", max_tokens=2)  # a step after the last that was given up
            wait_for(lambda: figures(served)["pagoda_num_requests_running"] == 0)
            found, ended = figures(served), time.monotonic()
        report = json.loads(CliRunner().invoke(app, ["cost", "report", str(log), "--json"]).output)
    loaded.close()
    sys.exit(0 if is_lawful(before, found, ended - started, report) else 1)


def is_lawful(before: dict[str, float], found: dict[str, float], seconds: float, report: dict[str, Any]) -> bool:
    """Print what was found, and whether it adds up."""
    bill = ("pagoda_cost_usd_total", "pagoda_cost_unbilled_usd_total")
    spent = sum(found[name] - before.get(name, 0.0) for name in bill)
    house, total = report["house"], report["total"]
    parts = total["cost_usd"] + house["idle_usd"] + house["recomputed_usd"]  # all that was asked is in the log
    counts = {
        "requests": total["requests"],
        "preemptions": found["pagoda_num_preemptions_total"],
        "cache hits": found["pagoda_cache_hits_total"],
        "prefix cache hits": found["pagoda_prefix_cache_hits_total"],
        "clients gone": found["pagoda_http_disconnects_total"],
    }
    print(", ".join(f"{count:.0f} {name}" for name, count in counts.items()))
    shares = {name: house[f"{name}_usd"] / house["bill_usd"] for name in ("idle", "recomputed", "other")}
    print(", ".join(f"{name} {share:.1%} of the bill" for name, share in shares.items()))
    good = [
        check("series, over the time that went by", spent, seconds, room=0.1),
        check("log: requests + idle + computed again, over the bill", parts, house["bill_usd"]),
        check("log: the bill, over hours times price", house["bill_usd"], PRICE * house["seconds"] / 3600),
        check("log: what requests pay, over the series", total["cost_usd"], found["pagoda_cost_usd_total"], 0.1),
    ]
    missing = [name for name, count in counts.items() if not count]
    if missing:
        print(f"BAD  the load made no {', '.join(missing)}")
    return all(good) and not missing


if __name__ == "__main__":
    main()
