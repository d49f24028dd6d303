"""`pagoda gateway` before two replicas with the real default model, in processes of their own."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateways import Gated, gating
from pagoda.gateway.settings import UpstreamSettings
from serving import HANG_S, Process, process, wait_for

LIMITS = ("--max-num-seqs", "2", "--threads", "1", "--kv-memory", "100MiB")
STORY = "The lighthouse keeper wrote down every ship that passed. " * 40


@pytest.fixture
def replicas(default_model: Path, tmp_path: Path) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        yield [stack.enter_context(process(default_model, tmp_path / name, *LIMITS)) for name in ("a", "b")]


def rows(replicas: list[Process]) -> list[UpstreamSettings]:
    return [UpstreamSettings(str(one.client.base_url), name) for one, name in zip(replicas, ("a", "b"), strict=True)]


def test_conversations_find_their_prefix(replicas: list[Process]) -> None:
    with gating(*rows(replicas)) as gated:
        for number in range(4):
            messages = [{"role": "user", "content": f"{number}: {STORY} Why?"}]
            body: dict[str, Any] = {"messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            first = gated.client.post("/v1/chat/completions", json=body)
            answer = first.json()["choices"][0]["message"]
            body["messages"] = [*messages, answer, {"role": "user", "content": "And then?"}]
            second = gated.client.post("/v1/chat/completions", json=body)
            assert second.headers["x-pagoda-upstream"] == first.headers["x-pagoda-upstream"]
            usage = second.json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] > 0.9 * first.json()["usage"]["prompt_tokens"]
        sent = gated.gateway.metrics.gateway.requests.values
        assert {(name, why): count for (name, why), count in sent.items() if why == "load"} == {
            ("a", "load"): 2,
            ("b", "load"): 2,
        }


def test_a_hit_of_the_cache_asks_no_replica(replicas: list[Process]) -> None:
    with gating(*rows(replicas), cache_store="memory", cache_embedder="none", cache_budget=5) as gated:
        fresh = gated.chat("What is the capital of France?", max_tokens=16)
        gated.kept()
        again = gated.chat("what is the capital of france", max_tokens=16)
        assert again.headers["x-pagoda-cache"].startswith("hit")
        assert again.json()["choices"][0]["message"] == fresh.json()["choices"][0]["message"]


@dataclass
class Client:
    """One stream: when its first token came, when it ended, and with what."""

    first: float | None = None
    ended: float = 0.0
    finish: str | None = None
    error: dict[str, Any] | None = None
    texts: list[str] = field(default_factory=list)

    def run(self, gated: Gated, number: int) -> None:
        body = {"prompt": f"{number}: Once upon a time", "max_tokens": 100, "ignore_eos": True, "temperature": 0}
        with (
            httpx.Client(base_url=gated.url, timeout=HANG_S) as client,
            client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.take(json.loads(line.removeprefix("data: ")))
        self.ended = time.monotonic()

    def take(self, event: dict[str, Any]) -> None:
        self.error = event.get("error")
        for choice in event.get("choices", ()):
            self.first = self.first or time.monotonic()
            self.texts.append(choice["text"])
            self.finish = choice["finish_reason"] or self.finish


def test_a_replica_killed_under_load(replicas: list[Process]) -> None:
    """Who had no token is answered by the other; who had some gets an error."""
    with gating(*rows(replicas)) as gated:
        clients = [Client() for _ in range(12)]
        threads = [threading.Thread(target=one.run, args=(gated, number)) for number, one in enumerate(clients)]
        for thread in threads:
            thread.start()
        busy = gated.gateway.metrics.gateway.requests.values
        wait_for(lambda: sum(busy.values()) == 12 and sum(one.first is not None for one in clients) >= 3)
        killed = time.monotonic()
        replicas[0].popen.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(HANG_S)
        failed = [one for one in clients if one.error is not None]
        for one in failed:
            assert one.first is not None
            assert one.ended - killed < HANG_S  # 0.1 s on a quiet machine; the gateway waits 600 s for who is silent
            assert one.error is not None
            assert one.error["code"] == "upstream_failed"
        whole = [one for one in clients if one.error is None]
        assert all(one.finish == "length" for one in whole)
        assert len(failed) <= 2, "a replica runs two at once: the others had no token"
        assert len(whole) + len(failed) == 12
        assert gated.gateway.metrics.gateway.failures.values.get(("a", "early"), 0) > 0
        assert [one.healthy for one in gated.gateway.router.replicas] == [False, True]
