"""Bodies of every length are read alike, wherever that happens; and the event loop never waits for one.

The class of inputs: whatever a client can make long. Prompts, messages, many messages, lists of ids, many prompts,
many fields, stop strings, words, names of control tokens, one long word, /tokenize and /detokenize.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest

from fake_engine import FakeLoaded, FakeTemplate, fake_text
from pagoda.errors import RequestError
from pagoda.server import readers as places
from pagoda.server.failures import DescribedError
from pagoda.server.readers import INLINE_BYTES, PROCESS_BYTES, THREAD_BYTES, Readers
from pagoda.server.reading import Reader, ReaderLimits, Reading
from serving import HANG_S, serving, wait_for

LIMITS = ReaderLimits("fake", 512, 10_000)
MESSAGE = {"role": "user", "content": "Hi"}


def slow_text() -> Any:
    time.sleep(0.5)
    return fake_text()


def broken_text() -> Any:
    raise SystemExit(3)


def make(load: Any = fake_text) -> Readers:
    return Readers(Reader(fake_text(), LIMITS), load, LIMITS)


def padded(size: int, **body: Any) -> bytes:
    """The body with blanks behind it, `size` bytes in all."""
    return orjson.dumps(body).ljust(size)


@pytest.mark.parametrize("size", [100, INLINE_BYTES + 1, THREAD_BYTES + 1, PROCESS_BYTES + 1])
def test_the_place_does_not_matter(size: int) -> None:
    async def scenario() -> None:
        readers = make()
        try:
            reading = await readers.read("chat", padded(size, messages=[MESSAGE], max_tokens=7, stream=True))
            assert isinstance(reading, Reading)
            assert bytes(reading.prompts[0].ids).decode() == "user: Hi\n> "
            assert reading.messages == (MESSAGE,)
            assert (reading.spec.params.max_tokens, reading.spec.stream) == (7, True)
            with pytest.raises((RequestError, DescribedError), match="top_logprobs"):
                await readers.read("chat", padded(size, messages=[MESSAGE], top_logprobs=3))
            assert orjson.loads(await readers.read("tokenize", padded(size, prompt="ab")))["tokens"] == [256, 97, 98]
            text = orjson.loads(await readers.read("detokenize", padded(size, tokens=[97, 98])))
            assert text == {"prompt": "ab", "content": "ab"}
        finally:
            readers.close()

    asyncio.run(scenario())


def test_many_at_once_come_back_to_who_asked() -> None:
    async def scenario() -> None:
        readers = make()
        bodies = [padded(THREAD_BYTES + 1, prompt=[i], max_tokens=1) for i in range(200)]
        try:
            readings = await asyncio.gather(*(readers.read("completion", body) for body in bodies))
            assert [reading.prompts[0].ids for reading in readings] == [(i,) for i in range(200)]
        finally:
            readers.close()

    asyncio.run(scenario())


def test_who_has_gone_gives_up_its_place() -> None:
    async def scenario() -> None:
        readers = make(slow_text)
        body = padded(THREAD_BYTES + 1, prompt=[1], max_tokens=1)
        try:
            tasks = [asyncio.ensure_future(readers.read("completion", body)) for _ in range(3)]
            await asyncio.sleep(0.05)
            tasks[0].cancel()
            tasks[1].cancel()
            assert (await tasks[2]).prompts[0].ids == (1,)
        finally:
            readers.close()

    asyncio.run(scenario())


def test_a_process_that_ends_fails_one_body_and_is_replaced() -> None:
    async def scenario() -> None:
        readers = make(broken_text)
        body = padded(THREAD_BYTES + 1, prompt=[1], max_tokens=1)
        try:
            with pytest.raises(DescribedError) as caught:
                await readers.read("completion", body)
            assert caught.value.status == 503
            readers._lanes[0]._setup = (fake_text, LIMITS)
            assert (await readers.read("completion", body)).prompts[0].ids == (1,)
        finally:
            readers.close()

    asyncio.run(scenario())


def test_a_body_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "READ_S", 0.0)

    async def scenario() -> None:
        readers = make()
        try:
            with pytest.raises(DescribedError, match="within 0 s"):
                await readers.read("completion", padded(THREAD_BYTES + 1, prompt=[1], max_tokens=1))
        finally:
            readers.close()

    asyncio.run(scenario())


def test_a_process_that_is_not_waited_for_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    class Begun(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            begun.append(self)

    async def given_up(**kwargs: Any) -> Any:
        raise asyncio.CancelledError

    monkeypatch.setattr(places.subprocess, "Popen", Begun)
    monkeypatch.setattr(places.asyncio, "open_connection", given_up)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(places.ReaderProcess.start((fake_text, LIMITS)))
    assert begun[0].returncode is not None


def test_an_idle_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "IDLE_S", 0.05)

    async def scenario() -> None:
        readers = make()
        await readers.read("completion", padded(THREAD_BYTES + 1, prompt=[1], max_tokens=1))
        worker = readers._lanes[0]._worker
        assert worker is not None
        await asyncio.wait_for(worker, HANG_S)
        assert (await readers.read("completion", padded(THREAD_BYTES + 1, prompt=[1], max_tokens=1))).prompts
        readers.close()

    asyncio.run(scenario())


LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "a prompt": ("completion", {"prompt": "word " * 1_400_000}),
    "one word": ("completion", {"prompt": "a" * 7_000_000}),
    "control tokens": ("completion", {"prompt": "<eos>" * 1_400_000}),
    "a list of ids": ("completion", {"prompt": [1] * 2_000_000}),
    "many prompts": ("completion", {"prompt": ["a"] * 1_500_000}),
    "many lists": ("completion", {"prompt": [[1]] * 1_500_000}),
    "a message": ("chat", {"messages": [{"role": "user", "content": "word " * 1_400_000}]}),
    "many messages": ("chat", {"messages": [{"role": "user", "content": "a"}] * 200_000}),
    "many parts": ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 250_000}]}),
    "many fields": ("chat", {f"f{i}": 1 for i in range(600_000)}),
    "many stop strings": ("completion", {"prompt": "a", "stop": [f"s{i}" for i in range(600_000)]}),
    "a long stop string": ("completion", {"prompt": "a", "stop": "s" * 7_000_000}),
    "many bad words": ("completion", {"prompt": "a", "bad_words": [f"s{i}" for i in range(600_000)]}),
    "a long bad word": ("completion", {"prompt": "a", "bad_words": ["s" * 7_000_000]}),
    "many biases": ("completion", {"prompt": "a", "logit_bias": {f"{i:07d}": 1 for i in range(500_000)}}),
    "a text to tokenize": ("tokenize", {"prompt": "word " * 1_400_000}),
    "ids to detokenize": ("detokenize", {"tokens": [300] * 1_500_000}),
}


@pytest.mark.parametrize("name", LONG)
def test_what_is_too_long_is_refused(name: str) -> None:
    kind, body = LONG[name]
    with pytest.raises((RequestError, ValueError)):
        Reader(fake_text(), LIMITS).read(kind, orjson.dumps(body))


def test_bodies_wait_while_health_is_asked() -> None:
    """The longest bodies at once, in the place of their length: /health is answered before any of them."""
    body = orjson.dumps({"prompt": "word " * 100_000, "truncate_prompt_tokens": 3, "max_tokens": 2})
    loaded = FakeLoaded(load_text=slow_text)
    with serving(loaded) as served:
        answered: list[int] = []

        async def scenario() -> None:
            async def ask() -> None:
                reader, writer = await asyncio.open_connection(*served.url.removeprefix("http://").split(":"))
                head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                answered.append(int((await reader.readline()).split()[1]))
                writer.close()

            asking = [asyncio.ensure_future(ask()) for _ in range(10)]
            await asyncio.sleep(0.1)
            health = await asyncio.to_thread(served.client.get, "/health")
            assert health.status_code == 200
            assert answered == []
            await asyncio.gather(*asking)

        asyncio.run(scenario())
        assert answered == [200] * 10
        wait_for(lambda: not loaded.engine.running)


class WaitingTemplate(FakeTemplate):
    """Renders when it is let: what a model's template does at first may take long, however short the conversation."""

    def __init__(self) -> None:
        super().__init__()
        self.num_begun = 0
        self.gate = threading.Event()

    def render_ids(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        self.num_begun += 1
        self.gate.wait()
        return super().render_ids(messages, **options)


def test_templates_keep_nobody_waiting() -> None:
    template = WaitingTemplate()
    with serving(FakeLoaded(chat_template=template)) as served, ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(served.ok, "/v1/chat/completions", messages=[MESSAGE], max_tokens=2) for _ in range(50)]
        wait_for(lambda: template.num_begun)
        assert served.client.get("/health").status_code == 200
        assert served.ok("/v1/completions", prompt="abc", max_tokens=2)["choices"][0]["text"] == "a"
        assert served.ok("/v1/completions", prompt="abc" * 1000, max_tokens=2, truncate_prompt_tokens=3)
        assert not any(chat.done() for chat in asked)
        template.gate.set()
        assert {chat.result()["choices"][0]["message"]["content"] for chat in asked} == {"us"}


@pytest.mark.parametrize("size", [100, INLINE_BYTES + 1, THREAD_BYTES + 1, PROCESS_BYTES + 1])
def test_a_refusal_is_logged_alike_wherever_it_was_read(size: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pagoda.request"), serving(FakeLoaded()) as served:
        response = served.client.post("/v1/completions", content=padded(size, prompt="a", max_tokens=-2))
        wait_for(lambda: [r for r in caplog.records if r.name == "pagoda.request"])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"
    assert response.headers["x-request-id"]
    (record,) = [r for r in caplog.records if r.name == "pagoda.request"]
    assert record.facts["status"] == 400  # type: ignore[attr-defined]
