"""Keys in their file, what they may use, and what is said when it is used up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fake_engine import FakeEngine, FakeLoaded
from pagoda.cli.main import app
from pagoda.errors import ConfigError
from pagoda.observe.cost import CostSettings
from pagoda.observe.metrics import Metrics
from pagoda.server.budgets import Budgets
from pagoda.server.call import Call, DeltaStream
from pagoda.server.key_store import KeyStore, Limits, Used, window
from pagoda.types import Delta, Request, SamplingParams
from serving import Served, serving, wait_for
from sqlite_connections import connections, is_closed

NOON = 1790856000.0  # 2026-10-01 12:00 UTC


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


def make(file: Path, name: str = "alice", **limits: Any) -> str:
    with closing(KeyStore(file)) as store:
        return store.create(name, Limits(**limits))


def ask(served: Served, key: str, **body: Any) -> httpx.Response:
    body = {"prompt": "abc", "max_tokens": 6} | body  # 4 prompt tokens, with BOS
    return served.client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})


@contextmanager
def budgeted(file: Path, step_s: float = 0.0, **settings: Any) -> Iterator[Served]:
    loaded = FakeLoaded(engine=FakeEngine(step_s=step_s))
    with serving(loaded, keys_file=file, cost=CostSettings(price=3600), **settings) as served:
        yield served


def test_a_file_holds_no_key(file: Path) -> None:
    key = make(file)
    for path in file.parent.iterdir():
        assert key.removeprefix("pgd-").encode() not in path.read_bytes()
    assert file.stat().st_mode & 0o077 == 0


def test_a_key_opens_and_its_name_is_the_tenant(file: Path) -> None:
    key = make(file)
    with budgeted(file) as served:
        assert ask(served, key).status_code == 200
        assert ask(served, key[:-1]).status_code == 401
        assert served.client.post("/v1/completions", json={"prompt": "a"}).status_code == 401
        tokens = served.server.service.model().metrics.server.tenant_tokens.values
        wait_for(lambda: tokens.get(("alice", "completion")) == 6)


def test_revoking_and_rotating_count_at_once(file: Path) -> None:
    key = make(file)
    with budgeted(file) as served, closing(KeyStore(file)) as store:
        new = store.rotate("alice")
        assert ask(served, key).status_code == 401
        assert ask(served, new).status_code == 200
        store.revoke("alice")
        assert ask(served, new).status_code == 401


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        ({"requests_per_minute": 2}, "rate_limit_exceeded", "requests of this minute are used up: 2 of 2"),
        ({"tokens_per_minute": 25}, "rate_limit_exceeded", "tokens of this minute are used up: 20 of 25"),
        ({"tokens_per_day": 25}, "insufficient_quota", "asks for up to 10"),
        ({"tokens_per_month": 25}, "insufficient_quota", "tokens of this month"),
        ({"usd_per_day": 1e-6}, "insufficient_quota", "USD of this day are used up"),
    ],
)
def test_what_is_used_up_is_refused(file: Path, limits: dict[str, Any], code: str, words: str) -> None:
    """Each request takes 4 + 6 tokens, and some USD: the third is too many, of USD the second already."""
    key = make(file, **limits)
    with budgeted(file, step_s=0.001) as served:
        statuses = []
        for _ in range(3):
            response = ask(served, key)
            statuses.append(response.status_code)
            wait_for(lambda: not served.server.service.model().budgets._open)
        assert statuses[0] == 200
        assert statuses[-1] == 429
        error = response.json()["error"]
        assert error["code"] == code
        assert words in error["message"]
        assert 1 <= int(response.headers["retry-after"]) <= 31 * 86400
        assert served.server.service.model().metrics.server.http_rejected.values[("budget",)] >= 1


def test_a_restart_forgets_nothing(file: Path) -> None:
    key = make(file, tokens_per_month=15)
    with budgeted(file) as served:
        assert ask(served, key).status_code == 200
    with budgeted(file) as served:
        assert ask(served, key).status_code == 429


def test_headers_say_what_is_left(file: Path) -> None:
    """OpenAI's names (platform.openai.com/docs/guides/rate-limits)."""
    key = make(file, requests_per_minute=5, tokens_per_minute=100)
    with budgeted(file) as served:
        ask(served, key)
        wait_for(lambda: not served.server.service.model().budgets._open)
        headers = ask(served, key).headers
    assert headers["x-ratelimit-limit-requests"] == "5"
    assert headers["x-ratelimit-remaining-requests"] in ("3", "4")  # a minute may end in between
    assert headers["x-ratelimit-limit-tokens"] == "100"
    assert headers["x-ratelimit-remaining-tokens"] in ("80", "90")
    assert headers["x-ratelimit-reset-tokens"].endswith("s")


