"""How requests begin, as hashes of pieces of their text, and which of those a replica holds.

A hash stands for its piece and for all that is before it, as the keys of a prefix cache do. No tokenizer is needed:
texts that begin alike become tokens that begin alike, but for the last one.

What a replica holds is guessed from what it was sent (`PrefixIndex`), or said by the replica itself (`ToldPrefixes`):
then it is sent the hashes with each request, by which it names what it comes to hold and loses.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Sequence
from hashlib import blake2b
from typing import Protocol

from pagoda.types import PromptPieces

PIECE_BYTES = 256  # some 64 tokens, four blocks of KV
MAX_PIECES = 4096  # of one request: 1 MiB of text
MAX_HELD = 65_536  # of one replica
MAX_TOLD = 1024  # pieces of one request that a replica is told of: 11 kB of a header
HASH_BYTES = 8
HEADER = "X-Pagoda-Prefix"

PROCESS_SECRET = os.urandom(32)


def prefix_hashes(parts: Iterable[bytes], salt: str = "", secret: bytes = PROCESS_SECRET) -> tuple[int, ...]:
    """For each whole piece of the joined `parts`, a hash of it and of all before it. Hashes can be compared for equal
    salts and secrets.

    Nobody without the secret can find out from a hash what was said.
    """
    text = b"\0".join(parts)
    hasher = blake2b(salt.encode("utf-8", "surrogatepass") + b"\0", digest_size=HASH_BYTES, key=secret)
    hashes: list[int] = []
    for end in range(PIECE_BYTES, min(len(text), PIECE_BYTES * MAX_PIECES) + 1, PIECE_BYTES):
        hasher.update(text[end - PIECE_BYTES : end])
        hashes.append(int.from_bytes(hasher.copy().digest(), "little"))
    return tuple(hashes)


def pieces_header(hashes: Sequence[int], num_bytes: int) -> str:
    """The value of HEADER for a text of so many bytes, of which these are the first pieces."""
    told = b"".join(one.to_bytes(HASH_BYTES, "little") for one in hashes[:MAX_TOLD])
    return f"{num_bytes}:{base64.urlsafe_b64encode(told).decode()}"


def read_pieces(header: str) -> PromptPieces | None:
    """What `pieces_header` has written; None: it is something else."""
    size, _, told = header.partition(":")
    try:
        num_bytes, data = int(size), base64.urlsafe_b64decode(told)
    except (ValueError, binascii.Error):
        return None
    labels = [int.from_bytes(data[at : at + HASH_BYTES], "little") for at in range(0, len(data), HASH_BYTES)]
    if not labels or len(data) % HASH_BYTES or not len(labels) <= MAX_TOLD or num_bytes < PIECE_BYTES * len(labels):
        return None
    return PromptPieces(tuple(labels), PIECE_BYTES / num_bytes)


class Prefixes(Protocol):
    """Pieces of texts that a replica holds, as far as is known."""

    def matched(self, hashes: Sequence[int]) -> int:
        """How many of a request's pieces, from the first on, are held."""

    def add(self, hashes: Sequence[int]) -> None:
        """A request is sent that begins so."""

    def over(self, hashes: Sequence[int]) -> None:
        """The request has ended, however it did."""

    def clear(self) -> None:
        """The replica holds nothing any more."""


class PrefixIndex:
    """A guess: what a replica was sent, those used longest ago forgotten first."""

    def __init__(self, max_held: int = MAX_HELD) -> None:
        self._max_held = max_held
        self._held: OrderedDict[int, None] = OrderedDict()

    def matched(self, hashes: Sequence[int]) -> int:
        """How many of a request's pieces, from the first on, are held."""
        return _leading(hashes, self._held)

    def add(self, hashes: Sequence[int]) -> None:
        """The replica reads these. The first pieces are forgotten last: without them the others are worth nothing."""
        held = self._held
        for one in reversed(hashes):
            held[one] = None
            held.move_to_end(one)
        while len(held) > self._max_held:
            held.popitem(last=False)

    def over(self, hashes: Sequence[int]) -> None:
        """What it has read stays, as far as can be guessed."""

    def clear(self) -> None:
        self._held.clear()


class ToldPrefixes:
    """What a replica says that it holds, and what it is reading at the moment."""

    def __init__(self) -> None:
        self._held: set[int] = set()
        self._read: Counter[int] = Counter()  # pieces of requests under way, by how many of these

    def matched(self, hashes: Sequence[int]) -> int:
        """How many of a request's pieces, from the first on, are held, or will be."""
        return max(_leading(hashes, self._held), _leading(hashes, self._read))

    def add(self, hashes: Sequence[int]) -> None:
        """A request is under way that begins so: the next that does will find it read."""
        self._read.update(hashes)

    def over(self, hashes: Sequence[int]) -> None:
        """It has ended: what of it is held has been told by now."""
        for one in hashes:
            if self._read[one] > 1:
                self._read[one] -= 1
            else:
                del self._read[one]

    def stored(self, hashes: Iterable[int]) -> None:
        """The replica says that it holds these, too."""
        self._held.update(hashes)

    def removed(self, hashes: Iterable[int]) -> None:
        """The replica says that it has lost these."""
        self._held.difference_update(hashes)

    def clear(self) -> None:
        self._held.clear()
        self._read.clear()

    def as_guess(self) -> PrefixIndex:
        """What is to be assumed from now on, where the replica says nothing any more."""
        guess = PrefixIndex()
        guess.add([*self._held, *self._read])
        return guess


def _leading(hashes: Sequence[int], held: Container[int]) -> int:
    for place, one in enumerate(hashes):
        if one not in held:
            return place
    return len(hashes)
