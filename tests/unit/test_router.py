"""Which upstream gets a request. Upstreams here are state alone: nobody is asked."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pagoda.gateway.settings import UpstreamSettings
from pagoda.gateway.upstream import Upstream, _cards
from pagoda.routing.prefixes import PIECE_BYTES, PrefixIndex, prefix_hashes
from pagoda.routing.router import Journey, Router, Routing


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def upstreams(*names: str, **more: float) -> list[Upstream]:
    clock = Clock()
    return [Upstream(UpstreamSettings(f"http://{name}", name, more.get(name, 1.0)), clock=clock) for name in names]


def text(seed: str, pieces: int) -> bytes:
    return (seed * PIECE_BYTES * pieces).encode()[: PIECE_BYTES * pieces]


def sent(router: Router[Upstream], journey: Journey) -> str:
    """Send a request, and say where it went."""
    choice = router.choose(journey)
    assert choice is not None
    choice.replica.take()
    choice.replica.prefixes.add(journey.prefix)
    choice.replica.give_back()
    return choice.replica.name


def test_prefixes_share_hashes_as_far_as_texts_are_equal() -> None:
    a = prefix_hashes([text("a", 3), text("b", 2)])
    b = prefix_hashes([text("a", 3), text("c", 2)])
    assert len(a) == 5
    assert a[:3] == b[:3]
    assert not set(a[3:]) & set(b[3:])
    assert prefix_hashes([b"short"]) == ()


def test_an_index_forgets_ends_before_beginnings() -> None:
    index = PrefixIndex(max_held=3)
    long = prefix_hashes([text("a", 5)])
    index.add(long)
    assert index.matched(long) == 3
    other = prefix_hashes([text("b", 2)])
    index.add(other)
    assert (index.matched(other), index.matched(long)) == (2, 1)


def test_conversations_stay_where_they_began_and_share_the_upstreams() -> None:
    router = Router(upstreams("a", "b"), seed=1)
    home = {}
    for turn in range(4):
        for one in "ABCDEFGH":
            prefix = prefix_hashes([text(one, 20), text("x", turn)])
            name = sent(router, Journey(None, prefix))
            assert home.setdefault(one, name) == name
    assert sorted(Counter(home.values()).values()) == [4, 4]


def test_who_has_too_much_to_do_gives_some_away() -> None:
    a, b = upstreams("a", "b")
    router = Router([a, b], seed=1)
    prefix = prefix_hashes([text("a", 10)])
    a.prefixes.add(prefix)
    a.in_flight, b.in_flight = 4, 2
    for load, name in ((4, "a"), (5, "a"), (6, "b")):  # 1.5 · 2 + 2
        a.in_flight = load
        choice = router.choose(Journey(None, prefix))
        assert choice is not None
        assert choice.replica.name == name


def test_a_beginning_that_all_share_comes_to_live_on_all() -> None:
    a, b = upstreams("a", "b")
    router = Router([a, b], seed=1)
    counts = Counter(sent(router, Journey(None, prefix_hashes([text("s", 10), text(str(i), 1)]))) for i in range(100))
    assert max(counts.values()) <= 1.5 * min(counts.values())


def test_a_little_in_common_is_no_reason() -> None:
    a, b = upstreams("a", "b")
    router = Router([a, b], seed=1)
    a.prefixes.add(prefix_hashes([text("s", 2)]))
    a.take()
    choice = router.choose(Journey(None, prefix_hashes([text("s", 2), text("x", 20)])))
    assert choice is not None
    assert (choice.replica.name, choice.why, choice.matched) == ("b", "load", 0)


def test_sessions_stick() -> None:
    router = Router(upstreams("a", "b"), seed=1)
    assert len({sent(router, Journey(None, (), "s")) for _ in range(9)}) == 1


@pytest.mark.parametrize("routing", ["load", "random", "affinity"])
def test_weights_are_shares(routing: Routing) -> None:
    router = Router(upstreams("a", "b", "c", a=2.0), routing, seed=3)
    counts = Counter(sent(router, Journey()) for _ in range(400))
    assert counts["a"] == pytest.approx(200, rel=0.2)
    assert counts["b"] == pytest.approx(100, rel=0.25)


def test_fallbacks_and_those_that_rest_or_are_away_come_last() -> None:
    rows = [UpstreamSettings("http://a", "a"), UpstreamSettings("http://b", "b"),
            UpstreamSettings("http://c", "c", fallback=True)]  # fmt: skip
    a, b, c = (Upstream(row) for row in rows)
    router = Router([a, b, c], "random", seed=1)

    def chosen() -> set[str]:
        return {choice.replica.name for _ in range(20) if (choice := router.choose(Journey()))}

    assert chosen() == {"a", "b"}
    a.failed("away")
    assert chosen() == {"b"}
    b.rest(5)
    assert chosen() == {"c"}
    c.failed("away")
    assert chosen() == {"b"}
    b.failed("away")
    assert chosen() == {"a", "b"}
    a.recovered()
    assert chosen() == {"a"}
    assert router.choose(Journey(), without={a, b, c}) is None


def test_a_model_goes_to_who_has_it() -> None:
    a, b = upstreams("a", "b")
    a.listed, b.listed = ("x",), ("y",)
    router = Router([a, b])
    assert [sent(router, Journey(model)) for model in ("x", "y", "x")] == ["a", "b", "a"]
    assert router.choose(Journey("z")) is None


def test_what_is_not_known_yet_may_be_there() -> None:
    (a,) = upstreams("a")
    assert a.name_of("any") == "any"
    a.listed = ("x",)
    assert a.name_of("any") is None


def test_an_upstream_that_went_away_has_forgotten() -> None:
    (a,) = upstreams("a")
    prefix = prefix_hashes([text("a", 3)])
    a.prefixes.add(prefix)
    a.failed("killed")
    assert a.prefixes.matched(prefix) == 0


def cards(*loaded: str, unloaded: tuple[str, ...] = ()) -> bytes:
    """A list of models and adapters as a server gives it."""
    states = dict.fromkeys(loaded, "loaded") | dict.fromkeys(unloaded, "unloaded")
    return json.dumps({"data": [{"id": id, "status": {"value": state}} for id, state in states.items()]}).encode()


def list_models(upstream: Upstream, body: bytes) -> None:
    """As if it had just been looked at."""
    found = _cards(body)
    assert found is not None
    upstream.took_list(found)


def test_an_adapter_goes_where_it_is_in_memory() -> None:
    a, b, c = upstreams("a", "b", "c")
    router = Router([a, b, c], seed=1)
    list_models(a, cards("x", unloaded=("y", "z")))
    list_models(b, cards("y", unloaded=("x", "z")))
    list_models(c, cards(unloaded=("x", "y", "z")))
    assert [sent(router, Journey(model)) for model in ("x", "y", "x", "y")] == ["a", "b", "a", "b"]
    choice = router.choose(Journey("x"))
    assert choice is not None
    assert choice.why == "adapter"


def test_one_that_nobody_has_in_memory_is_read_once() -> None:
    router = Router(upstreams("a", "b", "c"), seed=1)
    for one in router.replicas:
        list_models(one, cards(unloaded=("x",)))
    first = router.choose(Journey("x"))
    assert first is not None
    first.replica.take("x")
    assert {sent(router, Journey("x")) for _ in range(4)} == {first.replica.name}
    for one in router.replicas:
        list_models(one, cards(unloaded=("x",)))  # it had to make room for others
    assert not any(one.holds("x") for one in router.replicas)


def test_where_all_who_have_it_are_overloaded_another_reads_it() -> None:
    a, b = upstreams("a", "b")
    router = Router([a, b], seed=1)
    list_models(a, cards("x"))
    list_models(b, cards(unloaded=("x",)))
    a.in_flight = 3
    assert sent(router, Journey("x")) == "b"


def test_servers_that_say_nothing_of_memory_have_all_they_list() -> None:
    (a,) = upstreams("a")
    list_models(a, b'{"data": [{"id": "m"}, {"id": "x", "parent": "m"}]}')
    assert a.holds("x")
    assert a.holds(None)
