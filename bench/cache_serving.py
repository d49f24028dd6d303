"""What the semantic cache costs those whom it does not help: a server with the default model, its cache on and off.

    PYTHONPATH=src:tests python bench/cache_serving.py [--streams 16] [--rounds 6] [--tokens 48] [--store sqlite]

Each round asks the same new questions twice, once with `"cache": "off"` and once with the cache, in alternating order;
there, every one is embedded, looked up by meaning and found nowhere. Printed: the median over the rounds of the ratio
of tokens a second (bar: 0.98), and of the added time to the first token at one stream (bar: 4 ms); then how long a hit
takes (bar: 10 ms).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from serving import Served, serving

numbers = itertools.count(1)


def questions(count: int) -> list[str]:
    """None of them was asked before, and no two want the same answer."""
    return [f"Which {number * 7919 % 10007} properties does thing number {number} have?" for number in _take(count)]


def _take(count: int) -> list[int]:
    return [next(numbers) for _ in range(count)]


def ask(client: httpx.Client, question: str, tokens: int, cache: str) -> tuple[float, int]:
    """→ (seconds to the first token, tokens)"""
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": tokens, "stream": True, "temperature": 0, "cache": cache}
    start, first, count = time.perf_counter(), 0.0, 0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if '"content":"' in line and '"content":""' not in line:
                first = first or time.perf_counter() - start
                count += 1
    return first, count


def rate(client: httpx.Client, asked: list[str], streams: int, tokens: int, cache: str) -> float:
    """Tokens a second with so many streams at once."""
    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        counts = list(pool.map(lambda question: ask(client, question, tokens, cache)[1], asked))
    return sum(counts) / (time.perf_counter() - start)


def throughput(served: Served, streams: int, rounds: int, tokens: int) -> None:
    ratios = []
    for place in range(rounds):
        asked = questions(2 * streams)
        order = ("off", "on") if place % 2 else ("on", "off")
        found = {cache: rate(served.client, asked, streams, tokens, cache) for cache in order}
        ratios.append(found["on"] / found["off"])
        print(f"  {found['off']:.1f} tokens/s without, {found['on']:.1f} with the cache", flush=True)
    print(f"{streams} streams: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def first_tokens(served: Served, pairs: int) -> None:
    added, hits = [], []
    for place, question in enumerate(questions(pairs)):
        order = ("off", "on") if place % 2 else ("on", "off")
        found = {cache: ask(served.client, question, 1, cache)[0] for cache in order}
        added.append(found["on"] - found["off"])
    question = "What is the capital of France?"
    ask(served.client, question, 200, "on")
    time.sleep(0.5)  # the answer is kept after it was given
    for _ in range(pairs):
        hits.append(ask(served.client, question, 200, "on")[0])
    print(f"one stream: a miss adds {1000 * statistics.median(added):.2f} ms to the first token")
    print(f"a hit takes {1000 * statistics.median(hits):.2f} ms to the first token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--store", default="sqlite")
    args = parser.parse_args()
    loaded = load_engine(EngineSettings(prefix_caching=False))  # so that the second asking gains nothing
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:{Path(folder) / 'answers.sqlite'}" if args.store == "sqlite" else args.store
        with serving(loaded, cache_store=store, cache_budget=1.0) as served:
            served.client.timeout = httpx.Timeout(300)
            rate(served.client, questions(args.streams), args.streams, 8, "on")  # warm
            throughput(served, args.streams, args.rounds, args.tokens)
            first_tokens(served, args.pairs)
            reasons = served.model.metrics.cache
            print(f"misses: {dict(reasons.misses.values)}, bypassed: {dict(reasons.bypasses.values)}")
    loaded.close()


if __name__ == "__main__":
    main()
