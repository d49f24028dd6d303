"""How far `pagoda plan --fleet` is from two real replicas: p50 and p95 of TTFT and TPOT, for three kinds of traffic.

    python bench/fleet.py [MODEL] [SECONDS of each traffic]

Each replica and the planner have one core to themselves (`taskset`), so two cores are needed, and a machine that does
nothing else. Exits with 1 when a figure is more than 15 % off.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gateway import WORDS, gateway_command
from pagoda.client import HttpClient
from servers import pagoda_command, serving

KV_TOKENS, KV = 16_384, "360MiB"  # 23,040 bytes a token of the default model
BAR = 0.15


@dataclass(frozen=True)
class Traffic:
    """Requests at random moments: so many a second, of so many words, of which the first are shared by a group."""

    name: str
    per_second: float
    words: tuple[int, int]
    shared: int
    groups: int
    answer: tuple[int, int]


TRAFFIC = (
    Traffic("questions", 2.0, (50, 300), 0, 1, (16, 64)),
    Traffic("conversations", 1.0, (1100, 1200), 1000, 6, (16, 48)),
    Traffic("documents", 0.5, (400, 1600), 0, 1, (32, 96)),
)


def text(seed: str, num_words: int) -> str:
    draw = random.Random(seed)
    return seed + " " + " ".join(draw.choice(WORDS) for _ in range(num_words))


async def send(url: str, traffic: Traffic, seconds: float) -> int:
    """All requests at their moments. → how many"""
    draw, tasks, at = random.Random(traffic.name), [], 0.0
    loop = asyncio.get_running_loop()
    start = loop.time()
    while (at := at + draw.expovariate(traffic.per_second)) < seconds:
        group, words = draw.randrange(traffic.groups), draw.randint(*traffic.words)
        own = text(f"{traffic.name} {len(tasks)}", words - traffic.shared)
        prompt = (text(f"{traffic.name} group {group}", traffic.shared) if traffic.shared else "") + own
        body = {"prompt": prompt, "max_tokens": draw.randint(*traffic.answer), "ignore_eos": True, "stream": True}
        await asyncio.sleep(start + at - loop.time())
        tasks.append(asyncio.create_task(ask(url, body)))
    await asyncio.gather(*tasks)
    return len(tasks)


async def ask(url: str, body: dict[str, object]) -> None:
    client = HttpClient(url)
    async for data in client.events("/v1/completions", json.dumps(body).encode()):
        assert b'"error"' not in data, data
    client.close()


def compare(model: str, traffic: Traffic, seconds: float, folder: Path) -> float:
    """The largest error, as a share."""
    flags = ("--threads", "1", "--kv-memory", KV, "--speculation", "off", "--log-level", "warning")
    log = folder / f"{traffic.name}.jsonl"
    with ExitStack() as stack:
        urls = [
            stack.enter_context(
                serving(lambda port, c=core: ["taskset", "-c", c, *pagoda_command(model, port, *flags)], "/ready")
            ).url
            for core in ("0", "1")
        ]
        gate = stack.enter_context(
            serving(lambda port: gateway_command(port, urls, "--request-log", str(log)), "/ready")
        )
        count = asyncio.run(send(gate.url, traffic, seconds))
    command = [sys.executable, "-m", "pagoda", "plan", model, "--fleet", str(log), "--fleet-replicas", "2", "--json"]
    command += ["--ttft", "100000", "--fleet-kv-tokens", str(KV_TOKENS)]
    found = json.loads(subprocess.run(["taskset", "-c", "0", *command], check=True, capture_output=True).stdout)
    print(f"{traffic.name}: {count} requests")
    errors = []
    for row in found["comparisons"]:
        errors.append(row["predicted"] / row["logged"] - 1)
        predicted, logged = 1000 * row["predicted"], 1000 * row["logged"]
        print(f"  {row['figure']}: predicted {predicted:,.1f} ms, logged {logged:,.1f} ms, error {errors[-1]:+.1%}")
    return max(map(abs, errors))


def main(model: str = "smollm2-135m", seconds: str = "30") -> int:
    with tempfile.TemporaryDirectory() as folder:
        worst = max(compare(model, one, float(seconds), Path(folder)) for one in TRAFFIC)
    print(f"worst: {worst:.1%}")
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
