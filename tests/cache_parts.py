"""Embeddings and entries for tests of the cache that need no model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from pagoda.cache.entry import Answer, Entry, digest, entry_id
from pagoda.types import FloatArray

WIDTH = 16


def unit(*numbers: float, width: int = WIDTH) -> FloatArray:
    vector = np.zeros(width, np.float32)
    vector[: len(numbers)] = numbers
    return vector / np.float32(np.linalg.norm(vector))


class WordEmbedder:
    """Texts of the same words are near each other: a random direction a word, summed."""

    digest = "words"

    def __init__(self) -> None:
        self.num_texts = 0

    def embed(self, texts: Sequence[str]) -> FloatArray:
        self.num_texts += len(texts)
        return np.stack([self._one(text) for text in texts])

    @staticmethod
    def _one(text: str) -> FloatArray:
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split() or ["-"]
        rows = [np.random.default_rng(zlib.crc32(word.encode())).normal(size=64) for word in words]
        total = np.sum(rows, axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)


def entry(
    question: str = "What is rust?",
    answer: str = "Iron oxide.",
    *,
    partition: str = "p",
    vector: FloatArray | None = None,
    space: str = "s",
    created: float = 1000.0,
    ttl: float = 3600.0,
    tenant: str = "t",
    model: str = "m",
    tags: tuple[str, ...] = (),
    sliding: bool = False,
) -> Entry:
    key = digest([partition, question])
    return Entry(
        id=entry_id(key),
        partition=partition,
        key=key,
        tenant=tenant,
        model=model,
        question=question,
        answer=Answer(((answer, (1, 2, 3)),), "stop", None, 10, 3),
        vector=vector,
        space=space,
        created=created,
        expires=created + ttl,
        ttl=ttl,
        sliding=sliding,
        tags=tags,
    )
