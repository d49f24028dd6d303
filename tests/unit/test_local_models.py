"""Several models on one machine: which of them are in memory when, who waits, and what an end of a process does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pagoda.config import EngineSettings, ServerSettings, load_settings
from pagoda.errors import ConfigError, EngineError
from pagoda.gateway.local import upstream as upstream_module
from pagoda.gateway.local.pool import ModelPool
from pagoda.gateway.local.process import LINE_BYTES, ServeProcess
from pagoda.gateway.local.routes import merge_series
from pagoda.gateway.local.settings import LocalSettings, flags_of, models_of, shared
from pagoda.gateway.local.upstream import LocalUpstream
from pagoda.gateway.upstream import UpstreamFailure
from pagoda.observe.cost import CostSettings
from serving import HANG_S


class Fake(LocalUpstream):
    """A model whose process is a name in a list."""

    events: list[str]
    fails = False

    async def start(self) -> None:
        self.starts += 1
        self.state = "loading"
        await asyncio.sleep(0.001)
        if self.fails:
            self._fell("no such file")
            raise EngineError("no such file")
        self.events.append(f"+{self.name}")
        self.is_loaded()

    async def stop(self) -> None:
        if self.state != "unloaded":
            self.events.append(f"-{self.name}")
        self.state, self._let_in = "unloaded", 0

    def die(self) -> None:
        self._ended()

    async def work(self, seconds: float = 0.0) -> None:
        """What a request does."""
        self.take()
        try:
            await self.until_loaded()
            self.used = self._clock()
            await asyncio.sleep(seconds)
            assert self.state in ("loaded", "leaving"), f"{self.name} is {self.state} while it answers"
        finally:
            self.give_back()


def run(
    scenario: Callable[..., Awaitable[None]], names: str = "abc", most: int = 2, pinned: str = "", **options: Any
) -> list[str]:
    """Let `scenario` run with a pool and its models. → what was loaded (+) and unloaded (-), in order"""
    events: list[str] = []

    async def main() -> None:
        models = []
        for name in names:
            model = Fake(
                LocalSettings(EngineSettings(name), name, pinned=name in pinned), load_timeout=HANG_S, timeout=HANG_S
            )
            model.events = events
            models.append(model)
        pool = ModelPool(models, most, **options)
        await pool.start()
        try:
            await asyncio.wait_for(scenario(pool, *models), HANG_S)
        finally:
            kept = list(events)
            await pool.close()
            events[:] = kept

    asyncio.run(main())
    return events


def test_the_one_used_longest_ago_makes_room() -> None:
    async def scenario(pool: ModelPool, a: Fake, b: Fake, c: Fake) -> None:
        for model in (a, b, a, c, a, b):
            await model.work()

    assert run(scenario) == ["+a", "+b", "-b", "+c", "-c", "+b"]


def test_a_model_that_answers_is_let_finish() -> None:
    async def scenario(pool: ModelPool, a: Fake, b: Fake) -> None:
        long = asyncio.create_task(a.work(0.1))
        await asyncio.sleep(0.01)
        other = asyncio.create_task(b.work())
        await asyncio.sleep(0.01)
        late = asyncio.create_task(a.work())  # has to wait: b's turn comes first
        await asyncio.gather(long, other, late)

    assert run(scenario, "ab", most=1) == ["+a", "-a", "+b", "-b", "+a"]


def test_many_wait_for_one_load() -> None:
    async def scenario(pool: ModelPool, a: Fake) -> None:
        await asyncio.gather(*(a.work(0.001) for _ in range(50)))
        assert a.starts == 1

    assert run(scenario, "a", most=1) == ["+a"]


def test_everybody_gets_a_turn_under_load() -> None:
    async def scenario(pool: ModelPool, *models: Fake) -> None:
        order = [models[(i * i + i // 3) % len(models)] for i in range(120)]
        await asyncio.gather(*(model.work(0.0005) for model in order))
        assert sum(model.is_in_memory for model in models) <= pool.most

    events = run(scenario, "abcde", most=2)
    in_memory: set[str] = set()
    for sign, name in events:
        (in_memory.add if sign == "+" else in_memory.remove)(name)
        assert len(in_memory) <= 2


def test_pinned_models_stay() -> None:
    async def scenario(pool: ModelPool, a: Fake, b: Fake, c: Fake) -> None:
        for model in (b, c, b):
            await model.work()

    assert run(scenario, pinned="a") == ["+a", "+b", "-b", "+c", "-c", "+b"]
    with pytest.raises(ConfigError, match="never find room"):
        run(scenario, pinned="ab")


def test_idle_models_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.gateway.local.pool.SWEEP_S", 0.01)

    async def scenario(pool: ModelPool, a: Fake, b: Fake) -> None:
        await a.work()
        await b.work()
        while b.is_in_memory or a.is_in_memory:
            await asyncio.sleep(0.01)
        await a.work()

    assert run(scenario, "ab", idle_unload=0.05) == ["+a", "+b", "-a", "-b", "+a"]


def test_a_process_that_ends_is_started_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "FIRST_AGAIN_S", 0.02)
    gone: list[str] = []

    async def scenario(pool: ModelPool, a: Fake, b: Fake) -> None:
        await a.work()
        await b.work()
        a.die()
        assert a.state == "loading"
        assert 0 < a.again_in <= 0.02
        await asyncio.gather(a.work(), b.work())
        first = a.again_in
        a.die()
        assert a.again_in > 0.02 > first
        while a.state != "loaded":
            await asyncio.sleep(0.005)

    assert run(scenario, "ab", on_end=lambda model: gone.append(model.name)) == ["+a", "+b", "+a", "+a"]
    assert gone == ["a", "a"]


def test_nobody_takes_the_room_of_one_that_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "FIRST_AGAIN_S", 0.02)

    async def scenario(pool: ModelPool, a: Fake, b: Fake, c: Fake) -> None:
        await a.work()
        await b.work()
        b.die()
        await asyncio.gather(c.work(), b.work(), c.work())

    assert run(scenario) == ["+a", "+b", "-a", "+c", "+b"]


def test_one_that_is_started_again_is_unloaded_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "FIRST_AGAIN_S", 0.02)

    async def scenario(pool: ModelPool, a: Fake) -> None:
        await a.work()
        a.die()
        await pool.unload(a)
        assert a.state == "unloaded"

    assert run(scenario, "a", most=1) == ["+a", "+a", "-a"]


def test_who_needs_room_waits_for_one_that_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "FIRST_AGAIN_S", 0.02)

    async def scenario(pool: ModelPool, a: Fake, b: Fake) -> None:
        await a.work()
        a.die()
        await asyncio.gather(b.work(), a.work())

    assert run(scenario, "ab", most=1)[:2] == ["+a", "+a"]


def test_a_model_that_cannot_be_loaded_is_not_tried_at_once_again() -> None:
    async def scenario(pool: ModelPool, a: Fake, b: Fake) -> None:
        a.fails = True
        await b.work()
        for _ in range(3):
            with pytest.raises(UpstreamFailure, match="cannot be loaded: no such file"):
                await a.send("/v1/chat/completions", b"{}", {})
            assert not a.returns
        assert a.starts == 1
        a.fails, a._not_before = False, 0.0
        await a.work()
        assert a.returns

    assert run(scenario, "ab", most=1) == ["+b", "-b", "+a"]


def test_a_model_that_is_used_meanwhile_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.gateway.local.pool.SWEEP_S", 0.01)

    async def scenario(pool: ModelPool, a: Fake) -> None:
        await a.work()
        async with pool._turn:  # somebody else's load
            await asyncio.sleep(0.1)
            a.used = a._clock()
        await asyncio.sleep(0)
        assert a.state == "loaded"

    assert run(scenario, "a", most=1, idle_unload=0.05)[:1] == ["+a"]


def test_a_line_without_end_does_not_stop_a_process() -> None:
    says = "import sys; sys.stderr.write('x' * 3_000_000 + '\\n' + LINE + '\\n'); sys.stderr.flush(); sys.stdin.read()"
    line = '{"message": "listening", "level": "info", "url": "http://127.0.0.1:1"}'

    async def main() -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", says.replace("LINE", repr(line)),
            stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=LINE_BYTES,
        )  # fmt: skip
        served = ServeProcess("m", process)
        url = await asyncio.wait_for(served.url(), HANG_S)
        await served.stop(5)
        return url

    assert asyncio.run(main()) == "http://127.0.0.1:1"


def test_a_model_that_cannot_be_loaded_says_why_and_harms_nobody() -> None:
    async def scenario(pool: ModelPool, a: Fake, b: Fake) -> None:
        a.fails = True
        with pytest.raises(UpstreamFailure, match="cannot be loaded: no such file") as failure:
            await a.send("/v1/chat/completions", b"{}", {})
        assert failure.value.error is not None
        assert failure.value.error.status == 503
        assert failure.value.error.retry_after
        await b.work()

    assert run(scenario, "ab", most=1) == ["+b"]


def test_models_of_the_command_line_and_of_the_file(tmp_path: Path) -> None:
    engine = EngineSettings("first", kv_type="int8")
    given = models_of(engine, ["smollm2-135m", "hf:owner/repo:model.gguf", "/models/tiny.gguf"], Path("/dev/null"))
    assert [one.name for one in given] == ["smollm2-135m", "model", "tiny"]
    assert {one.engine.kv_type for one in given} == {"int8"}
    file = tmp_path / "pagoda.toml"
    file.write_text('[[models]]\nmodel = "m"\nname = "small"\npinned = true\nthreads = 3\n[[models]]\nmodel = "n"\n')
    first, second = models_of(engine, [], file)
    assert (first.name, first.pinned, first.engine) == ("small", True, EngineSettings("m", kv_type="int8", threads=3))
    assert (second.name, second.engine.model) == ("n", "n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[models]]\nname = "x"', "model is missing"),
        ('[[models]]\nmodel = "x"\nthread = 2', "did you mean 'threads'"),
        ('[[models]]\nmodel = "x"\npinned = 1', "not true or false"),
        ('[[models]]\nmodel = "x"\nthreads = "many"', "threads"),
        ('[[models]]\nmodel = "x"\n[[models]]\nmodel = "x"', "two models are called 'x'"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "pagoda.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        models_of(EngineSettings(), [], file)


def test_settings_become_flags_and_settings_again(tmp_path: Path) -> None:
    engine = EngineSettings(
        "m", kv_type="int8", kv_memory_bytes=1 << 30, prefix_caching=False, lora=("a=x", "b=y"), threads=2
    )
    flags = flags_of(engine)
    parsed: dict[str, Any] = {"model": "m", "lora": []}
    while flags:
        flag = flags.pop(0)
        if flag.startswith("--no-"):
            parsed[flag[5:].replace("-", "_")] = False
        elif flag == "--lora":
            parsed["lora"].append(flags.pop(0))
        else:
            name = {"kv-memory": "kv_memory_bytes"}.get(flag[2:], flag[2:].replace("-", "_"))
            parsed[name] = flags.pop(0)
    assert load_settings(EngineSettings, parsed, config=Path("/dev/null")) == engine


def test_models_share_the_machine() -> None:
    given = models_of(EngineSettings(kv_offload="/kv:1GB"), ["a", "b", "c"], Path("/dev/null"))
    server = ServerSettings(reasoning_format="none", max_body_bytes=1 << 20, port=9, api_keys=("k",))
    first, *_ = shared(given, 2, 8, CostSettings(price=3.0), server)
    assert flags_of(first.server) == ["--reasoning-format", "none", "--max-body", str(1 << 20)]
    with pytest.raises(ConfigError, match="say whose name it is"):
        shared(given, 2, 8, CostSettings(), ServerSettings(served_model_name="x"))
    assert flags_of(first.cost) == ["--price", "1.5"]
    assert first.engine.threads == 4
    assert first.engine.memory_utilization == pytest.approx(0.45)
    assert first.engine.kv_offload == "/kv/a:1000000000"


def test_series_of_several_become_one_document() -> None:
    one = '# HELP x How.\n# TYPE x counter\nx_total{m="a"} 1\n# HELP y How.\n# TYPE y gauge\ny 2\n'
    other = '# HELP x How.\n# TYPE x counter\nx_total{m="b"} 3\n'
    assert merge_series([one, other, ""]) == (
        '# HELP x How.\n# TYPE x counter\nx_total{m="a"} 1\nx_total{m="b"} 3\n# HELP y How.\n# TYPE y gauge\ny 2\n'
    )
