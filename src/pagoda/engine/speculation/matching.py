"""Where the end of a text stood before: an index of three tokens in a row, and the longest match among its places."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

NGRAM = 3  # tokens that are looked up; shorter matches are mostly chance
MOST_PLACES = 12  # of one n-gram, the latest, that are compared
LONGEST = 64  # tokens of a match that are told apart: longer ones are as good
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
    """Places of every n-gram of a text that grows at its end. Each token is entered once, in constant time."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int, int], list[int]] = {}  # n-gram -> where it ends
        self._num_indexed = 0

    def extend(self, tokens: array[int], stop: int) -> None:
        """Enter n-grams that end at or before `stop`."""
        places = self._places
        for end in range(max(NGRAM, self._num_indexed + 1), stop + 1):
            gram = (tokens[end - 3], tokens[end - 2], tokens[end - 1])
            known = places.get(gram)
            if known is None:
                places[gram] = [end]
            else:
                known.append(end)
        self._num_indexed = max(self._num_indexed, stop)

    def places(self, tail: Seq[int]) -> list[int]:
        """Ends of the latest places of the tail's last three tokens, the latest first."""
        if len(tail) < NGRAM:
            return []
        found = self._places.get((tail[-3], tail[-2], tail[-1]), ())
        return list(found[: -MOST_PLACES - 1 : -1])


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
