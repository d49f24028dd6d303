"""Tokenizing no more than is needed: a text that cannot fit the context is refused before all of it is tokenized.

A text is encoded from its beginning (or its end, where only that is wanted) in parts that double in length, until the
tokens suffice to say that it does not fit. So the work follows the context, whatever the length of the text.
"""

from __future__ import annotations

from collections.abc import Callable

CHARS_PER_TOKEN = 8  # of the first part; prose has 3 to 5
SLACK = 64  # tokens by which a cut text may differ from the whole, at the place of the cut

Encode = Callable[[str], list[int]]


class TooManyTokensError(Exception):
    """The text has `num_tokens` tokens or more."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.num_tokens = num_tokens


def encode_within(encode: Encode, text: str, limit: int, longest: int) -> list[int]:
    """The tokens of `text`; `longest` is the number of characters of the vocabulary's longest token.

    Raises TooManyTokensError when there are more than `limit`.
    """
    if len(text) > limit * longest:
        raise TooManyTokensError(-(-len(text) // longest))
    length = CHARS_PER_TOKEN * limit
    while length < len(text):
        num_tokens = len(encode(text[:length])) - SLACK
        if num_tokens > limit:
            raise TooManyTokensError(num_tokens)
        length *= 2
    ids = encode(text)
    if len(ids) > limit:
        raise TooManyTokensError(len(ids))
    return ids


def encode_last(encode: Encode, text: str, keep: int) -> list[int]:
    """At least the last `keep` tokens of `text`, all of them when it is short."""
    length = CHARS_PER_TOKEN * (keep + SLACK)
    while length < len(text):
        ids = encode(text[-length:])
        if len(ids) >= keep + SLACK:
            return ids[SLACK:]
        length *= 2
    return encode(text)


def encode_first(encode: Encode, text: str, keep: int) -> list[int]:
    """At least the first `keep` tokens of `text` and some more where it is longer, all of them when it is short."""
    length = CHARS_PER_TOKEN * (keep + SLACK)
    while length < len(text):
        ids = encode(text[:length])
        if len(ids) >= keep + SLACK:
            return ids[: len(ids) - SLACK // 2]
        length *= 2
    return encode(text)
