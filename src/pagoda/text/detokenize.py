"""Tokens become text one by one: bytes go through an incremental UTF-8 decoder, and only whole characters come out.

Bytes that can never become a character come out as U+FFFD as soon as that is certain.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from pagoda.text.vocabulary import Vocabulary

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
_MAX_UTF8 = 4  # bytes of the longest character


class TokenStream:
    """Turns the tokens of one answer into text.

    What `push` and `flush` return, joined, is what `Tokenizer.decode` makes of all the tokens. Each call costs time
    in proportion to its own token, however long the answer is.
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool = True, prompt_ids: Sequence[int] = ()) -> None:
        """`prompt_ids` stand before the answer: their text is not repeated, but a character may begin in them."""
        self._vocabulary = vocabulary
        self._skip_special = skip_special
        self._decoder = _Utf8Decoder("replace")
        self._at_start = vocabulary.strip_leading_space and not prompt_ids
        if prompt_ids:
            self._decoder.decode(self._unfinished(prompt_ids))

    def push(self, token_id: int) -> str:
        """The characters that this token completes; often empty."""
        return self._decoder.decode(self._bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: nothing, or U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)

    def _bytes(self, token_id: int) -> bytes:
        if self._skip_special and self._vocabulary.is_special(token_id):
            return b""
        added = self._vocabulary.token_bytes(token_id)
        if self._at_start and added:
            self._at_start = False
            return added.removeprefix(b" ")
        return added

    def _unfinished(self, prompt_ids: Sequence[int]) -> bytes:
        """The first bytes of a character that the prompt ends in the middle of, or none."""
        tail = b"".join(self._bytes(i) for i in prompt_ids[-_MAX_UTF8:])[-_MAX_UTF8:]
        decoder = _Utf8Decoder("replace")
        decoder.decode(tail)
        return decoder.getstate()[0]


class StopMatcher:
    """Finds stop strings in a text that comes in parts, and holds back what may yet become one.

    The stop string that ends first wins; of those that end at the same character, the one that begins first. So the
    answer does not depend on how the text was cut into parts.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        """`include_stop`: a stop string that was found is part of the text shown. Empty strings never match."""
        distinct = sorted({stop for stop in stops if stop}, key=len, reverse=True)
        self._progress = [_Progress(stop) for stop in distinct]  # longest first
        self._include_stop = include_stop
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that may be shown now, the stop string that was found or None). Nothing may follow a match."""
        seen = len(self._held)
        self._held += text
        if self._progress:
            for end, char in enumerate(text, seen + 1):
                complete = [progress.stop for progress in self._progress if progress.advance(char)]
                if complete:
                    shown = self._held[: end if self._include_stop else end - len(complete[0])]
                    self._held = ""
                    return shown, complete[0]
        keep = max((progress.matched for progress in self._progress), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, None

    def flush(self) -> str:
        """The text held back, now that no more comes."""
        held, self._held = self._held, ""
        return held


class _Progress:
    """How much of one stop string the text ends with (Knuth, Morris, Pratt 1977: constant time a character)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = [0, 0]  # for each matched length, the next shorter one that the text ends with too
        for end in range(1, len(stop)):
            self._fallback.append(self._extend(self._fallback[end], stop[end]))

    def advance(self, char: str) -> bool:
        """Takes the next character; True when it completes the stop string."""
        self.matched = self._extend(self.matched, char)
        return self.matched == len(self.stop)

    def _extend(self, matched: int, char: str) -> int:
        while matched and self.stop[matched] != char:
            matched = self._fallback[matched]
        return matched + 1 if self.stop[matched] == char else 0
