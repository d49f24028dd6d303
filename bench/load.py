"""Soak: 64 streaming clients of mixed lengths for a minute against a server of its own; exits with 1 if it breaks.

    python bench/load.py [MODEL] [--seconds 60] [--clients 64] [--vocabulary 32000] [--no-chats]

First each request of a fixed catalogue is answered alone, by a server without prefix cache that runs one sequence
at a time. Then another server's KV cache is filled once, so that what grows after that is a leak. Then clients draw
from the catalogue at random, all at once, and now and then hang up in the middle. What must hold: no error; every
answer equal to the one it got alone, token for token, greedy or seeded; afterwards all KV blocks free; the process no
larger at the end than when it had warmed up; KV slots wasted below 4 % on average.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pagoda.benchmark.prompts import random_ids, random_text
from pagoda.client import HttpClient, HttpError
from pagoda.types import BLOCK_SIZE
from servers import Server, pagoda_command, serving

SHORTEST_PROMPT = 16  # tokens
SHARED = (0.22, 0.37, 0.53)  # of the longest prompt: common beginnings
OUTPUT_TOKENS = (1, 128)
HANG_UP = 0.05  # share of requests whose client goes away in the middle
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
LONGEST_PROMPT = 900
MAX_WASTE = 0.04  # with prompts of up to LONGEST_PROMPT
MAX_GROWTH = 0.02  # of the resident size, from the second quarter of the run to the last
SETTLE_SECONDS = 10.0

Answer = tuple[str, tuple[int, ...], str | None]  # text, token ids, finish reason


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of the catalogue."""

    path: str
    body: dict[str, Any]

    def encoded(self, model: str) -> bytes:
        return json.dumps({"model": model, "stream": True, "return_token_ids": True} | self.body).encode()


def catalogue(options: argparse.Namespace) -> list[Entry]:
    """Requests of mixed lengths: half greedy, half seeded; a quarter share a long beginning, and where the model has a
    template a quarter are chats, of which every second one answers to a JSON schema."""
    source = random.Random(options.seed)
    return [_entry(source, index, options) for index in range(options.entries)]


