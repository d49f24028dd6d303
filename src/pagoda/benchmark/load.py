"""Load on an OpenAI-compatible server: a number of clients, each sending the next request when its last is answered.

Arrival times are noted while the load runs; answers are parsed after it, so that the generator costs little.
TTFT is the time to the first token, TPOT the mean time of each further token of an answer, ITL the single gaps
between chunks, E2E the whole answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson

from pagoda.benchmark.prompts import random_ids, random_text
from pagoda.benchmark.stats import spread
from pagoda.client import HttpClient, HttpError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a log: seconds after the first, and its lengths in tokens."""

    after_s: float
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and to whom. Lengths are in tokens, times in seconds."""

    url: str
    concurrency: int
    prompt: int
    output: int
    requests: int
    model: str
    vocab_size: int
    as_text: bool = False
    api_key: str | None = None
    seed: int = 0
    timeout: float = 600.0
    replay: tuple[Arrival, ...] = ()  # what to send and when, in place of equal requests one after the other
    speculation: bool = True  # False: ask the server to guess nothing ahead; only Pagoda knows that field

    def body(self, index: int) -> bytes:
        """The request of prompt `index`: greedy, exactly `output` tokens, streamed, with usage."""
        known = self.replay[index] if index < len(self.replay) else Arrival(0.0, self.prompt, self.output)
        if self.as_text:
            prompt: str | list[int] = random_text(self.seed, index, known.prompt)
        else:
            prompt = random_ids(self.seed, index, known.prompt, self.vocab_size)
        fields: dict[str, object] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": known.output,
            "temperature": 0,
        }
        if not self.speculation:  # and to find nothing that an answer with speculation has left behind
            fields |= {"speculation": {"enabled": False}, "cache_salt": "without speculation"}
        return orjson.dumps(
            fields | {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, "seed": 0}
        )


@dataclass(slots=True)
class Exchange:
    """One request as it went over the wire: when each event came, in time.perf_counter() seconds."""

    index: int
    started: float
    events: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed exchange: text, number of tokens and times in seconds."""

    index: int
    text: str
    prompt_tokens: int
    output_tokens: int
    ttft: float
    e2e: float
    gaps: tuple[float, ...]

    @property
    def tpot(self) -> float | None:
        return (self.e2e - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None


async def takes_ids(load: Load) -> bool:
    """Whether the server takes token ids as a prompt; warms it up by the way. HttpError for other refusals."""
    client = HttpClient(load.url, load.api_key)
    exchange = await _send(client, load, load.requests)
    client.close()
    if exchange.error and exchange.error.startswith("400"):
        return False
    if exchange.error:
        raise HttpError(f"{load.url}: {exchange.error}")
    return True


async def run_load(load: Load, progress: Callable[[int], None] = lambda done: None) -> tuple[list[Exchange], float]:
    """Send all requests. → the exchanges in order of their index, and the seconds from the first to the last."""
    if load.replay:
        return await _replay(load, progress)
    waiting = iter(range(load.requests))
    done: list[Exchange] = []

    async def client() -> None:
        connection = HttpClient(load.url, load.api_key)
        for index in waiting:
            done.append(await _send(connection, load, index))
            progress(len(done))
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(min(load.concurrency, load.requests))))
    return sorted(done, key=lambda exchange: exchange.index), time.perf_counter() - started


async def _replay(load: Load, progress: Callable[[int], None]) -> tuple[list[Exchange], float]:
    """Send each request at its moment, however many are still unanswered."""
    done: list[Exchange] = []
    started = time.perf_counter()

    async def one(index: int, arrival: Arrival) -> None:
        await asyncio.sleep(arrival.after_s - (time.perf_counter() - started))
        connection = HttpClient(load.url, load.api_key)
        done.append(await _send(connection, load, index))
        connection.close()
        progress(len(done))

    await asyncio.gather(*(one(index, arrival) for index, arrival in enumerate(load.replay)))
    return sorted(done, key=lambda exchange: exchange.index), time.perf_counter() - started


