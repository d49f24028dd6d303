"""SentencePiece BPE as llama.cpp does it: of all neighbours that together make a token, join those with the best score.

Ties go to the leftmost. A merge list cannot say that (several pairs may make the same token, and their order depends
on where they stand), so the merging is done here, exactly. It is fast because text falls apart into short chunks: two
characters that stand side by side in no token of the vocabulary can never be joined, so chunks end there, and the
chunks of ordinary text repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pagoda.text.vocabulary import SPACE

_CACHE_CHUNKS = 65_536
_CACHE_CHARS = 32  # longer chunks seldom come again


class SentencePieceEncoder:
    """Encodes ordinary text, in which special tokens mean nothing."""

    def __init__(
        self,
        ids: Mapping[str, int],
        scores: Mapping[str, float],
        byte_ids: Mapping[int, int],
        *,
        unk_id: int | None,
        add_space_prefix: bool,
    ) -> None:
        """`ids` and `scores` of the tokens that text may become; `byte_ids` of those for single bytes.

        A character without a token becomes its bytes; a byte without a token becomes `unk_id`, or nothing.
        """
        self._ids = ids
        self._scores = scores
        self._byte_ids = byte_ids
        self._unk = () if unk_id is None else (unk_id,)
        self._prefix = SPACE if add_space_prefix else ""
        self._neighbours = _neighbours(ids)
        self._cache: dict[str, tuple[int, ...]] = {}

    def __call__(self, text: str) -> list[int]:
        spelled = self._prefix + text.replace(" ", SPACE)
        output: list[int] = []
        for chunk in self._chunks(spelled):
            output += self._cache.get(chunk) or self._encode(chunk)
        return output

    def _chunks(self, text: str) -> list[str]:
        """The text, cut wherever two characters stand side by side that do so in no token."""
        pairs = _pairs(text)
        if pairs.size == 0:
            return [text] if text else []
        at = np.searchsorted(self._neighbours, pairs)
        cuts = np.flatnonzero(self._neighbours[np.minimum(at, self._neighbours.size - 1)] != pairs) + 1
        bounds = [0, *cuts.tolist(), len(text)]
        return [text[start:end] for start, end in pairwise(bounds)]

    def _encode(self, chunk: str) -> tuple[int, ...]:
        encoded: list[int] = []
        for piece in self._merge(chunk):
            found = self._ids.get(piece)
            if found is not None:
                encoded.append(found)
            else:
                encoded += self._fall_back(piece)
        if len(chunk) <= _CACHE_CHARS:
            if len(self._cache) >= _CACHE_CHUNKS:
                self._cache.clear()
            self._cache[chunk] = tuple(encoded)
        return tuple(encoded)

    def _fall_back(self, piece: str) -> list[int]:
        byte_ids = [self._byte_ids.get(byte) for byte in piece.encode("utf-8")]
        return [i for found in byte_ids for i in (self._unk if found is None else (found,))]

    def _merge(self, chunk: str) -> list[str]:
        """The chunk's characters, joined as far as the vocabulary goes.

        Symbols are [start, ends[start]); the heap holds (-score, start of the left one, start of the right one, end
        of the right one) and may hold pairs of which one has since been joined to something else.
        """
        scores, size = self._scores, len(chunk)
        ends = list(range(1, size + 1))  # 0 once the symbol is part of its left neighbour
        lefts = list(range(-1, size - 1))
        heap = []
        for i in range(size - 1):
            score = scores.get(chunk[i : i + 2])
            if score is not None:
                heap.append((-score, i, i + 1, i + 2))
        heapify(heap)
        while heap:
            _, left, right, end = heappop(heap)
            if ends[left] != right or ends[right] != end:
                continue
            ends[left], ends[right] = end, 0
            if end < size:
                lefts[end] = left
                score = scores.get(chunk[left : ends[end]])
                if score is not None:
                    heappush(heap, (-score, left, end, ends[end]))
            before = lefts[left]
            if before >= 0:
                score = scores.get(chunk[before:end])
                if score is not None:
                    heappush(heap, (-score, before, left, end))
        return [chunk[start:end] for start, end in enumerate(ends) if end]


def _pairs(text: str) -> npt.NDArray[np.uint64]:
    """Every two neighbouring characters of the text as one number. [len(text) - 1]"""
    chars = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    pairs: npt.NDArray[np.uint64] = (chars[:-1] << np.uint64(32)) | chars[1:]
    return pairs


def _neighbours(tokens: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """Sorted pairs of characters that stand side by side in some token; never empty.

    Those across the joint between two tokens come in too: they cost a longer chunk, never a wrong one.
    """
    return np.unique(_pairs("\0\0" + "\0".join(tokens)))
