"""How far `pagoda plan --fleet` is from two real replicas: p50 and p95 of TTFT and TPOT, for three kinds of traffic.

    python bench/fleet.py [MODEL] [SECONDS of each traffic]
    python bench/fleet.py errors FOLDER [MODEL]     # of logs that are there

Two replicas of one thread each stand behind the gateway, each on a core of its own (`taskset`), so two cores are
needed, and a machine that does nothing else. Before each traffic comes a third of its time of mixed requests, which
calibrate the simulation (`--fleet-calibration`); of the three traffics it sees when requests came, how long they are,
what they share and which replica got them. Exits with 1 when a figure is more than 15 % off.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway import WORDS, gateway_command
from pagoda.client import HttpClient
from servers import pagoda_command, serving

KV_TOKENS, KV = 16_384, "360MiB"  # 23,040 bytes a token of the default model
BAR = 0.15


@dataclass(frozen=True)
class Ask:
    """One request: when, the prompt's text, and how many tokens the answer has."""

    at: float
    prompt: str
    answer: int


def text(seed: str, num_words: int) -> str:
    draw = random.Random(seed)
    return f"{seed} " + " ".join(draw.choice(WORDS) for _ in range(num_words))


def questions(draw: random.Random, seconds: float, per_second: float = 1.5) -> Iterator[Ask]:
    """Short prompts of their own, at random moments."""
    at = 0.0
    while (at := at + draw.expovariate(per_second)) < seconds:
        yield Ask(at, text(f"question {draw.random()}", draw.randint(30, 150)), draw.randint(16, 48))


def bursts(draw: random.Random, seconds: float, every: float = 5.0) -> Iterator[Ask]:
    """Three longer prompts at nearly the same time, again and again."""
    at = 0.5
    while at < seconds:
        for _ in range(3):
            moment = at + draw.uniform(0, 0.5)
            yield Ask(moment, text(f"document {draw.random()}", draw.randint(200, 400)), draw.randint(24, 64))
        at += every * draw.uniform(0.8, 1.2)


def conversations(draw: random.Random, seconds: float, per_second: float = 1.2) -> Iterator[Ask]:
    """Turns of conversations, of which several go on at a time: each prompt is what was said before, and more."""
    told, at = [""] * 6, 0.0
    while (at := at + draw.expovariate(per_second)) < seconds:
        who = draw.randrange(len(told))
        if not told[who] or draw.random() < 0.12:
            told[who] = text(f"conversation {draw.random()}", 150)
        told[who] += " " + text(f"turn {draw.random()}", draw.randint(30, 80))
        yield Ask(at, told[who], draw.randint(16, 48))


def mixed(draw: random.Random, seconds: float) -> Iterator[Ask]:
    """All of that, to calibrate with."""
    yield from questions(draw, seconds, 0.6)
    yield from bursts(draw, seconds, 12.0)
    yield from conversations(draw, seconds, 0.5)


TRAFFIC: tuple[Callable[[random.Random, float], Iterator[Ask]], ...] = (questions, bursts, conversations)


async def send(url: str, asks: list[Ask]) -> None:
    """All requests at their moments."""
    loop = asyncio.get_running_loop()
    start, tasks = loop.time() + 0.1, []
    for one in sorted(asks, key=lambda one: one.at):
        await asyncio.sleep(start + one.at - loop.time())
        body = {"prompt": one.prompt, "max_tokens": one.answer, "ignore_eos": True, "stream": True}
        tasks.append(asyncio.create_task(_ask(url, body)))
    await asyncio.gather(*tasks)


async def _ask(url: str, body: dict[str, object]) -> None:
    client = HttpClient(url)
    async for data in client.events("/v1/completions", json.dumps(body).encode()):
        assert b'"error"' not in data, data
    client.close()


def on_core(core: str, model: str, flags: Sequence[str], port: int) -> list[str]:
    """The command of a replica that runs on one core."""
    return ["taskset", "-c", core, *pagoda_command(model, port, *flags)]


def record(model: str, seconds: float, folder: Path) -> None:
    """Logs of each traffic, and of a calibration before each, by the same two replicas."""
    flags = ("--threads", "1", "--kv-memory", KV, "--speculation", "off", "--log-level", "warning")
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(partial(on_core, core, model, flags), "/ready")).url for core in ("0", "1")]
        for make in TRAFFIC:
            name = make.__name__
            _log(urls, folder / f"mixed-{name}.jsonl", list(mixed(random.Random(f"mixed {name}"), seconds / 3)))
            _log(urls, folder / f"{name}.jsonl", list(make(random.Random(name), seconds)))


def _log(urls: list[str], path: Path, asks: list[Ask]) -> None:
    with serving(lambda port: gateway_command(port, urls, "--request-log", str(path)), "/ready") as gate:
        asyncio.run(send(gate.url, asks))


def errors(folder: Path, model: str) -> float:
    """Print how far the simulation is from each log. → the largest error, as a share"""
    calibration = ",".join(str(path) for path in sorted(folder.glob("mixed*.jsonl")))
    command = [sys.executable, "-m", "pagoda", "plan", model, "--fleet-calibration", calibration, "--json"]
    command += ["--fleet-replicas", "2", "--ttft", "100000", "--fleet-kv-tokens", str(KV_TOKENS)]
    found: list[float] = []
    for make in TRAFFIC:
        log = folder / f"{make.__name__}.jsonl"
        told = subprocess.run(
            ["taskset", "-c", "0", *command, "--fleet", str(log)], check=True, stdout=subprocess.PIPE
        ).stdout
        report = json.loads(told)
        print(f"{make.__name__}: {sum(1 for line in log.open() if 'prompt_tokens' in line)} requests")
        for row in report["comparisons"]:
            found.append(row["predicted"] / row["logged"] - 1)
            predicted, logged = 1000 * row["predicted"], 1000 * row["logged"]
            print(f"  {row['figure']}: predicted {predicted:,.1f} ms, logged {logged:,.1f} ms, error {found[-1]:+.1%}")
    print(f"calibration: {report['calibration']}")
    print(f"{sum(abs(one) <= BAR for one in found)} of {len(found)} within {BAR:.0%}, worst {max(map(abs, found)):.1%}")
    return max(map(abs, found))


def main(model: str = "smollm2-135m", seconds: str = "120", named: str = "smollm2-135m") -> int:
    if model == "errors":
        return 0 if errors(Path(seconds), named) <= BAR else 1
    with tempfile.TemporaryDirectory() as folder:
        record(model, float(seconds), Path(folder))
        return 0 if errors(Path(folder), model) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
