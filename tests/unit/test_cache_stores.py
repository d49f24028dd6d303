"""Every store keeps the promises of `pagoda.cache.store`: one test against memory, SQLite and the real servers."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_parts import WIDTH, entry, unit
from cache_servers import free_port, postgres_server, redis_server
from pagoda.cache.store import Selector, Store, StoreError
from pagoda.cache.stores import open_store
from pagoda.cache.stores.sqlite import SqliteStore
from pagoda.crypt import Cipher
from pagoda.errors import ConfigError
from serving import HANG_S
from sqlite_connections import connections, is_closed

Open = Callable[[], Store]
KINDS = ("memory", "sqlite", "redis", "postgres")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Addresses of servers, each started when it is asked for first."""
    addresses: dict[str, str] = {}
    with ExitStack() as stack:

        def address(kind: str) -> str:
            if kind not in addresses:
                folder = tmp_path_factory.mktemp(kind)
                if kind == "redis":
                    addresses[kind] = stack.enter_context(redis_server(folder))[0]
                else:
                    addresses[kind] = stack.enter_context(postgres_server())
            return addresses[kind]

        yield address


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path, servers: Callable[[str], str]) -> Iterator[Open]:
    """Opens the store, the same one each time; it is empty at first."""
    kind = request.param
    address = servers(kind) if kind in ("redis", "postgres") else kind
    first = open_store(address, tmp_path)
    first.delete(Selector())
    stores = [first]

    def again() -> Store:
        if kind != "memory":
            stores.append(open_store(address, tmp_path))
        return stores[-1]

    yield again
    first.delete(Selector())
    for store in stores:
        store.close()


def found(store: Store, selector: Selector) -> list[str]:
    return [one.question for one in store.entries(selector)]


def test_gives_back_what_was_put_in(opened: Open) -> None:
    kept = entry("Was heißt „Brücke“?\n", 'Bridge. \x00 "🌉"', vector=unit(1, 2), tags=("docs", "ä,b"), sliding=True)
    opened().put(kept)
    (got,) = opened().entries(Selector(key=kept.key))
    assert got.vector is not None
    assert np.array_equal(got.vector, unit(1, 2))
    assert replace(got, vector=None) == replace(kept, vector=None)
    assert list(opened().entries(Selector(key="another"))) == []


def test_nearest_is_by_cosine_within_partition_and_space(opened: Open) -> None:
    store = opened()
    for place, (x, y) in enumerate([(1, 0), (1, 1), (0, 1), (-1, 0)]):
        store.put(entry(f"q{place}", partition="p", vector=unit(x, y)))
        store.put(entry(f"other partition {place}", partition="p2", vector=unit(1, 0)))
        store.put(entry(f"other space {place}", partition="p", space="s2", vector=unit(1, 0)))
    store.put(entry("no vector", partition="p"))
    near = opened().nearest("p", "s", unit(1, 0.1), 3)
    assert [one.question for _, one in near] == ["q0", "q1", "q2"]
    expected = [float(unit(1, 0.1) @ unit(*v)) for v in [(1, 0), (1, 1), (0, 1)]]
    assert [score for score, _ in near] == pytest.approx(expected, abs=1e-5)
    assert opened().nearest("nowhere", "s", unit(1), 3) == []


def test_one_entry_a_key(opened: Open) -> None:
    store = opened()
    store.put(entry("q", "old", vector=unit(1)))
    store.put(entry("q", "new", vector=unit(0, 1), created=2000.0))
    assert [one.answer.text for one in store.entries(Selector())] == ["new"]
    assert [(round(s, 3), e.answer.text) for s, e in store.nearest("p", "s", unit(0, 1), 5)] == [(1.0, "new")]
    store.put(entry("q", "newer", vector=unit(1), space="s2"))
    assert store.nearest("p", "s", unit(0, 1), 5) == []
    assert store.count(Selector()) == 1


def test_renewing_brings_nothing_back(opened: Open) -> None:
    """A hit that puts off an entry's end while somebody removes it must not undo the removal."""
    store = opened()
    kept = entry("q", vector=unit(1))
    store.put(replace(kept, expires=9000.0), renew=True)
    assert store.count(Selector()) == 0
    store.put(kept)
    store.put(replace(kept, expires=9000.0), renew=True)
    assert [one.expires for one in store.entries(Selector(key=kept.key))] == [9000.0]
    assert len(store.nearest("p", "s", unit(1), 5)) == 1


