"""What goes wrong with stores while a server answers: no request fails, no tenant gets another's answer, and nothing is
lost that was acknowledged."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cache_parts import WordEmbedder, entry, unit
from cache_servers import crash_and_restart, free_port, postgres_handle, redis_server
from fake_engine import FakeLoaded
from pagoda.cache.cache import SemanticCache
from pagoda.cache.policy import Policy
from pagoda.cache.rules import Rules
from pagoda.cache.store import Selector, Store, StoreError
from pagoda.cache.stores import open_store
from pagoda.cache.stores.sqlite import SqliteStore
from pagoda.client import HttpClient
from serving import HANG_S, Served, serving, wait_for

KINDS = ("memory", "sqlite", "redis", "postgres")
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")  # a Redis that keeps what it has acknowledged


@contextmanager
def address_of(kind: str, folder: Path) -> Iterator[str]:
    """Of a store; a server where it needs one."""
    with ExitStack() as stack:
        if kind == "redis":
            yield stack.enter_context(redis_server(folder))[0]
        elif kind == "postgres":
            yield stack.enter_context(postgres_handle()).get_uri()
        else:
            yield kind if kind == "memory" else f"sqlite:{folder / 'answers.sqlite'}"


def body(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "stop_token_ids": [ord("?")], "temperature": 0}


@pytest.mark.parametrize("kind", ["sqlite", "redis", "postgres"])
def test_a_thousand_writers(kind: str, tmp_path: Path) -> None:
    """A hundred at once, ten times; each question is asked by two. All that was written is there, and nothing else."""

    async def ask_ten(url: str, first: int) -> None:
        client = HttpClient(url)
        for number in range(first, first + 10):
            asked = {"prompt": f"{number % 500}?", "stop_token_ids": [ord("?")], "max_tokens": 9, "temperature": 0}
            await client.post("/v1/completions", json.dumps(asked).encode())  # raises for any other status than 200
        client.close()

    async def ask_all(url: str) -> None:
        await asyncio.gather(*(ask_ten(url, 10 * place) for place in range(100)))

    with address_of(kind, tmp_path) as address:
        options: dict[str, Any] = {"cache_store": address, "cache_embedder": "none", "cache_budget": 10.0}
        with serving(FakeLoaded(), max_queue_requests=2000, **options) as served:
            caching = served.server.service.model().caching
            keep, acknowledged = caching.cache.keep, set()
            caching.cache.keep = lambda *args: acknowledged.add(keep(*args).question)
            asyncio.run(ask_all(served.url))
            caching._writer.submit(lambda: None).result(HANG_S)
            entries = list(caching.cache.store.entries(Selector()))
            assert caching.series.lost_writes.value == 0
    assert {one.question for one in entries} == acknowledged
    assert len(entries) > 400  # all 500, where lookups are not too slow on a busy machine
    assert all(one.answer.text == one.question.removeprefix("<bos>") for one in entries)


class Clients:
    """Two tenants that ask the same few questions again and again, until told to stop."""

    def __init__(self, served: Served) -> None:
        self.statuses: list[int] = []
        self.outcomes: list[str] = []
        self.given: defaultdict[str, set[str]] = defaultdict(set)  # ids of the entries that a tenant was given
        self._over = threading.Event()
        names = ("one", "two")
        self._threads = [threading.Thread(target=self._ask, args=(served.url, key, n)) for key in names for n in (0, 1)]
        for thread in self._threads:
            thread.start()

    def _ask(self, url: str, key: str, number: int) -> None:
        with httpx.Client(base_url=url, timeout=HANG_S, headers={"Authorization": f"Bearer {key}"}) as http:
            while not self._over.is_set():
                number = (number + 1) % 20
                answer = http.post("/v1/chat/completions", json=body(f"What is thing number {number}?"))
                self.statuses.append(answer.status_code)
                outcome = answer.headers.get("x-pagoda-cache", "")
                self.outcomes.append(outcome)
                if "id=" in outcome:
                    self.given[key].add(outcome.rpartition("id=")[2])

    def hits(self) -> int:
        return sum(outcome.startswith("hit") for outcome in list(self.outcomes))

    def wait_for(self, start: str, count: int) -> None:
        """Until so many more requests had this outcome."""
        before = len(self.outcomes)
        wait_for(lambda: sum(one.startswith(start) for one in self.outcomes[before:]) >= count)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(HANG_S)


@contextmanager
def under_load(address: str) -> Iterator[Clients]:
    options: dict[str, Any] = {"cache_store": address, "cache_embedder": "none", "cache_budget": 0.5}
    with serving(FakeLoaded(), api_keys=("one", "two"), **options) as served:
        clients = Clients(served)
        try:
            clients.wait_for("hit", 50)
            wait_for(lambda: all(clients.given[key] for key in ("one", "two")))
            yield clients
            clients.wait_for("hit", 50)
        finally:
            clients.stop()
        assert set(clients.statuses) == {200}
        one, two = clients.given["one"], clients.given["two"]
        assert one
        assert two
        assert not one & two, "a tenant was given another's answer"


def test_redis_dies_and_comes_back_under_load(tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        address, process = stack.enter_context(redis_server(tmp_path, port))
        clients = stack.enter_context(under_load(address))
        process.kill()
        process.wait(HANG_S)
        clients.wait_for("miss; store", 20)
        stack.enter_context(redis_server(tmp_path, port))


def test_postgres_dies_and_comes_back_under_load() -> None:
    with postgres_handle() as server, under_load(server.get_uri()):
        crash_and_restart(server)


def test_redis_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    port = free_port()
    with redis_server(tmp_path, port, *DURABLE) as (address, process):
        acknowledged = write_until(open_store(address, tmp_path), process.kill)
        process.wait(HANG_S)
    with redis_server(tmp_path, port, *DURABLE):
        store = open_store(address, tmp_path)
        check_all_there(store, acknowledged)
        store.close()


def test_postgres_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with postgres_handle() as server:
        store = open_store(server.get_uri(), tmp_path)
        acknowledged = write_until(store, lambda: crash_and_restart(server))
        check_all_there(store, acknowledged)
        store.close()


def write_until(store: Store, crash: Callable[[], None]) -> set[str]:
    """Four threads write until the store is gone. → questions whose writing was acknowledged"""
    acknowledged: set[str] = set()
    enough = threading.Event()

    def write(thread: int) -> None:
        for place in range(5000):
            question = f"{thread} {place}"
            try:
                store.put(entry(question, vector=unit(1, thread, place)))
            except StoreError:
                return
            acknowledged.add(question)
            if len(acknowledged) > 100:
                enough.set()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(HANG_S)
    crash()
    for thread in threads:
        thread.join()
    return acknowledged


def check_all_there(store: Store, questions: set[str]) -> None:
    """Entries and their vectors."""
    wait_for(lambda: is_there(store))
    kept = {one.question: one for one in store.entries(Selector())}
    assert questions <= set(kept)
    for question in list(questions)[:50]:
        vector = kept[question].vector
        assert vector is not None
        score, _ = store.nearest("p", "s", vector, 1)[0]
        assert score == pytest.approx(1.0, abs=0.01)  # Redis compares bytes


def is_there(store: Store) -> bool:
    try:
        return store.count(Selector()) > 0
    except StoreError:
        return False


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_corrupt_rows_are_dropped_and_others_served(kind: str, tmp_path: Path) -> None:
    with address_of(kind, tmp_path) as address:
        store: Any = open_store(address, tmp_path)
        for place, question in enumerate(("good", "bad body", "bad vector", "bad number")):
            store.put(entry(question, vector=unit(1, 0.1 * place)))
        for question, column, value in (
            ("bad body", "body", b"\x00\xff"),
            ("bad vector", "vector", b"\x00\x00\xc0\x7f" * 2),
            ("bad number", "tags", b"[1" if kind == "redis" else b'{"a": 1}'),
        ):
            spoil(store, kind, entry(question).key, column, value)
        assert next(one.question for _, one in store.nearest("p", "s", unit(1), 9)) == "good"
        left = {one.question for one in store.entries(Selector())}
        assert {"good"} <= left <= {"good", "bad number"}  # tags that are an object are a text for each of its keys
        assert {one.question for _, one in store.nearest("p", "s", unit(1), 9)} == left
        store.close()


def spoil(store: Any, kind: str, key: str, column: str, value: bytes) -> None:
    """Write something else into one column of an entry."""
    if kind == "redis":
        store._redis.hset(f"pagoda:e:{key}", column, value)
        return
    typed: Any = value.decode() if column == "tags" else value
    place = "%s::jsonb" if column == "tags" else "%s"
    store._db().execute(f"UPDATE pagoda_entries SET {column} = {place} WHERE key = %s", (typed, key))


class OtherEmbedder(WordEmbedder):
    """Another model: other vectors, of another width."""

    digest = "others"

    def embed(self, texts: Any) -> Any:
        vectors = super().embed(texts)[:, ::-2]
        return vectors / (vectors**2).sum(axis=1, keepdims=True) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_another_embedder_compares_nothing_with_what_the_first_one_kept(kind: str, tmp_path: Path) -> None:
    class Same:
        regions = ()

    with address_of(kind, tmp_path) as address:
        store = open_store(address, tmp_path)
        for embedder in (WordEmbedder(), OtherEmbedder()):
            cache = SemanticCache(store, embedder, Same(), Policy(Rules()))  # type: ignore[arg-type]
            vector = cache.embed("is rust iron ?")
            assert vector is not None
            assert store.nearest("p", embedder.digest, vector, 5) == []
            store.put(entry(f"kept by {embedder.digest}", vector=vector, space=embedder.digest))
            near = store.nearest("p", embedder.digest, vector, 5)
            assert [one.question for _, one in near] == [f"kept by {embedder.digest}"]
        assert store.count(Selector()) == 2
        store.close()


def test_a_full_disk_fails_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "answers.sqlite")
    cache = SemanticCache(store, None, None, Policy(Rules()))
    monkeypatch.setattr("pagoda.server.run.load_cache", lambda settings: cache)
    with serving(FakeLoaded(), cache_budget=5.0) as served:
        caching = served.server.service.model().caching

        def ask(number: int) -> str:
            question = f"What is thing number {number}? " + "Tell me all. " * 3
            answer = served.post("/v1/chat/completions", **body(question) | {"stop_token_ids": [ord("T")]})
            assert answer.status_code == 200
            caching._writer.submit(lambda: None).result(HANG_S)
            return str(answer.headers["x-pagoda-cache"])

        ask(0)
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count={pages + 2}")
        for number in range(1, 100):
            assert ask(number).startswith("miss")
        assert caching.series.lost_writes.value > 0
        kept = caching.series.writes.value
        assert store.count(Selector()) == kept
        assert ask(0).startswith("hit")  # what was acknowledged is there
        store._db.execute("PRAGMA max_page_count=100000")
        caching._writing.rests_until = 0.0
        ask(1000)
        assert ask(1000).startswith("hit")
