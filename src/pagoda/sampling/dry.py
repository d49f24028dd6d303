"""Where DRY takes a passage to end: the token sequences that hold a breaker, such as a line's end or a quote.

A token whose text holds the breaker is one by itself. One that ends with the breaker's beginning is one together with
the tokens of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

MAX_BREAKER_BYTES = 40
MAX_REST_TOKENS = 20
MAX_KEPT = 256  # breakers whose sequences are remembered

TokenSequences = tuple[tuple[int, ...], ...]


class BreakerTokenizer(Protocol):
    """What breakers need of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Breakers:
    """Finds the sequences of breakers in one vocabulary, by searching its text as a whole: a millisecond a breaker."""

    def __init__(self, tokenizer: BreakerTokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[str, TokenSequences] = {}

    def sequences(self, breakers: Iterable[str]) -> TokenSequences:
        """The token sequences that hold one of the breakers, without repeats."""
        found: dict[tuple[int, ...], None] = {}
        for breaker in breakers:
            if breaker not in self._kept:
                if len(self._kept) >= MAX_KEPT:
                    self._kept.clear()
                self._kept[breaker] = self._search(breaker.encode("utf-8", "replace")[:MAX_BREAKER_BYTES])
            found |= dict.fromkeys(self._kept[breaker])
        return tuple(found)

    def _search(self, wanted: bytes) -> TokenSequences:
        found: list[tuple[int, ...]] = [(token_id,) for token_id in self._tokens_with(wanted, at_end=False)]
        whole = {sequence[0] for sequence in found}
        for n in range(1, len(wanted)):
            heads = [token_id for token_id in self._tokens_with(wanted[:n], at_end=True) if token_id not in whole]
            if heads:
                rest = wanted[n:].decode("utf-8", "replace")
                tail = tuple(self._tokenizer.encode(rest, add_special=False)[:MAX_REST_TOKENS])
                found += [(token_id, *tail) for token_id in heads]
        return tuple(found)

    def _tokens_with(self, part: bytes, *, at_end: bool) -> list[int]:
        """Tokens whose text holds the part, or ends with it."""
        text, ends = self._vocabulary
        lookahead = re.compile(b"(?=" + re.escape(part) + b")")  # places may overlap
        stops = np.array([match.start() for match in lookahead.finditer(text)], dtype=np.int64) + len(part)
        owners = np.searchsorted(ends, stops, side="left")  # the token in which, or with which, each place stops
        begins = np.concatenate([[0], ends[:-1]])[owners]
        inside = stops - len(part) >= begins
        if at_end:
            inside &= ends[owners] == stops
        return [int(owner) for owner in np.unique(owners[inside])]

    @cached_property
    def _vocabulary(self) -> tuple[bytes, npt.NDArray[np.int64]]:
        """The texts of all tokens, one after the other, and where each ends."""
        texts = [self._tokenizer.token_bytes(i) for i in range(self._tokenizer.vocab_size)]
        return b"".join(texts), np.cumsum([len(text) for text in texts], dtype=np.int64)