async def _send(client: HttpClient, load: Load, index: int) -> Exchange:
    body = load.body(index)
    exchange = Exchange(index, time.perf_counter())

    async def collect() -> None:
        async for data in client.events("/v1/completions", body):
            exchange.events.append((time.perf_counter(), data))

    try:
        await asyncio.wait_for(collect(), load.timeout)
    except HttpError as error:
        exchange.error = str(error)
    except (asyncio.TimeoutError, TimeoutError):
        exchange.error = f"no whole answer within {load.timeout:g} s"
    except OSError as error:
        exchange.error = f"connection failed: {error}"
    exchange.ended = time.perf_counter()
    return exchange


def parse(exchange: Exchange) -> Answer:
    """Read an exchange without error. Raises HttpError when it is not a streamed completion."""
    times, texts, usage = [], [], None
    for moment, data in exchange.events:
        event = _event(data)
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            text = choice.get("text") or ""
            texts.append(text)
            if text or choice.get("finish_reason") is None:
                times.append(moment)
    if not times:
        raise HttpError("an answer without any token")
    tokens = usage["completion_tokens"] if usage else len(times)
    return Answer(
        index=exchange.index,
        text="".join(texts),
        prompt_tokens=usage["prompt_tokens"] if usage else 0,
        output_tokens=tokens,
        ttft=times[0] - exchange.started,
        e2e=times[-1] - exchange.started,
        gaps=tuple(later - earlier for earlier, later in pairwise(times)),
    )


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise HttpError(f"an event that is not JSON: {data[:80]!r}") from None
    if not isinstance(event, dict) or "error" in event:
        raise HttpError(f"an error in the stream: {data[:200].decode(errors='replace')}")
    return event


def parse_all(exchanges: list[Exchange]) -> tuple[list[Answer], Counter[str]]:
    """Answers of the exchanges that went well, and the errors of the others."""
    answers, errors = [], Counter[str]()
    for exchange in exchanges:
        try:
            if exchange.error:
                raise HttpError(exchange.error)
            answers.append(parse(exchange))
        except HttpError as error:
            errors[str(error)] += 1
    return answers, errors


def summarize(
    load: Load, exchanges: list[Exchange], seconds: float, slo_ttft: float | None, slo_tpot: float | None
) -> dict[str, Any]:
    """The report. `slo_ttft` and `slo_tpot` are in milliseconds; goodput counts the answers that meet both."""
    answers, errors = parse_all(exchanges)
    output_tokens = sum(answer.output_tokens for answer in answers)
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    good = [answer for answer in answers if _meets(answer, slo_ttft, slo_tpot)]
    stated = slo_ttft is not None or slo_tpot is not None
    return {
        "url": load.url,
        "model": load.model,
        "concurrency": load.concurrency,
        "prompt": load.prompt,
        "output": load.output,
        "requests": load.requests,
        "completed": len(answers),
        "errors": dict(errors),
        "duration_s": round(seconds, 3),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "request_s": round(len(answers) / seconds, 3),
        "output_tok_s": round(output_tokens / seconds, 2),
        "total_tok_s": round((prompt_tokens + output_tokens) / seconds, 2),
        "ttft_ms": spread(answer.ttft for answer in answers),
        "tpot_ms": spread(answer.tpot for answer in answers if answer.tpot is not None),
        "itl_ms": spread(gap for answer in answers for gap in answer.gaps),
        "e2e_ms": spread(answer.e2e for answer in answers),
        "slo": {"ttft_ms": slo_ttft, "tpot_ms": slo_tpot} if stated else None,
        "goodput_request_s": round(len(good) / seconds, 3) if stated else None,
    }


def _meets(answer: Answer, slo_ttft: float | None, slo_tpot: float | None) -> bool:
    late = slo_ttft is not None and 1000 * answer.ttft > slo_ttft
    slow = slo_tpot is not None and answer.tpot is not None and 1000 * answer.tpot > slo_tpot
    return not late and not slow


def compare(ours: list[Exchange], theirs: list[Exchange]) -> dict[str, Any]:
    """How many prompts both servers answered with the same text, and the indices of those that differ."""
    left, right = ({answer.index: answer.text for answer in parse_all(side)[0]} for side in (ours, theirs))
    both = sorted(left.keys() & right.keys())
    different = [index for index in both if left[index] != right[index]]
    return {"compared": len(both), "equal": len(both) - len(different), "different": different}
