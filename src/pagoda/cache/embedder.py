"""What a cache needs of a model that makes vectors of questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pagoda.types import FloatArray


class Embedder(Protocol):
    """`pagoda.engine.embedder.Embedder` is one."""

    @property
    def digest(self) -> str:
        """A hash of everything that its vectors depend on."""

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """[n, d] of length 1."""
