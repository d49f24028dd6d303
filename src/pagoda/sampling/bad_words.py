"""A banned word as token sequences: a word reads differently at the start of a text and after a space."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def token_sequences(words: Iterable[str], encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
    """Both spellings of each word, without repeats. `encode` must add no special tokens.

    A longer sequence that ends in a banned one, as when a tokenizer splits ' word' into ' ' and 'word', is harmless.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for text in (bare, " " + bare):
            if ids := tuple(encode(text)):
                found[ids] = None
    return tuple(found)
