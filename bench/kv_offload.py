"""Time to the first token of a long prompt: computed, found in memory, and found in files after a restart.

PYTHONPATH=src:tests python bench/kv_offload.py [MODEL] [--tokens 2000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from pagoda.sources import resolve
from serving import Process, process

WORDS = ("river", "stone", "lamp", "winter", "paper", "garden", "number", "silver", "window", "harbour")


def first_token_s(server: Process, ids: list[int]) -> float:
    start = time.perf_counter()
    server.client.post("/v1/completions", json={"prompt": ids, "max_tokens": 1, "temperature": 0}).raise_for_status()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = resolve(args.model).path
    found: dict[str, list[float]] = {"computed": [], "in memory": [], "in files": []}
    for turn in range(args.rounds):
        text = " ".join(WORDS[(i * i + turn + i // 7) % len(WORDS)] for i in range(args.tokens * 2))
        with tempfile.TemporaryDirectory() as work:
            flags = ("--kv-offload", f"{work}/kv:8GB", "--max-context", str(args.tokens + 64))
            with process(model, Path(work, "first"), *flags) as server:
                server.client.post("/v1/completions", json={"prompt": "Warm up.", "max_tokens": 2})
                ids = server.client.post("/tokenize", json={"prompt": text}).json()["tokens"][: args.tokens]
                found["computed"].append(first_token_s(server, ids))
                found["in memory"].append(first_token_s(server, ids))
                server.popen.terminate()
                server.wait_end()
            with process(model, Path(work, "second"), *flags) as server:
                server.client.post("/v1/completions", json={"prompt": "Warm up.", "max_tokens": 2})
                found["in files"].append(first_token_s(server, ids))
    cold = statistics.median(found["computed"])
    for name, times in found.items():
        median = statistics.median(times)
        print(f"{name:10} {median * 1e3:8.1f} ms  {median / cold:.3f} of computed  {[round(t * 1e3) for t in times]}")


if __name__ == "__main__":
    main()
