"""What is kept of responses: bounded in number, in bytes and in time, by tenant."""

from __future__ import annotations

import tracemalloc

import orjson
from hypothesis import given
from hypothesis import strategies as st

from pagoda.server.response_store import ResponseStore, StoredResponse


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 40), st.booleans())))
def test_random_operations(steps: list[tuple[str, str, int, bool]]) -> None:
    store = ResponseStore(max_responses=3, max_bytes=60)
    for tenant, id, size, removes in steps:
        if removes:
            store.pop(tenant, id)
            assert store.get(tenant, id) is None
        else:
            store.put(tenant, id, StoredResponse(b"1" * size))
            found = store.get(tenant, id)
            assert found is not None
            assert len(found.content) == size
        store.check()


def test_the_oldest_go_first() -> None:
    store = ResponseStore(max_responses=2)
    for id in "xyz":
        store.put("", id, StoredResponse(b""))
    assert [store.get("", id) is not None for id in "xyz"] == [False, True, True]


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    store = ResponseStore(max_bytes=10)
    store.put("", "x", StoredResponse(b"", b"1" * 11))
    assert store.get("", "x") is None


def test_nothing_is_kept_beyond_its_lifetime() -> None:
    store = ResponseStore(lifetime_s=100)
    store.put("", "old", StoredResponse(b"", kept=-1000.0))
    store.put("", "new", StoredResponse(b""))
    assert store.get("", "new") is not None
    assert store.get("", "old") is None


def test_what_is_kept_takes_the_room_of_its_bytes() -> None:
    store = ResponseStore()
    tracemalloc.start()
    for number in range(100):
        store.put("", str(number), StoredResponse(orjson.dumps(["short", number]), orjson.dumps([number])))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 100 * 1000
