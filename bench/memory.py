"""Time from `pagoda serve` to ready on a cached model, and resident memory beside llama-server's.

    LLAMA_CPP_BIN=build/bin python bench/memory.py MODEL [--starts 5] [--kv-tokens 16384] [--requests 64]

Both servers get room for the same number of KV tokens in f16 and 16 sequences. Resident memory is taken when ready
and after the same load (16 clients, 256 prompt and 64 output tokens), when buffers and KV are in use. Each figure is
printed when it is there: a load of 64 requests takes some minutes with a model of 0.5B on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ours
from llama import Llama
from pagoda.plan.cost.memory import kv_token_bytes
from pagoda.plan.model.models import shape_of_file
from pagoda.sources import resolve
from servers import pagoda_command, serving

SLOTS = 16
KV_TYPE = "f16"
MAX_READY_SECONDS = 2.0
MAX_MEMORY_RATIO = 1.15

Command = Callable[[int], Sequence[str]]  # port → command


def kv_bytes(model: Path, num_tokens: int) -> int:
    """Bytes of K and V of so many tokens, all layers."""
    return round(num_tokens * sum(kv_token_bytes(kind, KV_TYPE) for kind in shape_of_file(model).attention))


def resident(command: Command, ready_route: str, requests: int) -> dict[str, float]:
    """MiB when ready and after the load."""
    with serving(command, ready_route) as server:
        ready = server.rss()
        ours.load(server.url, concurrency=SLOTS, prompt=256, output=64, requests=requests)
        return {"ready_mib": round(ready / 2**20, 1), "loaded_mib": round(server.rss() / 2**20, 1)}


def times_to_ready(command: Command, starts: int) -> list[float]:
    """Seconds of each start after one that is not counted: it warms the caches of the OS."""
    times = []
    for _ in range(starts + 1):
        with serving(command, "/ready") as server:
            times.append(round(server.ready_s, 3))
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file, or a name as `pagoda serve` takes it")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--kv-tokens", type=int, default=16_384)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model = resolve(options.model).path
    room = ["--kv-type", KV_TYPE, "--kv-memory", str(kv_bytes(model, options.kv_tokens)), "--max-num-seqs", str(SLOTS)]

    def pagoda(port: int) -> list[str]:
        return pagoda_command(model, port, *room, "--threads", str(options.threads))

    def show(name: str, value: object) -> None:
        print(f"{name}: {json.dumps(value)}", flush=True)

    passed = True
    if options.starts:
        times = times_to_ready(pagoda, options.starts)
        show("ready_s", times)
        passed = statistics.median(times) <= MAX_READY_SECONDS
    own = resident(pagoda, "/ready", options.requests)
    show("pagoda", own)
    if llama := Llama.find(options.threads):
        peer = resident(
            lambda port: llama.server_command(model, port, SLOTS, options.kv_tokens), "/health", options.requests
        )
        ratio = round(own["loaded_mib"] / peer["loaded_mib"], 3)
        show("llama_server", peer)
        show("ratio", ratio)
        passed = passed and ratio <= MAX_MEMORY_RATIO
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
