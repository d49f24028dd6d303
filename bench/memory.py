"""Time from `pagoda serve` to ready on a cached model, and resident memory beside llama-server's.

    LLAMA_CPP_BIN=build/bin python bench/memory.py model.gguf [--starts 5] [--kv-tokens 16384]

Both servers get room for the same number of KV tokens in f16 and 16 sequences. Resident memory is taken when ready
and after the same load (16 clients, 256 prompt and 64 output tokens, 64 requests), when buffers and KV are in use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ours
from llama import Llama
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from servers import pagoda_command, serving

SLOTS = 16
MAX_READY_SECONDS = 2.0
MAX_MEMORY_RATIO = 1.15


def kv_token_bytes(model: Path) -> int:
    """Bytes of K and V of one token in f16, all layers."""
    with open_checkpoint(model) as checkpoint:
        forward = load_model(checkpoint)
        return 2 * 2 * forward.num_layers * forward.num_kv_heads * forward.head_dim


def resident(command: Callable[[int], Sequence[str]], ready_route: str) -> dict[str, float]:
    """MiB when ready and after the load."""
    with serving(command, ready_route) as server:
        ready = server.rss()
        ours.load(server.url, concurrency=SLOTS, prompt=256, output=64, requests=64)
        return {"ready_mib": round(ready / 2**20, 1), "loaded_mib": round(server.rss() / 2**20, 1)}


def times_to_ready(command: Callable[[int], Sequence[str]], starts: int) -> list[float]:
    """Seconds of each start after one that is not counted: it warms the caches of the OS."""
    times = []
    for _ in range(starts + 1):
        with serving(command, "/ready") as server:
            times.append(round(server.ready_s, 3))
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--kv-tokens", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    size = ["--kv-memory", str(options.kv_tokens * kv_token_bytes(options.model)), "--max-num-seqs", str(SLOTS)]
    threads = ["--threads", str(options.threads)]

    def pagoda(port: int) -> list[str]:
        return pagoda_command(options.model, port, *size, *threads)

    times = times_to_ready(pagoda, options.starts)
    result: dict[str, Any] = {"ready_s": times, "ready_median_s": statistics.median(times)}
    result["pagoda"] = resident(pagoda, "/ready")
    passed = result["ready_median_s"] <= MAX_READY_SECONDS
    if llama := Llama.find(options.threads):
        result["llama_server"] = resident(
            lambda port: llama.server_command(options.model, port, SLOTS, options.kv_tokens), "/health"
        )
        result["ratio"] = round(result["pagoda"]["loaded_mib"] / result["llama_server"]["loaded_mib"], 3)
        passed = passed and result["ratio"] <= MAX_MEMORY_RATIO
    print(json.dumps(result, indent=2))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
