"""Which block holds which prefix: a full block is published under a hash of everything before and in it.

The key of block i is a BLAKE2b of (key of block i - 1, its 16 tokens); the chain starts from a keyed one of the tenant,
its cache salt and the adapter. Its secret is drawn at start, or lies beside blocks that outlive the process
(`offload.py`), so no tenant can prepare tokens that collide with another's.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Protocol

from pagoda.types import BLOCK_SIZE

KEY_BYTES = 16

PROCESS_SECRET = os.urandom(32)


def prefix_root(salt: str, adapter: str | None, tenant: str = "", secret: bytes = PROCESS_SECRET) -> bytes:
    """Start of the chain; `adapter` is the digest of its content.

    Prefixes are shared between equal roots only, so never between tenants: otherwise the time to
    the first token would tell one tenant what another has asked."""
    parts = [
        salt.encode("utf-8", "surrogatepass"),
        b"" if adapter is None else b"+" + adapter.encode(),
        tenant.encode(),
    ]
    hasher = blake2b(digest_size=KEY_BYTES, key=secret)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.digest()


def extend_keys(keys: list[bytes], prefix_root: bytes, tokens: array[int], num_tokens: int) -> None:
    """Append the keys of the full blocks among tokens[:num_tokens] that `keys` does not have yet."""
    previous = keys[-1] if keys else prefix_root
    for start in range(len(keys) * BLOCK_SIZE, num_tokens - BLOCK_SIZE + 1, BLOCK_SIZE):
        content = previous + tokens[start : start + BLOCK_SIZE].tobytes()
        previous = blake2b(content, digest_size=KEY_BYTES).digest()
        keys.append(previous)


def first_needed_block(num_computed: int, window: int | None) -> int:
    """The first block that tokens from position num_computed on can still see."""
    if window is None:
        return 0
    return max(0, num_computed - window + 1) // BLOCK_SIZE


class PrefixWatcher(Protocol):
    """Is told what a prefix cache comes to hold, and what it loses."""

    def published(self, key: bytes) -> None:
        """A block can be found under the key from now on."""

    def forgotten(self, key: bytes) -> None:
        """None can any more."""


class PrefixCache:
    """The published blocks of one KV group, both ways: key ↔ block."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.watcher: PrefixWatcher | None = None
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block: int) -> bool:
        return block in self._key_of

    def block(self, key: bytes) -> int:
        """The block that is published under the key."""
        return self._block_of[key]

    def publish(self, key: bytes, block: int) -> None:
        """Make the block findable, unless another one with the same content is already."""
        if key not in self._block_of:
            assert block not in self._key_of, f"block {block} published under two keys"
            self._block_of[key] = block
            self._key_of[block] = key
            if self.watcher is not None:
                self.watcher.published(key)

    def all_keys(self) -> list[bytes]:
        """Of all published blocks."""
        return list(self._block_of)

    def key(self, block: int) -> bytes:
        """Under which key the block is published."""
        return self._key_of[block]

    def forget(self, block: int) -> None:
        """The block's content is lost."""
        key = self._key_of.pop(block)
        del self._block_of[key]
        if self.watcher is not None:
            self.watcher.forgotten(key)

    def has(self, key: bytes) -> bool:
        return key in self._block_of

    def usable(self, keys: Sequence[bytes], elsewhere: Callable[[bytes], bool] | None = None) -> list[bool]:
        """Element m: whether this group has all that a sequence with m cached blocks would need of it. [M + 1]

        elsewhere: says of further keys that their blocks can be had.
        """
        result = [True]
        run_len = 0  # published blocks in a row that end with block m - 1
        for m, key in enumerate(keys, start=1):
            is_there = key in self._block_of or (elsewhere is not None and elsewhere(key))
            run_len = run_len + 1 if is_there else 0
            result.append(run_len >= m - first_needed_block(m * BLOCK_SIZE, self.window))
            if run_len == 0 and self.window is None:
                break
        return result

    def check(self, num_blocks: int) -> None:
        assert len(self._block_of) == len(self._key_of)
        for key, block in self._block_of.items():
            assert self._key_of[block] == key
            assert 0 <= block < num_blocks


def longest_match(
    groups: Sequence[PrefixCache], keys: Sequence[bytes], elsewhere: Callable[[int, bytes], bool] | None = None
) -> int:
    """The most leading blocks that every group can serve; elsewhere: whether one that is not here can be had."""
    usable = [
        group.usable(keys, None if elsewhere is None else partial(elsewhere, g)) for g, group in enumerate(groups)
    ]
    for m in range(min(len(column) for column in usable) - 1, 0, -1):
        if all(column[m] for column in usable):
            return m
    return 0
