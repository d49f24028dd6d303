"""What a grammar costs while tokens are decoded: the same requests with and without, in pairs, on one server.

    [LLAMA_CPP_BIN=…] python bench/constraints.py [MODEL] [--tokens 96] [--rounds 3] [--streams 1 16] [--skip-llama]

Every answer has exactly as many tokens: free ones go on past their end, constrained ones are arrays that may not end.
Two grammars: `any` JSON values, of which little is forced, and `people`, objects whose keys are. A round is free,
constrained, constrained, free. Speed is of decoding alone: tokens after the first by the time since the first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Any

import orjson

from llama import Llama
from pagoda.client import HttpClient
from pagoda.sources import resolve
from servers import pagoda_command, serving

CONTEXT = 1024
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "minLength": 1},
        "languages": {"type": "array", "items": {"enum": ["en", "de", "fr", "ja"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "city", "languages"],
    "additionalProperties": False,
}
VALUE = {"anyOf": [{"type": kind} for kind in ("object", "array", "string", "number", "boolean")]}
GRAMMARS = {
    "any": {"type": "array", "items": VALUE, "minItems": 500},
    "people": {"type": "array", "items": PERSON, "minItems": 500},
}


def body(stream: int, tokens: int, schema: dict[str, Any] | None) -> bytes:
    question = f"List number {stream}: write a long JSON array about people of {stream + 1} countries."
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0.7,
        "seed": stream,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if schema is not None:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    return orjson.dumps(fields)


async def one(url: str, request: bytes) -> float:
    """Seconds a token, of those after the first."""
    client = HttpClient(url)
    first = last = 0.0
    num_tokens = 0
    try:
        async for data in client.events("/v1/chat/completions", request):
            event = orjson.loads(data)
            if "error" in event:
                raise SystemExit(f"{url}: {event['error']}")
            if event.get("choices"):
                last = time.perf_counter()
                first = first or (last if event["choices"][0]["delta"].get("content") else 0.0)
            num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
    finally:
        client.close()
    return (last - first) / (num_tokens - 1)


async def decode_speed(url: str, streams: int, tokens: int, schema: dict[str, Any] | None) -> float:
    """Tokens a second of all streams together."""
    each = await asyncio.gather(*(one(url, body(stream, tokens, schema)) for stream in range(streams)))
    return streams / statistics.mean(each)


async def measure(name: str, url: str, arguments: argparse.Namespace) -> None:
    for streams in arguments.streams:
        for grammar, schema in GRAMMARS.items():
            await decode_speed(url, streams, 8, schema)  # compiles it, and computes the prompts
            ratios, speeds = [], []
            for _ in range(arguments.rounds):
                order = (None, schema, schema, None)
                a, b, c, d = [await decode_speed(url, streams, arguments.tokens, which) for which in order]
                ratios.append((b + c) / (a + d))
                speeds.append((a + d) / 2)
            free = statistics.median(speeds)
            shown = " ".join(f"{ratio:.3f}" for ratio in ratios)
            print(
                f"{name}, {streams} streams, {grammar}: {free:.1f} tokens/s free, constrained "
                f"{statistics.median(ratios):.3f} of that ({shown})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--skip-llama", action="store_true")
    arguments = parser.parse_args()
    model: Path = resolve(arguments.model).path
    most = max(arguments.streams)
    flags = ("--max-context", str(CONTEXT), "--max-num-seqs", str(most))
    with serving(lambda port: pagoda_command(model, port, *flags), "/ready") as server:
        asyncio.run(measure("pagoda", server.url, arguments))
    if arguments.skip_llama:
        return
    llama = Llama.require(len(os.sched_getaffinity(0)))
    command = lambda port: [*llama.server_command(model, port, most, most * CONTEXT), "--jinja"]  # noqa: E731
    with serving(command, "/health") as server:
        asyncio.run(measure("llama-server", server.url, arguments))


if __name__ == "__main__":
    main()
