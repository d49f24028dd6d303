"""Steps that several threads share: who gets the turn computes what others wait for, too, as far as it fits in a step.

All weights are read for a step, of one text or of fifty; so threads that come while a step runs are served together by
the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pagoda.text.framing import TokenizedText
from pagoda.types import FloatArray

Compute = Callable[[Sequence[TokenizedText]], Sequence[FloatArray]]


@dataclass(eq=False, slots=True)
class _Piece:
    """What one thread wants of a step."""

    texts: Sequence[TokenizedText]
    vectors: Sequence[FloatArray] = ()
    error: BaseException | None = None
    done: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(len(text.token_ids) for text in self.texts)


class SharedSteps:
    """`compute` makes a vector of each text; never called by two threads at once."""

    def __init__(self, compute: Compute, *, max_tokens: int, max_texts: int) -> None:
        self._compute = compute
        self._max_tokens, self._max_texts = max_tokens, max_texts
        self._waiting: list[_Piece] = []  # guarded by _mutex
        self._mutex = threading.Lock()
        self.turn = threading.Lock()

    def run(self, texts: Sequence[TokenizedText]) -> Sequence[FloatArray]:
        """The vectors of texts that fit in one step. Raises what `compute` raises."""
        piece = _Piece(texts)
        with self._mutex:
            self._waiting.append(piece)
        while not piece.done:
            with self.turn:
                if not piece.done:
                    self._step(self._next())
        if piece.error is not None:
            raise piece.error
        return piece.vectors

    def _next(self) -> list[_Piece]:
        """Those that have waited longest, as many as fit; one at least."""
        with self._mutex:
            count = num_tokens = num_texts = 0
            for piece in self._waiting:
                num_tokens, num_texts = num_tokens + piece.num_tokens, num_texts + len(piece.texts)
                if count and (num_tokens > self._max_tokens or num_texts > self._max_texts):
                    break
                count += 1
            chosen, self._waiting = self._waiting[:count], self._waiting[count:]
        return chosen

    def _step(self, pieces: list[_Piece]) -> None:
        try:
            vectors = self._compute([text for piece in pieces for text in piece.texts])
            for piece in pieces:
                piece.vectors, vectors = vectors[: len(piece.texts)], vectors[len(piece.texts) :]
        except BaseException as error:
            for piece in pieces:
                piece.error = error
        for piece in pieces:
            piece.done = True
