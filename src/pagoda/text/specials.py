"""Cuts the tokens that stand for themselves (control tokens, user defined ones) out of a text.

Where several match, the leftmost wins, and of those the longest, as in `tokenizers` and SentencePiece.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel


class SpecialSplitter:
    """Splits by a fixed set of texts, in time linear in the text and independent of the size of the set.

    `tokenizers` does it, over a model whose only token, 0, is any text that is not special.
    """

    def __init__(self, specials: Mapping[str, int], rstrip_ids: Collection[int] = ()) -> None:
        """`specials` maps the texts to their ids; an empty text can match nothing and is left out.

        A token of `rstrip_ids` takes the white space behind it with it.
        """
        texts = [text for text in specials if text]
        self._ids = [-1, *(specials[text] for text in texts)]
        ordinary = "\0" * (1 + max(map(len, texts), default=0))  # a name that no special token has
        self._automaton = Tokenizer(WordLevel({ordinary: 0}, unk_token=ordinary)) if texts else None
        if self._automaton is not None:
            self._automaton.add_tokens(
                [AddedToken(text, normalized=False, rstrip=specials[text] in rstrip_ids) for text in texts]
            )

    def split(self, text: str) -> list[str | int]:
        """Pieces in order: `str` for ordinary text (never empty), `int` for the id of a special token."""
        if self._automaton is None or not text:
            return [text] if text else []
        (found,) = self._automaton.encode_batch([text], add_special_tokens=False)  # a batch: without the lock
        if len(found.ids) == 1 and found.ids[0] == 0:
            return [text]
        pieces = zip(found.ids, found.offsets, strict=True)
        return [self._ids[i] if i else text[start:end] for i, (start, end) in pieces]
