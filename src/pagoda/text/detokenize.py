"""Tokens become text one by one, in whole characters; stop strings are found in it.

Bytes that can never become a character come out as U+FFFD as soon as that is certain.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any

from pagoda.text.vocabulary import SPECIAL_TYPES, DecoderRun, TokenType, Vocabulary

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
_PRIMING_TOKENS = 16  # of the prompt: more than the four bytes that a character may begin with


class TokenStream:
    """Turns the tokens of one answer into text.

    What `push` and `flush` return, joined, is what `Tokenizer.decode` makes of all the tokens. Each call costs time
    in proportion to its own token, however long the answer is.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        skip_special: bool = True,
        prompt_ids: Sequence[int] = (),
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        """`prompt_ids` stand before the answer: their text is not repeated, but a character may begin in them.

        shown_ids: tokens that are text although they are special
        """
        self._shown_ids = shown_ids
        self._types = vocabulary.types
        self._spell: Callable[[int], Any]
        self._run: DecoderRun
        left_out = SPECIAL_TYPES if skip_special else frozenset[TokenType]()
        if isinstance(vocabulary.spelling, str):
            self._spell, self._run = vocabulary.token_bytes, _BytesRun(vocabulary.strip_leading_space)
        else:
            self._spell, self._run = vocabulary.tokens.__getitem__, vocabulary.spelling.open()
            left_out |= {TokenType.UNUSED}  # ids without a token
        self._left_out = left_out
        self._push = self._run.push
        if prompt_ids:
            self._run.prime(self._last_tokens(prompt_ids))

    def push(self, token_id: int) -> str:
        """The characters that are certain with this token; often none."""
        return self._push(self._spell(token_id)) if self._is_shown(token_id) else ""

    def flush(self) -> str:
        """What is left at the end: what waited for its neighbour, U+FFFD for a character that was never completed."""
        return self._run.finish()

    def _is_shown(self, token_id: int) -> bool:
        types = self._types
        return 0 <= token_id < len(types) and (types[token_id] not in self._left_out or token_id in self._shown_ids)

    def _last_tokens(self, prompt_ids: Sequence[int]) -> list[Any]:
        """The last tokens of the prompt that are shown, in order."""
        found: list[Any] = []
        for token_id in reversed(prompt_ids):
            if self._is_shown(token_id):
                found.append(self._spell(token_id))
                if len(found) == _PRIMING_TOKENS:
                    break
        return found[::-1]


class _BytesRun:
    """Tokens that each add bytes of their own, whatever stands around them."""

    def __init__(self, strip_leading_space: bool) -> None:
        self._decoder = _Utf8Decoder("replace")
        self._at_start = strip_leading_space

    def push(self, token: bytes) -> str:
        if self._at_start and token:
            self._at_start = False
            token = token.removeprefix(b" ")
        return self._decoder.decode(token)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)

    def prime(self, tokens: Sequence[bytes]) -> None:
        self._at_start = False
        self._decoder.decode(b"".join(tokens))


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