def test_requests_at_once_and_models(file: Path) -> None:
    busy, other = make(file, concurrent_requests=1), make(file, "bob", models=("else",))
    with budgeted(file) as served:
        served.loaded.engine.gate.clear()  # what is asked for is under way until the gate opens
        with served.client.stream(
            "POST", "/v1/completions", json={"prompt": "abc", "max_tokens": 200, "stream": True},
            headers={"X-Api-Key": busy},
        ):  # fmt: skip
            refused = ask(served, busy)
            served.loaded.engine.gate.set()
            assert refused.status_code == 429
            assert "1 requests under way" in refused.json()["error"]["message"]
        wait_for(lambda: not served.server.service.model().budgets._open)
        assert ask(served, busy).status_code == 200
        denied = ask(served, other)
        assert (denied.status_code, denied.json()["error"]["code"]) == (403, "model_not_allowed")


def test_an_answer_cut_off_counts_what_it_took(file: Path) -> None:
    key = make(file)
    with budgeted(file, step_s=0.005) as served:
        with served.client.stream(
            "POST", "/v1/completions", json={"prompt": "abc", "max_tokens": 400, "stream": True},
            headers={"X-Api-Key": key},
        ) as response:  # fmt: skip
            next(response.iter_lines())
        store = served.server.service.key_store
        assert store is not None
        wait_for(lambda: not served.server.service.model().budgets._open)
        used = store.used("alice", "month", time.time())
    assert used.requests == 1
    assert 4 < used.tokens < 400
    assert used.usd > 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 500), st.floats(0, 5)), max_size=30))
def test_use_is_counted_in_windows(steps: list[tuple[int, int, float]]) -> None:
    """Against plain sums over what was added in the window of the last addition."""
    with TemporaryDirectory() as folder, closing(KeyStore(Path(folder) / "keys.db")) as store:
        now, added = NOON, []
        for pause, tokens, usd in steps:
            now += pause * 400
            store.add("a", now, requests=1, tokens=tokens, usd=usd)
            added.append((now, tokens, usd))
            for period in ("minute", "day", "month"):
                start = window(period, now)[0]
                mine = [one for one in added if one[0] >= start]
                found = store.used("a", period, now)
                assert (found.requests, found.tokens) == (len(mine), sum(one[1] for one in mine))
                assert found.usd == pytest.approx(sum(one[2] for one in mine))
        assert store.used("a", "day", now + 90000) == Used()


def test_windows_begin_where_the_calendar_says() -> None:
    """1790812800 and 1793491200 are 2026-10-01 and 2026-11-01 UTC."""
    assert window("minute", NOON + 61) == (NOON + 60, NOON + 120)
    assert window("day", NOON) == (1790812800, 1790812800 + 86400)
    assert window("month", NOON) == (1790812800, 1793491200)


def test_the_command_line(file: Path) -> None:
    run = CliRunner().invoke
    flags = ["--keys-file", str(file)]
    key = run(app, ["keys", "create", "alice", *flags, "--tokens-per-day", "5", "--allow-model", "m"]).output.strip()
    assert key.startswith("pgd-")
    assert len(key) >= 40
    (row,) = json.loads(run(app, ["keys", "list", *flags, "--json"]).output)
    assert row["limits"]["tokens_per_day"] == 5
    assert row["limits"]["models"] == ["m"]
    assert run(app, ["keys", "rotate", "alice", *flags]).output.strip() != key
    assert run(app, ["keys", "revoke", "alice", *flags]).exit_code == 0
    assert "revoked" in run(app, ["keys", *flags]).output
    again = run(app, ["keys", "create", "alice", *flags])
    assert "rotate it" in str(again.exception)
    assert "no key called 'bob'" in str(run(app, ["keys", "revoke", "bob", *flags]).exception)
    assert "--keys-file is missing" in str(run(app, ["keys", "list"]).exception)


def test_what_is_no_key_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_text("no database " * 100)
    opened = connections(monkeypatch)
    with pytest.raises(ConfigError, match="--keys-file"):
        KeyStore(text)
    assert [is_closed(db) for db in opened] == [True]
    with pytest.raises(ConfigError, match="--keys-file"):
        KeyStore(tmp_path / "no" / "folder")


@pytest.mark.parametrize(("header", "tokens"), [("hit; exact", 0), ("miss; not asked", 5)])
def test_an_answer_from_the_cache_costs_no_tokens(file: Path, header: str, tokens: int) -> None:
    """Four prompt tokens and one of the answer, where the engine computes them; a request in any case."""
    make(file)
    with closing(KeyStore(file)) as store:
        budgets = Budgets(store, "m", Metrics("m", 64), clock=lambda: NOON)
        request = Request("r", (1, 2, 3, 4), SamplingParams(), 0.0, tenant="alice")
        call = Call("r", (request,), tenant="alice", headers={})

        class Stream:
            async def __aiter__(self) -> AsyncIterator[list[Delta]]:
                yield [Delta("r", 0, "a", (1,))]

            def close(self) -> None:
                pass

        async def serve(given: Call) -> DeltaStream:
            given.headers["X-Pagoda-Cache"] = header
            return Stream()

        async def answer() -> None:
            stream = await budgets(call, serve)
            async for _ in stream:
                pass
            stream.close()
            stream.close()  # idempotent

        asyncio.run(answer())
        assert store.used("alice", "day", NOON) == Used(1, tokens, 0.0)
