"""Servers whose engine has a real prefix cache, over a model without arithmetic, for tests. Prompts are token ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fake_backend import VOCAB_SIZE, fake_engine
from fake_engine import FakeLoaded
from pagoda.engine.engine import Engine
from pagoda.engine.thread import EngineThread
from serving import Served, serving

CONTEXT = 512


def prompt(seed: int, length: int = 320) -> list[int]:
    """Tokens that no prompt of another seed begins with; some 900 bytes of JSON, so three pieces."""
    return [2 + (seed + at * (at + 1)) % (VOCAB_SIZE - 2) for at in range(length)]


@contextmanager
def watched(num_blocks: int = 128, **settings: Any) -> Iterator[tuple[Served, Engine]]:
    """A server and its engine, whose KV cache has so many blocks of 16 tokens."""
    core = fake_engine(num_blocks=[num_blocks], max_context=CONTEXT, max_num_seqs=4)
    loaded: Any = FakeLoaded(engine=EngineThread(core), max_context=CONTEXT)  # type: ignore[arg-type]
    with serving(loaded, **settings) as served:
        yield served, core
