"""Where the end of a text stood before: an index of three tokens in a row, and the longest match among its places."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

NGRAM = 3  # tokens that are looked up; shorter matches are mostly chance
MOST_PLACES = 12  # of one n-gram, the latest, that are compared
LONGEST = 64  # tokens of a match that are told apart: longer ones are as good
ID_BITS = 21  # of a token id in an n-gram
STRENGTHS = (5, 9, 17)  # lengths of matches from which on their continuations are better guesses


@dataclass(frozen=True, slots=True)
class Match:
    """Tokens before `end` are the same as those at the end of the text, `length` of them."""

    end: int
    length: int

    @property
    def strength(self) -> int:
        """0 to 3: how much its continuation is to be trusted."""
        return sum(self.length >= least for least in STRENGTHS)


class NgramIndex:
    """Places of every n-gram of a text that grows at its end. Each token is entered once.

    What is there at first, a prompt or a whole answer, lies in sorted arrays, 12 bytes a token; what comes later in a
    dictionary, some 170. An n-gram is one integer, exact for ids below 2^21.
    """

    def __init__(self) -> None:
        self._grams = array("q")  # of the beginning, in ascending order
        self._ends = array("i")  # where each of them ends; equal ones in the text's order
        self._places: dict[int, list[int]] = {}  # n-gram -> where it ends, behind the beginning
        self._num_indexed = 0

    def extend(self, tokens: array[int], stop: int) -> None:
        """Enter n-grams that end at or before `stop`."""
        if not self._num_indexed and stop >= NGRAM:
            ids = np.array(tokens[:stop], dtype=np.int64)
            grams = (ids[:-2] << 2 * ID_BITS) | (ids[1:-1] << ID_BITS) | ids[2:]
            order = np.argsort(grams, kind="stable")
            self._grams = array("q", grams[order].tobytes())
            self._ends = array("i", (order + NGRAM).astype(np.int32).tobytes())
            self._num_indexed = stop
        for end in range(max(NGRAM, self._num_indexed + 1), stop + 1):
            self._places.setdefault(_gram(tokens[end - NGRAM : end]), []).append(end)
        self._num_indexed = max(self._num_indexed, stop)

    def places(self, tail: Seq[int]) -> list[int]:
        """Ends of the latest places of the tail's last three tokens, the latest first."""
        if len(tail) < NGRAM:
            return []
        gram = _gram(tail[-NGRAM:])
        found = self._places.get(gram, [])[: -MOST_PLACES - 1 : -1]
        if len(found) < MOST_PLACES:
            first = bisect_left(self._grams, gram)
            last = bisect_right(self._grams, gram, first)
            first = max(first, last - MOST_PLACES + len(found))
            found += reversed(self._ends[first:last])
        return found


def _gram(tokens: Seq[int]) -> int:
    first, second, third = tokens
    return (first << 2 * ID_BITS) | (second << ID_BITS) | third


def best_match(index: NgramIndex, text: array[int], tail: array[int]) -> Match | None:
    """The longest match of `tail`'s end in the indexed `text`; of equally long ones a latest with the commonest next
    token. None: there is none that anything follows.
    """
    matches = [Match(end, _common_length(text, end, tail)) for end in index.places(tail[-NGRAM:]) if end < len(text)]
    if not matches:
        return None
    longest = max(match.length for match in matches)
    best = [match for match in matches if match.length == longest]
    votes = Counter(text[match.end] for match in best)
    return max(best, key=lambda match: (votes[text[match.end]], match.end))


def _common_length(text: array[int], end: int, tail: array[int]) -> int:
    """How many tokens before `end` of the text are the tail's last ones."""
    most = min(end, len(tail), LONGEST)
    length = NGRAM
    while length < most and text[end - 1 - length] == tail[-1 - length]:
        length += 1
    return length