def _entry(source: random.Random, index: int, told: argparse.Namespace) -> Entry:
    length = _log_uniform(source, SHORTEST_PROMPT, told.longest_prompt)
    options: dict[str, Any] = {"max_tokens": _log_uniform(source, *OUTPUT_TOKENS), "ignore_eos": source.random() < 0.7}
    options |= {"temperature": 0} if index % 2 else _sampled(source, index)
    kind = index % 4
    if kind == 0 and told.chats:
        text = random_text(told.seed, index, length)
        if index % 8:
            options["response_format"] = {"type": "json_schema", "json_schema": {"name": "tags", "schema": SCHEMA}}
            options["ignore_eos"] = False
        return Entry("/v1/chat/completions", options | {"messages": [{"role": "user", "content": text}]})
    ids = random_ids(told.seed, index, length, told.vocabulary)
    if kind == 1:
        shared = int(told.longest_prompt * source.choice(SHARED))
        ids = random_ids(told.seed, 0, shared, told.vocabulary) + ids[: length // 2]
    return Entry("/v1/completions", options | {"prompt": ids})


def _sampled(source: random.Random, index: int) -> dict[str, Any]:
    """A seeded request; every second one uses the rarer knobs too."""
    options: dict[str, Any] = {"temperature": round(source.uniform(0.5, 1.3), 2), "seed": index}
    if index % 4 == 0:
        options |= {"top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "presence_penalty": 0.3}
    return options


def _log_uniform(source: random.Random, low: int, high: int) -> int:
    return int(low * (high / low) ** source.random() + 0.5)


async def ask(client: HttpClient, entry: Entry, model: str, hang_up_after: int | None = None) -> Answer | None:
    """The streamed answer; None if the client hung up after so many events. HttpError if the server failed."""
    texts: list[str] = []
    ids: list[int] = []
    reason: str | None = None
    events = client.events(entry.path, entry.encoded(model))
    number = 0
    async for data in events:
        event = json.loads(data)
        if "error" in event:
            raise HttpError(f"an error in the stream: {event['error']}")
        for choice in event.get("choices", ()):
            texts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
            ids += choice.get("token_ids") or ()
            reason = choice.get("finish_reason") or reason
        number += 1
        if number == hang_up_after:
            client.close()
            return None
    if reason is None:
        raise HttpError("a stream without finish_reason")
    return "".join(texts), tuple(ids), reason


async def answers_alone(url: str, model: str, entries: list[Entry]) -> list[Answer]:
    client = HttpClient(url)
    answers = []
    for entry in entries:
        answer = await ask(client, entry, model)
        assert answer is not None
        answers.append(answer)
        _progress(f"alone: {len(answers)} of {len(entries)}")
    client.close()
    return answers


async def fill_cache(server: Server, model: str, length: int, vocabulary: int) -> None:
    """Have every KV block written once: the OS gives the pool its memory when it is first touched."""
    client = HttpClient(server.url)
    num_tokens = int(server.metrics()["pagoda_kv_blocks_total"]) * BLOCK_SIZE
    assert num_tokens > 0
    for index in range(num_tokens // length + 1):
        prompt = random_ids(-1, index, length, vocabulary)
        await ask(client, Entry("/v1/completions", {"prompt": prompt, "max_tokens": 1}), model)
        _progress(f"fill: {index * length} of {num_tokens} tokens")
    client.close()


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    right: int = 0
    hung_up: int = 0
    wrong: Counter[int] = field(default_factory=Counter)  # by catalogue number
    errors: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


async def client_loop(
    url: str, model: str, entries: list[Entry], alone: list[Answer], source: random.Random, until: float, tally: Tally
) -> None:
    """One client: ask for entries drawn at random until the time is up, and judge each answer."""
    client = HttpClient(url)
    while time.monotonic() < until:
        index = source.randrange(len(entries))
        hang_up_after = source.randint(1, 20) if source.random() < HANG_UP else None
        try:
            answer = await ask(client, entries[index], model, hang_up_after)
        except (HttpError, OSError) as error:
            tally.errors[str(error)] += 1
            continue
        if answer is None:
            tally.hung_up += 1
        elif answer == alone[index]:
            tally.right += 1
            tally.tokens += len(answer[1])
        else:
            tally.wrong[index] += 1
    client.close()


@dataclass(slots=True)
class Samples:
    """The server once a second, under load."""

    rss: list[int] = field(default_factory=list)
    series: list[dict[str, float]] = field(default_factory=list)

    async def take(self, server: Server, until: float) -> None:
        while time.monotonic() < until:
            self.rss.append(server.rss())
            self.series.append(await asyncio.to_thread(server.metrics))
            _progress(f"load: {until - time.monotonic():.0f} s left, {_running(self.series[-1])}")
            await asyncio.sleep(1)

    def growth(self) -> float:
        """Share by which the process grew from the second quarter of the run to the last."""
        quarter = max(len(self.rss) // 4, 1)
        return statistics.median(self.rss[-quarter:]) / statistics.median(self.rss[quarter : 2 * quarter]) - 1

    def waste(self) -> float:
        """Share of used KV slots that held no token, mean over the samples, weighted by the blocks used."""
        used = [(s["pagoda_kv_blocks_used"], s["pagoda_kv_cache_waste_ratio"]) for s in self.series]
        return sum(blocks * waste for blocks, waste in used) / max(sum(blocks for blocks, _ in used), 1)


async def soak(
    server: Server, model: str, entries: list[Entry], alone: list[Answer], options: argparse.Namespace
) -> tuple[Tally, Samples, dict[str, float]]:
    await fill_cache(server, model, options.longest_prompt, options.vocabulary)
    tally, samples = Tally(), Samples()
    until = time.monotonic() + options.seconds
    sources = [random.Random(options.seed * 1000 + number) for number in range(options.clients)]
    loops = [client_loop(server.url, model, entries, alone, source, until, tally) for source in sources]
    await asyncio.gather(samples.take(server, until), *loops)
    return tally, samples, await settled(server)


async def settled(server: Server) -> dict[str, float]:
    """The series once nothing runs; after SETTLE_SECONDS as they then are."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        series = server.metrics()
        if not _busy(series) or time.monotonic() > deadline:
            return series
        await asyncio.sleep(0.2)


def _busy(series: dict[str, float]) -> bool:
    names = ("pagoda_num_requests_running", "pagoda_num_requests_waiting", "pagoda_kv_blocks_used")
    return any(series[name] > 0 for name in names)


def _running(series: dict[str, float]) -> str:
    return f"{series['pagoda_num_requests_running']:.0f} running, {series['pagoda_num_requests_waiting']:.0f} waiting"


def report(tally: Tally, samples: Samples, after: dict[str, float], seconds: float, longest: int) -> dict[str, Any]:
    return {
        "answers_equal": tally.right,
        "answers_different": sum(tally.wrong.values()),
        "different_entries": sorted(tally.wrong),
        "hung_up": tally.hung_up,
        "errors": dict(tally.errors),
        "output_tok_s": round(tally.tokens / seconds, 1),
        "most_running": max(s["pagoda_num_requests_running"] for s in samples.series),
        "preemptions": after["pagoda_num_preemptions_total"],
        "prefix_hit_rate": round(
            after["pagoda_prefix_cache_hits_total"] / after["pagoda_prefix_cache_queries_total"], 3
        ),
        "kv_waste": round(samples.waste(), 4),
        "kv_waste_allowed": round(MAX_WASTE * LONGEST_PROMPT / longest, 4),
        "kv_blocks_total": after["pagoda_kv_blocks_total"],
        "kv_blocks_used_afterwards": after["pagoda_kv_blocks_used"],
        "rss_mib": [round(value / 2**20, 1) for value in samples.rss],
        "rss_growth": round(samples.growth(), 4),
    }


CHECKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "some answers came": lambda r: r["answers_equal"] > 0,
    "no error": lambda r: not r["errors"],
    "every answer equals the one alone": lambda r: r["answers_different"] == 0,
    "all KV blocks are free afterwards": lambda r: r["kv_blocks_used_afterwards"] == 0,
    "little KV waste": lambda r: r["kv_waste"] < r["kv_waste_allowed"],
    f"memory grew by less than {MAX_GROWTH:.0%}": lambda r: r["rss_growth"] < MAX_GROWTH,
}


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}\x1b[K")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--entries", type=int, default=64, help="requests in the catalogue")
    parser.add_argument("--kv-memory", default="384MiB", help="small enough that it fills and sequences are preempted")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="prompts are of token ids below")
    parser.add_argument(
        "--longest-prompt", type=int, default=LONGEST_PROMPT, help="tokens; answers have up to 128 more"
    )
    parser.add_argument("--chats", action=argparse.BooleanOptionalAction, default=True, help="models with a template")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve-flags", default="", help="further flags for both servers, as one string")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    entries = catalogue(options)
    flags = options.serve_flags.split()

    def alone_server(port: int) -> list[str]:
        return pagoda_command(options.model, port, "--no-prefix-caching", "--max-num-seqs", "1", *flags)

    def server(port: int) -> list[str]:
        return pagoda_command(options.model, port, "--max-num-seqs", "64", "--kv-memory", options.kv_memory, *flags)

    with serving(alone_server, "/ready") as running:
        model = _model_name(running)
        alone = asyncio.run(answers_alone(running.url, model, entries))
    with serving(server, "/ready") as running:
        seen = asyncio.run(soak(running, model, entries, alone, options))
        result = report(*seen, options.seconds, options.longest_prompt)
    print("\n" + json.dumps(result, indent=2))
    passed = {name: check(result) for name, check in CHECKS.items()}
    print("\n".join(f"{'ok  ' if good else 'FAIL'} {name}" for name, good in passed.items()))
    sys.exit(0 if all(passed.values()) else 1)


def _model_name(server: Server) -> str:
    client = HttpClient(server.url)
    return str(json.loads(asyncio.run(client.get("/v1/models")))["data"][0]["id"])


if __name__ == "__main__":
    main()
