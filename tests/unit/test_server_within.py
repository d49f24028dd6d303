"""Texts that may be far too long: what is encoded of them, and what is said of them.

The rule is vLLM's: no text has fewer tokens than its characters over those of the vocabulary's longest token.
"""

from __future__ import annotations

import pytest

from pagoda.server.within import SLACK, TooManyTokensError, encode_last, encode_within

LONGEST = 10


class Words:
    """A token a word, at most LONGEST characters; notes how much it was given."""

    def __init__(self) -> None:
        self.num_chars = 0

    def __call__(self, text: str) -> list[int]:
        self.num_chars += len(text)
        return [len(word) for word in text.split()]


def test_what_fits_is_encoded_whole() -> None:
    text = "one two three four"
    assert encode_within(Words(), text, 4, LONGEST) == [3, 3, 5, 4]


def test_one_too_many() -> None:
    with pytest.raises(TooManyTokensError) as caught:
        encode_within(Words(), "one two three four", 3, LONGEST)
    assert caught.value.num_tokens == 4


def test_what_cannot_fit_is_not_encoded_at_all() -> None:
    words = Words()
    with pytest.raises(TooManyTokensError) as caught:
        encode_within(words, "x" * 7_000_000, 8192, LONGEST)
    assert caught.value.num_tokens == 700_000
    assert words.num_chars == 0


def test_the_work_follows_the_context_not_the_text() -> None:
    """A million tokens, of which 1000 fit: as many characters are looked at as 1000 tokens and the slack have."""
    words = Words()
    with pytest.raises(TooManyTokensError) as caught:
        encode_within(words, "ab " * 1_000_000, 1_000_000 // 3, LONGEST)
    assert caught.value.num_tokens > 333_333
    words = Words()
    with pytest.raises(TooManyTokensError):
        encode_within(words, "a b c d " * 1200, 1000, LONGEST)
    assert words.num_chars <= 8 * 1000


def test_long_tokens_are_counted_to_the_end() -> None:
    """Tokens of 10 characters, more than are expected of one: the whole text is read before it is taken."""
    text = "123456789 " * 1000
    assert len(encode_within(Words(), text, 1000, LONGEST)) == 1000


@pytest.mark.parametrize("keep", [1, 5, 100, 999, 5000])
def test_the_last_tokens_are_those_of_the_whole(keep: int) -> None:
    text = " ".join("x" * (1 + i * 7 % 9) for i in range(2000))
    words = Words()
    assert encode_last(words, text, keep)[-keep:] == Words()(text)[-keep:]
    assert words.num_chars <= max(4 * 8 * (keep + SLACK), 2 * len(text))
