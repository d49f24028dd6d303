"""What the prefix cache comes to hold and loses, for routers that send prompts where their beginning is held.

A router knows texts, the cache blocks of tokens. So a router gives labels to the pieces of a prompt's text
(`Request.pieces`), and the log says of a label what it says of the block in which its piece ends: stored once that
block is published, removed once it is lost. Where in the prompt a piece ends is reckoned by its share of the text,
since chat templates and tokenizers stand between the two: it may be wrong by a block or two.

There is a log only once somebody has asked for it (`Engine.watch_prefixes`). Used by the engine's thread alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pagoda.engine.sequence import Sequence, Status
from pagoda.kv.prefix import PrefixCache
from pagoda.types import BLOCK_SIZE, PrefixChange

MAX_LABELS = 64  # of one block; a block of tokens holds less than a piece of most texts


class PrefixLog:
    """Watches a prefix cache, and reads off its sequences which labels their blocks have."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._labels_of: dict[bytes, set[int]] = {}  # by block, of published blocks alone
        self._block_of: dict[int, bytes] = {}  # by label
        self._followed: dict[Sequence, int] = {}  # prompts whose labels are not all stored: how many are
        self._changes: list[tuple[Literal["stored", "removed"], list[bytes], list[int]]] = []
        cache.watcher = self

    # As the prefix cache's watcher

    def published(self, key: bytes) -> None:
        self._note("stored")[0].append(key)

    def forgotten(self, key: bytes) -> None:
        blocks, labels = self._note("removed")
        blocks.append(key)
        for label in self._labels_of.pop(key, ()):
            del self._block_of[label]
            labels.append(label)

    # Of prompts

    def follow(self, seq: Sequence) -> None:
        """A sequence has come whose prompt has labels."""
        self._followed[seq] = 0

    def take(self) -> tuple[PrefixChange, ...]:
        """What has changed since the last time, in order."""
        for seq in list(self._followed):
            self._read_labels(seq)
        changes, self._changes = self._changes, []
        return tuple(PrefixChange(kind, tuple(blocks), tuple(labels)) for kind, blocks, labels in changes)

    def _read_labels(self, seq: Sequence) -> None:
        """Store the labels of those blocks of the prompt that are published by now."""
        pieces = seq.request.pieces
        assert pieces is not None
        place, full = self._followed[seq], seq.prompt_len // BLOCK_SIZE
        for label in pieces.labels[place:]:
            block = pieces.last_block(place, seq.prompt_len)
            if block < full and (block >= len(seq.keys) or not self._cache.has(seq.keys[block])):
                if seq.status is not Status.FINISHED:
                    self._followed[seq] = place
                    return
                break
            if block >= full:  # the last tokens of a prompt are in no block that others can share
                break
            self._label(seq.keys[block], label)
            place += 1
        del self._followed[seq]

    def _label(self, key: bytes, label: int) -> None:
        before = self._block_of.get(label)
        labels = self._labels_of.setdefault(key, set())
        if before == key or len(labels) >= MAX_LABELS:
            return
        if before is None:
            self._note("stored")[1].append(label)
        else:  # the same text in another prompt: where it ends there counts from now on
            self._labels_of[before].discard(label)
        labels.add(label)
        self._block_of[label] = key

    # What there is

    def snapshot(self, size: int) -> Iterator[PrefixChange]:
        """All that is held now, in parts of so many blocks."""
        keys = self._cache.all_keys()
        for start in range(0, len(keys), size):
            part = tuple(keys[start : start + size])
            yield PrefixChange("stored", part, tuple(label for key in part for label in self._labels_of.get(key, ())))

    def _note(self, kind: Literal["stored", "removed"]) -> tuple[list[bytes], list[int]]:
        """Where the next change of this kind is written down."""
        if not self._changes or self._changes[-1][0] != kind:
            self._changes.append((kind, [], []))
        _, blocks, labels = self._changes[-1]
        return blocks, labels

    def check(self) -> None:
        """Every label belongs to one block, which is published."""
        assert {label: key for key, labels in self._labels_of.items() for label in labels} == self._block_of
        assert all(self._cache.has(key) for key in self._labels_of)
