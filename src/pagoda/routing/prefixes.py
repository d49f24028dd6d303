"""How requests begin, as hashes of pieces of their text, and which of those a replica has lately read.

A hash stands for its piece and for all that is before it, as the keys of a prefix cache do. No tokenizer is needed:
texts that begin alike become tokens that begin alike, but for the last one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

PIECE_BYTES = 256  # some 64 tokens, four blocks of KV
MAX_PIECES = 4096  # of one request: 1 MiB of text
MAX_HELD = 65_536  # of one replica


def prefix_hashes(parts: Iterable[bytes], salt: str = "") -> tuple[int, ...]:
    """For each whole piece of the joined `parts`, a hash of it and of all before it. Hashes can be compared within
    this process, and for equal salts.

    Python hashes bytes with a secret of the process, so nobody can find out from a hash what was said.
    """
    text = b"\0".join(parts)
    hashes: list[int] = []
    before = hash(salt)
    for end in range(PIECE_BYTES, min(len(text), PIECE_BYTES * MAX_PIECES) + 1, PIECE_BYTES):
        before = hash((before, text[end - PIECE_BYTES : end]))
        hashes.append(before)
    return tuple(hashes)


class PrefixIndex:
    """Hashes of what a replica was sent, those used longest ago forgotten first."""

    def __init__(self, max_held: int = MAX_HELD) -> None:
        self._max_held = max_held
        self._held: OrderedDict[int, None] = OrderedDict()

    def matched(self, hashes: Sequence[int]) -> int:
        """How many of a request's pieces, from the first on, are held."""
        for place, one in enumerate(hashes):
            if one not in self._held:
                return place
        return len(hashes)

    def add(self, hashes: Sequence[int]) -> None:
        """The replica reads these. The first pieces are forgotten last: without them the others are worth nothing."""
        held = self._held
        for one in reversed(hashes):
            held[one] = None
            held.move_to_end(one)
        while len(held) > self._max_held:
            held.popitem(last=False)

    def clear(self) -> None:
        self._held.clear()
