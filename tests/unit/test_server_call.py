"""Layers around layers: who sees a call first, and who sees its deltas first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fake_engine import FakeTokenizer
from pagoda.server.answers import CompletionAnswer
from pagoda.server.call import Call, DeltaStream, Layer, Serve, fold
from pagoda.server.choice import AnswerOptions
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.prompts import Prompt
from pagoda.types import Delta, Request, SamplingParams, Usage


class Scripted:
    """A stream of given deltas."""

    def __init__(self, deltas: list[Delta]) -> None:
        self.deltas = deltas

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        for delta in self.deltas:
            yield [delta]

    def close(self) -> None: ...


def layer(name: str, seen: list[str]) -> Layer:
    async def run(call: Call, serve: Serve) -> DeltaStream:
        seen.append(f"{name} down")
        stream = await serve(call)
        seen.append(f"{name} up")
        return stream

    return run


def test_the_first_layer_is_the_outermost() -> None:
    seen: list[str] = []

    async def engine(call: Call) -> DeltaStream:
        seen.append("engine")
        return Scripted([])

    asyncio.run(fold([layer("a", seen), layer("b", seen)], engine)(Call("c", ())))
    assert seen == ["a down", "b down", "engine", "b up", "a up"]


def test_a_layer_may_answer_by_itself() -> None:
    async def cached(call: Call, serve: Serve) -> DeltaStream:
        return Scripted([Delta("c-0", 0, "hit", (1,))])

    async def engine(call: Call) -> DeltaStream:
        raise AssertionError("not asked")

    stream = asyncio.run(fold([cached], engine)(Call("c", ())))
    assert stream.deltas[0].text == "hit"  # type: ignore[attr-defined]


def test_streams_keep_nothing_of_what_they_have_sent() -> None:
    """A stream of a million tokens holds what one of ten does: what was sent is gone."""
    usage = Usage(1, 1000, 0)
    deltas = [Delta("c-0", 0, "x", (1,)) for _ in range(999)] + [
        Delta("c-0", 0, "x", (1,), None, "length", None, None, usage)
    ]
    call = Call("c", (Request("c-0", (1,), SamplingParams(), 0.0),))
    answer = CompletionAnswer(call, "m", [Prompt((1,))], AnswerOptions(), LogprobWriter(FakeTokenizer()))

    async def read() -> int:
        return sum([len(piece) async for piece in answer.events(Scripted(deltas))])

    assert asyncio.run(read()) > 1000
    (choice,) = answer.choices
    assert (choice.texts, choice.token_ids, choice.logprobs) == ([], [], [])
    assert answer.usage()["completion_tokens"] == 1000
