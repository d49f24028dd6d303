"""Which token sequences hold a breaker."""

from __future__ import annotations

from grammar_walk import small_tokenizer
from pagoda.sampling.dry import Breakers

TOKENIZER = small_tokenizer()
BREAKERS = Breakers(TOKENIZER)


def test_tokens_that_hold_the_breaker_are_sequences_of_their_own() -> None:
    sequences = BREAKERS.sequences(["\n"])
    expected = {(i,) for i in range(TOKENIZER.vocab_size) if b"\n" in TOKENIZER.token_bytes(i)}
    assert set(sequences) == expected
    assert len(expected) > 1


def test_a_breaker_may_begin_in_one_token_and_end_in_others() -> None:
    sequences = BREAKERS.sequences(["a:b"])
    rest = tuple(TOKENIZER.encode(":b", add_special=False))
    heads = {sequence[0] for sequence in sequences if sequence[1:] == rest}
    assert heads == {i for i in range(TOKENIZER.vocab_size) if TOKENIZER.token_bytes(i).endswith(b"a")}


def test_sequences_come_once() -> None:
    once = BREAKERS.sequences([":"])
    assert BREAKERS.sequences([":", ":"]) == once
    assert len(set(once)) == len(once)
    assert BREAKERS.sequences([]) == ()
