"""Cuts the tokens that stand for themselves (control tokens, user defined ones) out of a text.

Where several match, the leftmost wins, and of those the longest, as in `tokenizers` and SentencePiece.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

_ORDINARY = "\0"  # the one token of the model underneath: any text that is not special


class SpecialSplitter:
    """Splits by a fixed set of texts, in time linear in the text and independent of the size of the set."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        """`specials` maps the texts to their ids; an empty text can match nothing and is left out."""
        texts = [text for text in specials if text]
        self._ids = [-1, *(specials[text] for text in texts)]
        # A text equal to the ordinary token would share its id and shift all others.
        assert _ORDINARY not in texts
        self._automaton = Tokenizer(WordLevel({_ORDINARY: 0}, unk_token=_ORDINARY)) if texts else None
        if self._automaton is not None:
            self._automaton.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts])

    def split(self, text: str) -> list[str | int]:
        """Pieces in order: `str` for ordinary text (never empty), `int` for the id of a special token."""
        if self._automaton is None or not text:
            return [text] if text else []
        found = self._automaton.encode(text, add_special_tokens=False)
        if len(found.ids) == 1 and found.ids[0] == 0:
            return [text]
        pieces = zip(found.ids, found.offsets, strict=True)
        return [self._ids[i] if i else text[start:end] for i, (start, end) in pieces]
