"""A hybrid of Qwen3.5-0.8B's shape, Pagoda's server beside llama-server on the same file, in turn.

    python bench/hybrid.py hybrid.gguf --llama-server build/bin/llama-server [--rounds 5] [--threads 2]

`hybrid_model.py` makes the file. A round asks each server for a prompt of 512 tokens, for 64 tokens of one stream, and
for 32 tokens of each of 16 streams; the medians of the ratios of neighbouring runs are printed. Prompts are token ids
that were never asked before, so no cache knows them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import random
import statistics
import time
import urllib.request
from pathlib import Path

from servers import pagoda_command, serving

PREFILL, CONTEXT, GEN, STREAMS, STREAM_GEN = 512, 64, 64, 16, 32


def ask(url: str, prompt: list[int], tokens: int) -> float:
    """Seconds until the whole answer is there."""
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as response:
        json.load(response)
    return time.perf_counter() - start


def prompt(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(300, 200_000) for _ in range(count)]


def prefill(url: str, rng: random.Random) -> float:
    return PREFILL / ask(url, prompt(rng, PREFILL), 1)


def decode(url: str, rng: random.Random) -> float:
    """Tokens a second after the first."""
    short = prompt(rng, CONTEXT)
    first = ask(url, short, 1)
    return (GEN - 1) / (ask(url, prompt(rng, CONTEXT), GEN) - first)


def streams(url: str, rng: random.Random) -> float:
    prompts = [prompt(rng, CONTEXT) for _ in range(STREAMS)]
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(lambda one: ask(url, one, STREAM_GEN), prompts))
    return STREAMS * STREAM_GEN / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activation-type", default="int8")
    given = parser.parse_args()
    rng = random.Random(0)
    threads = str(given.threads)
    flags = ["--threads", threads, "--activation-type", given.activation_type, "--served-model-name", "m"]
    size = ["-m", str(given.model), "-np", str(STREAMS), "-c", str(STREAMS * 1024), "-t", threads]
    quiet = ["--no-webui", "--log-disable", "--no-cache-prompt", "--cache-ram", "0"]
    llama = [str(given.llama_server), *size, *quiet]
    with (
        serving(lambda port: pagoda_command(given.model, port, *flags), "/ready") as pagoda,
        serving(lambda port: [*llama, "--port", str(port)], "/health") as peer_server,
    ):
        ours, theirs = pagoda.url, peer_server.url
        for measure in (prefill, decode, streams):
            measure(ours, rng), measure(theirs, rng)
            found: list[tuple[float, float]] = []
            for i in range(given.rounds):
                order = (ours, theirs) if i % 2 else (theirs, ours)
                speed = {url: measure(url, rng) for url in order}
                found.append((speed[ours], speed[theirs]))
            ratio = statistics.median(a / b for a, b in found)
            mine, peer = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"{measure.__name__}: {mine:.1f} and {peer:.1f} tokens/s, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
