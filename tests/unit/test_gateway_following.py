"""A gateway that is told what its upstreams hold: evictions, restarts, and upstreams that tell nothing."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import httpx

from gateways import Gated, Scripted, gating, respond, whole
from pagoda.gateway.upstream import Upstream
from pagoda.routing.prefixes import HEADER, MAX_TOLD, ToldPrefixes, pieces_header, prefix_hashes, read_pieces
from serving import Served, wait_for
from watched import prompt, watched

UPSTREAM = "x-pagoda-upstream"


def ask(gated: Gated, seed: int, **more: Any) -> str:
    """→ which upstream has answered"""
    body = {"prompt": prompt(seed), "max_tokens": 2, "ignore_eos": True, "temperature": 0} | more
    response = gated.client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.headers[UPSTREAM]


def upstreams(gated: Gated) -> dict[str, Upstream]:
    return {one.name: one for one in gated.gateway.router.replicas}


def matched(gated: Gated, name: str, seed: int, tenant: str = "") -> int:
    """Pieces of that prompt which the gateway knows to be there."""
    parts = [json.dumps(token).encode() for token in prompt(seed)]
    return upstreams(gated)[name].prefixes.matched(prefix_hashes(parts, tenant, gated.gateway.prefix_secret))


def name_of(served: Served) -> str:
    return served.url.removeprefix("http://")


def told(gated: Gated) -> bool:
    return all(one.says_prefixes for one in gated.gateway.router.replicas)


def test_an_upstream_that_lost_a_prefix_is_no_home_any_more() -> None:
    """The server's cache is filled behind the gateway's back, which a guess cannot know."""
    with watched(num_blocks=40) as (served, _), gating(served.url) as gated:
        wait_for(lambda: told(gated))
        ask(gated, 1)
        name = name_of(served)
        wait_for(lambda: matched(gated, name, 1) >= 3)
        for seed in (2, 3):
            body = {"prompt": prompt(seed), "max_tokens": 2, "ignore_eos": True}
            assert served.post("/v1/completions", **body).status_code == 200
        wait_for(lambda: matched(gated, name, 1) == 0)


def test_two_gateways_of_one_secret_know_each_others_requests() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(watched())[0] for _ in range(2)]
        urls = [one.url for one in servers]
        first, second, other = (
            stack.enter_context(gating(*urls, told={"prefix_secret": secret})) for secret in ("s", "s", "t")
        )
        wait_for(lambda: told(first) and told(second) and told(other))
        home = {seed: ask(first, seed) for seed in range(4)}
        wait_for(lambda: all(matched(second, home[seed], seed) >= 3 for seed in home))
        assert {seed: ask(second, seed) for seed in home} == home
        assert all(matched(other, home[seed], seed) == 0 for seed in home)


def test_a_gateway_that_comes_later_gets_what_is_there() -> None:
    with watched() as (served, _):
        with gating(served.url, told={"prefix_secret": "s"}) as gated:
            wait_for(lambda: told(gated))
            ask(gated, 1)
        with gating(served.url, told={"prefix_secret": "s"}) as gated:
            wait_for(lambda: matched(gated, name_of(served), 1) >= 3)


def test_after_a_broken_stream_it_guesses_and_listens_again() -> None:
    with watched() as (served, _), gating(served.url) as gated:
        wait_for(lambda: told(gated))
        ask(gated, 1)
        name = name_of(served)
        wait_for(lambda: matched(gated, name, 1) >= 3)
        upstream = upstreams(gated)[name]
        before = upstream.prefixes
        for listener in list(served.server.service.model().prefix_events._listeners):
            listener.is_cut_off = True
        wait_for(lambda: upstream.prefixes is not before)
        assert matched(gated, name, 1) >= 3
        wait_for(lambda: told(gated))
        assert matched(gated, name, 1) >= 3


def test_a_server_that_tells_nothing_is_guessed_at() -> None:
    """Neither other servers nor a Pagoda whose admin key the gateway does not have."""
    other = Scripted(lambda sock, body: respond(sock, whole()))
    with watched(admin_key="root") as (served, _), gating(served.url, other.url) as gated:
        names = [ask(gated, seed) for seed in range(4)]
        assert not any(one.says_prefixes for one in gated.gateway.router.replicas)
        assert [ask(gated, seed) for seed in range(4)] == names
        assert not any(HEADER.lower() in head.lower() for head in other.heads)
    other.close()


def cached(client: httpx.Client, **headers: str) -> int:
    """Prompt tokens that were found in the upstream's prefix cache."""
    body = {"prompt": prompt(1), "max_tokens": 2, "ignore_eos": True, "temperature": 0}
    response = client.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    found: int = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def test_tenants_of_the_gateway_share_no_prefixes_upstream() -> None:
    with watched() as (served, _), gating(served.url, api_keys=("a", "b")) as gated:
        first, second = {"Authorization": "Bearer a"}, {"Authorization": "Bearer b"}
        assert [cached(gated.client, **key) for key in (first, first, second, second)] == [0, 304, 0, 304]
        name = name_of(served)
        wait_for(lambda: told(gated))
        assert cached(gated.client, **first) == 304
        wait_for(lambda: matched(gated, name, 1, "key-0") >= 3)
        assert matched(gated, name, 1, "key-2") == 0


def test_a_server_with_keys_believes_nobody_else() -> None:
    with watched(api_keys=("client",), admin_key="root") as (served, _):
        client, admin = {"Authorization": "Bearer client"}, {"Authorization": "Bearer root"}
        other = {"X-Pagoda-Tenant": "other"}
        assert cached(served.client, **client) == 0
        assert cached(served.client, **client, **other) == 304  # its own, whatever it says
        assert cached(served.client, **admin, **other) == 0
        assert cached(served.client, **admin, **other) == 304
    with watched(admin_key="root") as (served, _):
        assert cached(served.client) == 0
        assert cached(served.client, **other) == 304


def test_what_health_says() -> None:
    with watched() as (served, _), gating(served.url) as gated:
        wait_for(lambda: gated.client.get("/health").json()["upstreams"][0]["says_prefixes"])


def test_requests_under_way_count_until_they_end() -> None:
    prefixes = ToldPrefixes()
    prefixes.add([1, 2, 3])
    prefixes.add([1, 2])
    assert prefixes.matched([1, 2, 3, 4]) == 3
    prefixes.over([1, 2, 3])
    assert prefixes.matched([1, 2, 3]) == 2
    prefixes.stored([1])
    prefixes.over([1, 2])
    prefixes.over([7, 8])  # of a request that began before the stream did
    assert prefixes.matched([1, 2]) == 1
    assert prefixes.as_guess().matched([1, 2]) == 1
    prefixes.removed([1])
    assert prefixes.matched([1]) == 0


def test_the_header_says_what_it_was_made_of() -> None:
    hashes = prefix_hashes([bytes(range(256)) * 9])
    pieces = read_pieces(pieces_header(hashes, 2400))
    assert pieces is not None
    assert pieces.labels == hashes
    assert pieces.share == 256 / 2400
    assert [pieces.last_block(place, 600) for place in range(9)] == [3, 7, 11, 15, 19, 23, 27, 31, 35]
    long = prefix_hashes([b"x" * 256 * 2000])
    cut = read_pieces(pieces_header(long, 256 * 2000))
    assert cut is not None
    assert cut.labels == long[:MAX_TOLD]
    for damaged in ("", "a:AAAA", "100:" + "A" * 11, pieces_header(hashes, 2303), "2400:AAAA", "2400:"):
        assert read_pieces(damaged) is None
