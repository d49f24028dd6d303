"""KV of idle prefixes in files and in host memory: what is computed again, what is not, and what if files are away."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from fake_backend import RECURRENT, FakeDevice, FakeModel, fake_engine
from pagoda.engine.engine import Engine
from pagoda.engine.offload import KVOffload
from pagoda.kv.block_files import BlockFiles
from pagoda.kv.host_blocks import HostBlocks
from pagoda.types import Delta, Request, SamplingParams

PROMPT = tuple(i % 30 + 2 for i in range(70))  # four full blocks and a part of one
OTHERS = [tuple((7 * i + j) % 30 + 2 for i in range(70)) for j in range(1, 5)]

models = pytest.mark.parametrize("model", [FakeModel, FakeDevice])
windows = pytest.mark.parametrize("window", [(None,), (20,), (None, 20)], ids=str)


def engine_on(folder: Path, model: type[FakeModel] = FakeModel, window: Any = (None,), **options: Any) -> Engine:
    made = model(window)
    offload = KVOffload(made, BlockFiles(folder, 1 << 20, "fake"))
    return fake_engine(window, model=made, offload=offload, **options)


def answer(engine: Engine, prompt: tuple[int, ...] = PROMPT, **fields: Any) -> tuple[list[int], int]:
    """→ (tokens, how many of the prompt were found in the prefix cache)"""
    engine.add(Request("r", prompt, SamplingParams(max_tokens=6, ignore_eos=True), arrival=0.0, **fields))
    deltas: list[Delta] = []
    while engine.has_work:
        deltas += engine.step().deltas
    assert engine.offload is None or engine.offload.wait_written(30.0)
    assert deltas[-1].usage is not None
    return [token for delta in deltas for token in delta.token_ids], deltas[-1].usage.cached_tokens


@models
@windows
def test_a_restart_finds_the_prefix(tmp_path: Path, model: type[FakeModel], window: Any) -> None:
    first = engine_on(tmp_path, model, window)
    tokens, cached = answer(first)
    assert cached == 0
    first.close()
    second = engine_on(tmp_path, model, window)
    assert answer(second) == (tokens, 64)
    assert answer(second, PROMPT[:40]) == (answer(fake_engine(window), PROMPT[:40])[0], 32)
    second.close()


@models
def test_what_memory_had_to_give_up_comes_back(tmp_path: Path, model: type[FakeModel]) -> None:
    engine = engine_on(tmp_path, model, num_blocks=[6], max_num_seqs=1)
    tokens, _ = answer(engine)
    for other in OTHERS:
        assert answer(engine, other)[1] == 0
    assert answer(engine) == (tokens, 64)
    engine.check()
    engine.close()


def test_tenants_salts_and_other_tokens_find_nothing(tmp_path: Path) -> None:
    first = engine_on(tmp_path)
    answer(first, tenant="a", cache_salt="s")
    first.close()
    second = engine_on(tmp_path)
    assert answer(second, tenant="b", cache_salt="s")[1] == 0
    assert answer(second, tenant="a")[1] == 0
    assert answer(second, (*PROMPT[:20], 9, *PROMPT[21:]), tenant="a", cache_salt="s")[1] == 16
    assert answer(second, tenant="a", cache_salt="s")[1] == 64
    second.close()


def test_a_spoiled_file_costs_the_rest_of_the_prefix(tmp_path: Path) -> None:
    first = engine_on(tmp_path)
    tokens, _ = answer(first)
    first.close()
    in_order = sorted(tmp_path.glob("fake/??/*"), key=lambda path: path.stat().st_mtime_ns)
    in_order[len(in_order) // 2].write_bytes(b"something else")
    second = engine_on(tmp_path)
    again, cached = answer(second)
    assert again == tokens
    assert cached < 64
    assert second.offload is not None
    assert second.offload.store.counts.rejected == 1
    second.close()


def test_a_full_disk_fails_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class FullDisk(BlockFiles):
        def write(self, group: int, key: bytes, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    model = FakeModel((None,))
    engine = fake_engine(model=model, offload=KVOffload(model, FullDisk(tmp_path, 1 << 20, "fake")))
    with caplog.at_level(logging.WARNING):
        tokens, _ = answer(engine)
        engine.close()
    assert tokens == answer(fake_engine())[0]
    assert sum("No space left" in line for line in caplog.messages) == 1


def test_who_waits_for_files_can_go(tmp_path: Path) -> None:
    first = engine_on(tmp_path)
    answer(first)
    first.close()
    second = engine_on(tmp_path)
    second.add(Request("r", PROMPT, SamplingParams(n=2, max_tokens=6), arrival=0.0))
    second.check()
    assert second.abort("r")
    result = second.step()
    assert [delta.finish_reason for delta in result.deltas] == ["abort", "abort"]
    assert second.kv.num_used_blocks == 0
    assert answer(second)[1] == 64
    second.close()


@models
def test_states_come_back_with_their_prefix(tmp_path: Path, model: type[FakeModel]) -> None:
    window = (None, RECURRENT)
    first = engine_on(tmp_path, model, window, state_interval=16)
    tokens, cached = answer(first)
    assert cached == 0
    first.close()
    second = engine_on(tmp_path, model, window, state_interval=16)
    assert answer(second) == (tokens, 64)
    assert answer(second, PROMPT[:40]) == (answer(fake_engine(window), PROMPT[:40])[0], 32)
    second.check()
    second.close()


def test_without_its_state_a_prefix_is_computed(tmp_path: Path) -> None:
    window = (None, RECURRENT)
    first = engine_on(tmp_path, FakeModel, window, state_interval=16)
    tokens, _ = answer(first)
    first.close()
    states = sorted(tmp_path.glob("fake/??/*-1"), key=lambda path: path.stat().st_mtime_ns)
    assert states
    for path in states:
        path.unlink()
    second = engine_on(tmp_path, FakeModel, window, state_interval=16)
    assert answer(second) == (tokens, 0)
    second.close()


def test_a_state_that_memory_had_to_give_up_comes_back(tmp_path: Path) -> None:
    window = (None, RECURRENT)
    engine = engine_on(tmp_path, FakeModel, window, num_states=2, max_num_seqs=1, state_interval=16)
    tokens, _ = answer(engine)
    for other in OTHERS:
        assert answer(engine, other)[1] == 0
    assert answer(engine) == (tokens, 64)
    engine.check()
    engine.close()


@pytest.mark.parametrize("with_files", [False, True])
def test_host_memory_gives_back_what_the_cache_had_to_give_up(tmp_path: Path, with_files: bool) -> None:
    model = FakeModel((None,))
    files = BlockFiles(tmp_path, 1 << 20, "fake") if with_files else None
    offload = KVOffload(model, HostBlocks(1 << 20, files))
    engine = fake_engine(model=model, offload=offload, num_blocks=[6], max_num_seqs=1)
    tokens, _ = answer(engine)
    for other in OTHERS:
        answer(engine, other)
    assert answer(engine) == (tokens, 64)
    assert isinstance(offload.store, HostBlocks)
    assert offload.store.counts.read == 4
    engine.close()
    if with_files:
        later = engine_on(tmp_path)
        assert answer(later) == (tokens, 64)
        later.close()
