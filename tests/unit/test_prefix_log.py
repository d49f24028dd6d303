"""What steps report of the prefix cache is what it holds, block by block, and what routers called their texts."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_backend import fake_engine
from pagoda.engine.engine import Engine
from pagoda.kv.prefix import extend_keys, prefix_root
from pagoda.types import BLOCK_SIZE, PromptPieces, Request, SamplingParams, StepResult


def request(id: str, prompt: tuple[int, ...], labels: tuple[int, ...] = (), **more: str) -> Request:
    """With labels for as many pieces as there are, all of one length."""
    pieces = PromptPieces(labels, 1 / len(labels)) if labels else None
    params = SamplingParams(ignore_eos=True, temperature=0.0, max_tokens=4)
    return Request(id, prompt, params, 0.0, pieces=pieces, **more)  # type: ignore[arg-type]


class Router:
    """Who believes what it is told."""

    def __init__(self) -> None:
        self.blocks: set[bytes] = set()
        self.labels: set[int] = set()

    def hear(self, step: StepResult) -> None:
        for change in step.prefix_changes:
            blocks, labels = set(change.blocks), set(change.labels)
            assert len(blocks) == len(change.blocks), "a block is told of twice in one event"
            if change.kind == "stored":
                assert not blocks & self.blocks
                assert not labels & self.labels
                self.blocks |= blocks
                self.labels |= labels
            else:
                assert blocks <= self.blocks
                assert labels <= self.labels
                self.blocks -= blocks
                self.labels -= labels


def run(engine: Engine, router: Router) -> None:
    while engine.has_work:
        router.hear(engine.step())
        engine.check()
        assert router.blocks == set(engine.kv.prefix.all_keys())


def keys_of(request: Request) -> list[bytes]:
    keys: list[bytes] = []
    tokens = array("i", request.prompt_token_ids)
    extend_keys(keys, prefix_root(request.cache_salt, None, request.tenant), tokens, len(tokens))
    return keys


def test_nothing_is_written_down_before_somebody_asks() -> None:
    engine = fake_engine()
    engine.add(request("a", (6,) * 40, (1, 2)))
    assert engine.step().prefix_changes == ()
    assert engine.kv.prefix.watcher is None


def test_a_label_is_stored_with_the_block_in_which_its_piece_ends() -> None:
    """Five pieces of 16 tokens and one of 16 that are in no full block."""
    engine, router = fake_engine(max_batch_tokens=32), Router()
    engine.watch_prefixes()
    engine.add(request("a", tuple(range(2, 22)) * 4 + (3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5)))
    router.hear(engine.step())  # the first 32 tokens
    assert len(router.blocks) == 2
    assert router.labels == {1}  # its piece ends after 17.4 tokens
    run(engine, router)
    assert router.labels == {1, 2, 3, 4}


def test_what_makes_room_is_told_and_what_comes_back_too() -> None:
    engine, router = fake_engine(num_blocks=[6], max_num_seqs=1), Router()
    engine.watch_prefixes()
    first, second = request("a", (6,) * 64, (1, 2, 3, 4)), request("b", (7,) * 64, (5, 6, 7, 8))
    engine.add(first)
    run(engine, router)
    assert router.labels == {1, 2, 3, 4}
    engine.add(second)
    run(engine, router)
    assert router.labels == {1, 5, 6, 7, 8}  # the tail of a prefix goes first
    engine.add(request("c", (6,) * 64, (1, 2, 3, 4)))
    run(engine, router)
    assert {1, 2, 3, 4} <= router.labels


def test_a_snapshot_is_what_all_changes_came_to() -> None:
    engine, router = fake_engine(num_blocks=[12]), Router()
    log = engine.watch_prefixes()
    assert log is not None
    for i in range(6):
        engine.add(request(str(i), (i + 2,) * 50, (3 * i + 1, 3 * i + 2, 3 * i + 3)))
        run(engine, router)
    again = Router()
    again.hear(StepResult(prefix_changes=tuple(log.snapshot(5))))
    assert (again.blocks, again.labels) == (router.blocks, router.labels)
    assert [len(part.blocks) for part in log.snapshot(5)] == [5, 5, len(router.blocks) - 10]


def test_tenants_and_salts_share_no_keys() -> None:
    engine, router = fake_engine(), Router()
    engine.watch_prefixes()
    asked = [request("a", (6,) * 32), request("b", (6,) * 32, tenant="t"), request("c", (6,) * 32, cache_salt="s")]
    for one in asked:
        engine.add(one)
    run(engine, router)
    assert len(router.blocks) == 6
    assert router.blocks == {key for one in asked for key in keys_of(one)}


def test_without_a_prefix_cache_there_is_nothing_to_watch() -> None:
    assert fake_engine(prefix_caching=False).watch_prefixes() is None


ASKED = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 80), st.integers(0, 5), st.booleans()), min_size=1, max_size=12
)


@pytest.mark.parametrize("overlap", [False, True])
@settings(max_examples=60, deadline=None)
@given(asked=ASKED, blocks=st.integers(6, 24), windows=st.sampled_from([(None,), (None, 32), (32, None), (32,)]))
def test_a_router_that_believes_it_knows_what_is_held(
    overlap: bool, asked: list[tuple[int, int, int, bool]], blocks: int, windows: tuple[int | None, ...]
) -> None:
    """Prompts that begin alike or not, with and without labels, some broken off, in more or less memory."""
    engine, router = fake_engine(windows, [blocks] * len(windows), overlap=overlap), Router()
    engine.watch_prefixes()
    blocks_of: dict[int, set[bytes]] = {}
    for i, (text, length, num_labels, is_broken_off) in enumerate(asked):
        prompt = tuple((text * 7 + at) % 38 + 2 for at in range(length))
        # a label stands for a text and all before it, so it is the same where that is
        labels = tuple(hash((text, length, num_labels, place)) for place in range(num_labels))
        one = request(str(i), prompt, labels)
        for place, label in enumerate(labels):
            at = -(-(place + 1) * length // (num_labels * BLOCK_SIZE)) - 1
            blocks_of.setdefault(label, set()).update(keys_of(one)[max(0, at) : max(0, at) + 1])
        engine.add(one)
        router.hear(engine.step())
        if is_broken_off:
            engine.abort(str(i))
    run(engine, router)
    assert all(blocks_of[label] & router.blocks for label in router.labels)
