"""How many blocks tokens take, at once and at most. `test_kv_cache.py` compares the most with what sequences hold."""

from __future__ import annotations

import pytest

from pagoda.kv.table import blocks_for, peak_blocks


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for(num_tokens: int, num_blocks: int) -> None:
    assert blocks_for(num_tokens) == num_blocks


@pytest.mark.parametrize(
    ("num_tokens", "window", "chunk", "num_blocks"),
    [
        (100, None, 8, 7),
        (20, 1000, 8, 2),  # shorter than the window
        (1000, 32, 16, 4),  # 32 + 16 tokens that may begin within a block
    ],
)
def test_peak_blocks(num_tokens: int, window: int | None, chunk: int, num_blocks: int) -> None:
    assert peak_blocks(num_tokens, window, chunk) == num_blocks