@pytest.mark.parametrize(
    ("selector", "gone"),
    [
        (Selector(tag="docs"), ["b"]),
        (Selector(tenant="other"), ["c"]),
        (Selector(model="m2"), ["c"]),
        (Selector(created_before=1500.0), ["a"]),
        (Selector(expired_at=5600.0), ["b", "a"]),
        (Selector(all_but=1), ["b", "a"]),
        (Selector(tag="docs", tenant="other"), []),
        (Selector(), ["c", "b", "a"]),
    ],
)
def test_deletes_what_is_selected_and_nothing_else(opened: Open, selector: Selector, gone: list[str]) -> None:
    store = opened()
    entries = [
        entry("a", created=1000.0, vector=unit(1)),
        entry("b", created=2000.0, vector=unit(1), tags=("docs", "x")),
        entry("c", created=3000.0, vector=unit(1), tenant="other", model="m2", tags=("do", "ocs")),
    ]
    for one in entries:
        store.put(one)
    assert found(store, selector) == gone
    assert store.count(selector) == len(gone)
    assert store.delete(selector) == len(gone)
    left = [one.question for one in reversed(entries) if one.question not in gone]
    assert found(opened(), Selector()) == left
    assert {one.question for _, one in opened().nearest("p", "s", unit(1), 9)} == set(left)


def test_finds_by_id(opened: Open) -> None:
    store, kept = opened(), entry("q")
    store.put(kept)
    store.put(entry("other"))
    assert found(store, Selector(id=kept.id)) == ["q"]
    assert found(store, Selector(id=kept.id, tenant="somebody else")) == []
    assert store.delete(Selector(id=kept.id)) == 1


def test_finds_all_neighbours_after_the_nearest_were_removed(opened: Open) -> None:
    """pgvector's HNSW returns none of them until it is vacuumed, unless told to go on searching."""
    store, rng = opened(), np.random.default_rng(3)
    for place in range(1100):
        vector = unit(1, *(0.02 * rng.normal(size=WIDTH - 1))) if place < 60 else unit(*rng.normal(size=WIDTH))
        store.put(entry(f"q{place}", vector=vector, tags=("near",) if place < 60 else ()))
    assert store.delete(Selector(tag="near")) == 60
    near = store.nearest("p", "s", unit(1), 10)
    assert len(near) == 10
    best = sorted(float(one.vector @ unit(1)) for one in store.entries(Selector()) if one.vector is not None)[-10:]
    assert sorted(score for score, _ in near) == pytest.approx(best, abs=0.05)


def test_thousands_are_deleted_in_pieces(opened: Open) -> None:
    """No call to a server behind a socket takes so long that others, or itself, give it up."""
    store, rng = opened(), np.random.default_rng(4)
    for place in range(1200):
        vector = unit(*rng.normal(size=WIDTH)) if place < 300 else None
        store.put(entry(f"q{place}", vector=vector, tags=("odd",) if place % 2 else ()))
    assert store.delete(Selector(tag="odd")) == 600
    assert store.count(Selector()) == 600
    assert all(one.question[-1] in "02468" for _, one in store.nearest("p", "s", unit(1), 50))
    assert store.delete(Selector()) == 600
    assert store.nearest("p", "s", unit(1), 50) == []
    assert list(store.entries(Selector())) == []


