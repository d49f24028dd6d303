from __future__ import annotations

from pagoda.sampling.bad_words import token_sequences


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_a_word_is_banned_at_the_start_and_after_a_space() -> None:
    assert token_sequences(["ab"], encode) == ((97, 98), (32, 97, 98))


def test_leading_spaces_and_repeats_add_nothing() -> None:
    assert token_sequences([" ab", "ab"], encode) == ((97, 98), (32, 97, 98))


def test_words_without_tokens_are_left_out() -> None:
    assert token_sequences(["ab"], lambda text: []) == ()