def test_many_threads_write_and_nothing_acknowledged_is_lost(opened: Open) -> None:
    store, errors = opened(), []

    def write(thread: int) -> None:
        try:
            for place in range(25):
                store.put(entry(f"{thread} {place}", vector=unit(1, thread, place)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert opened().count(Selector()) == 12 * 25


def test_sqlite_shares_its_file_between_processes(tmp_path: Path) -> None:
    one, other = (open_store("sqlite", tmp_path) for _ in range(2))
    one.put(entry("first", vector=unit(1)))
    assert [e.question for _, e in other.nearest("p", "s", unit(1), 5)] == ["first"]
    one.put(entry("second", vector=unit(1, 0.1)))
    one.delete(Selector(id=entry("first").id))
    assert [e.question for _, e in other.nearest("p", "s", unit(1), 5)] == ["second"]
    one.close()
    other.close()


def test_damaged_rows_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    store = SqliteStore(path)
    store.put(entry("good", vector=unit(1)))
    store.put(entry("bad body", vector=unit(1, 0.1)))
    store.put(entry("bad vector", vector=unit(1, 0.2)))
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE entries SET body = x'00ff' WHERE key = ?", (entry("bad body").key,))
        db.execute("UPDATE entries SET vector = x'0000c07f0000c07f' WHERE key = ?", (entry("bad vector").key,))
    db.close()
    store = SqliteStore(path)
    assert [e.question for _, e in store.nearest("p", "s", unit(1), 5)] == ["good"]
    assert found(store, Selector()) == ["good"]
    store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 50)
    opened = connections(monkeypatch)
    with pytest.raises(StoreError, match="not a database"):
        SqliteStore(path)
    assert [is_closed(db) for db in opened] == [True]


def test_no_server_is_a_store_error(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    with pytest.raises(StoreError, match=r"no Redis answers: .*Start one"):
        open_store("redis://127.0.0.1:1/0", tmp_path)


def test_unknown_addresses_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mysql://x' is none of memory, sqlite"):
        open_store("mysql://x", tmp_path)


@pytest.mark.parametrize("address", ["rediss:host", "redis://host:port/0"])
def test_an_address_that_no_redis_has_is_a_wrong_setting(address: str, tmp_path: Path) -> None:
    pytest.importorskip("redis", reason="the client of the Redis store")
    with pytest.raises(ConfigError, match=r"is not redis://HOST\[:PORT\]\[/DB\]: "):
        open_store(address, tmp_path)


def test_encrypted_stores_show_no_text(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    path = tmp_path / "answers.sqlite"
    store = SqliteStore(path, Cipher("a key of some length"))
    store.put(entry("very secret question", "very secret answer", vector=unit(1)))
    store.close()
    assert b"secret" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    store = SqliteStore(path, Cipher("a key of some length"))
    assert found(store, Selector()) == ["very secret question"]
    store.close()
    other = SqliteStore(path, Cipher("another key than that"))
    assert found(other, Selector()) == []
    other.close()


def test_sealed_answers_cannot_take_anothers_place() -> None:
    pytest.importorskip("cryptography")
    cipher = Cipher("a key of some length")
    sealed = cipher.seal(b"answer", "key 1")
    assert cipher.open(sealed, "key 1") == b"answer"
    with pytest.raises(ValueError, match="not sealed"):
        cipher.open(sealed, "key 2")


def test_redis_killed_and_started_again(tmp_path: Path) -> None:
    """Calls fail while it is away, and go on when it is back: nobody needs to start the server again."""
    port = free_port()
    with redis_server(tmp_path, port) as (address, process):
        store = open_store(address, tmp_path)
        store.put(entry("before", vector=unit(1)))
        process.kill()
        process.wait(HANG_S)
        for attempt in (lambda: store.put(entry("q")), lambda: store.nearest("p", "s", unit(1), 3)):
            with pytest.raises(StoreError):
                attempt()
    with redis_server(tmp_path, port):
        store.put(entry("after", vector=unit(1)))
        assert found(store, Selector()) == ["after"]
        store.close()


def test_a_full_disk_keeps_what_is_there(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "answers.sqlite")
    store.put(entry("before", vector=unit(1)))
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages + 2}")

    def write_much() -> None:
        for place in range(100):
            store.put(entry(f"q{place}", "long " * 1000, vector=unit(1, place)))

    with pytest.raises(StoreError, match="full"):
        write_much()
    kept = store.count(Selector())
    assert [e.question for _, e in store.nearest("p", "s", unit(1), 200)].count("before") == 1
    assert len(store.nearest("p", "s", unit(1), 200)) == kept
    store._db.execute("PRAGMA max_page_count=100000")
    store.put(entry("after", vector=unit(1)))
    assert store.count(Selector()) == kept + 1
    store.close()
