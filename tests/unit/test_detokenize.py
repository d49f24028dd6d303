"""Streams say what decoding says, in whole characters; stop strings are found however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.text.detokenize import StopMatcher, TokenStream
from pagoda.text.tokenizer import Tokenizer
from pagoda.text.vocabulary import TokenType, Vocabulary
from tricky_texts import texts


def byte_vocabulary(strip_leading_space: bool = False) -> Vocabulary:
    """256 single bytes, then " the", "é" and the control token <end>."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁the", "é", "<end>"]
    types = [TokenType.BYTE] * 256 + [TokenType.NORMAL, TokenType.NORMAL, TokenType.CONTROL]
    return Vocabulary(tokens, types, "sentencepiece", strip_leading_space=strip_leading_space)


THE, E_ACUTE, END = 256, 257, 258


def no_encoder(text: str, parse_special: bool) -> list[int]:
    raise AssertionError("these tests decode only")


def test_a_character_comes_out_with_its_last_byte() -> None:
    stream = TokenStream(byte_vocabulary())
    assert [stream.push(byte) for byte in "a👍é".encode()] == ["a", "", "", "", "👍", "", "é"]
    assert stream.flush() == ""


def test_what_cannot_become_a_character_is_replaced_at_once() -> None:
    stream = TokenStream(byte_vocabulary())
    assert stream.push(0xFF) == "\ufffd"
    assert stream.push(0xE2) == ""
    assert stream.push(ord("a")) == "\ufffda"
    assert stream.push(0xF0) == ""
    assert stream.flush() == "\ufffd"


def test_special_tokens_are_left_out_or_named() -> None:
    assert TokenStream(byte_vocabulary()).push(END) == ""
    assert TokenStream(byte_vocabulary(), skip_special=False).push(END) == "<end>"


def test_a_character_may_go_on_behind_a_token_that_is_left_out() -> None:
    stream = TokenStream(byte_vocabulary())
    assert [stream.push(i) for i in (0xC3, END, 0xA9)] == ["", "", "é"]


def test_the_leading_space_goes_only_at_the_start_of_a_text() -> None:
    vocabulary = byte_vocabulary(strip_leading_space=True)
    stream = TokenStream(vocabulary)
    assert [stream.push(i) for i in (END, THE, THE)] == ["", "the", " the"]
    assert TokenStream(vocabulary, prompt_ids=[E_ACUTE]).push(THE) == " the"
    assert TokenStream(vocabulary, skip_special=False).push(END) == "<end>"


def test_a_character_that_begins_in_the_prompt_is_completed() -> None:
    prompt = list("ab👍".encode())
    assert TokenStream(byte_vocabulary(), prompt_ids=prompt[:-1]).push(prompt[-1]) == "👍"
    assert TokenStream(byte_vocabulary(), prompt_ids=prompt).push(ord("c")) == "c"
    assert TokenStream(byte_vocabulary(), prompt_ids=[0xFF, 0x80, 0x80, 0x80, 0x80]).push(ord("c")) == "c"


@pytest.mark.parametrize("strip", [True, False])
@given(ids=st.lists(st.integers(-1, 300)))
def test_joined_stream_is_the_decoded_text(strip: bool, ids: list[int]) -> None:
    vocabulary = byte_vocabulary(strip)
    for skip in (True, False):
        stream = TokenStream(vocabulary, skip_special=skip)
        joined = "".join([stream.push(i) for i in ids]) + stream.flush()
        kept = [i for i in ids if not (skip and vocabulary.is_special(i))]
        data = b"".join(vocabulary.token_bytes(i) for i in kept)
        expected = (data.removeprefix(b" ") if strip else data).decode("utf-8", "replace")
        assert joined == expected == Tokenizer(vocabulary, no_encoder).decode(ids, skip_special=skip)


def test_streamed_texts_come_back() -> None:
    for text in texts(500, seed=3):
        text = text.encode("utf-8", "replace").decode()
        stream = TokenStream(byte_vocabulary())
        parts = [stream.push(byte) for byte in text.encode()]
        assert "".join(parts) + stream.flush() == text
        assert all(len(part) <= 1 for part in parts)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """(end, stop string) of the match that ends first, of several such the one that begins first."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop and stop in text]
    return (min(found)[0], min(found)[2]) if found else None


@given(
    parts=st.lists(st.text("ab\n", max_size=4), max_size=20),
    stops=st.lists(st.text("ab\n", max_size=5), max_size=4),
    include=st.booleans(),
)
def test_stop_matcher_equals_plain_search(parts: list[str], stops: list[str], include: bool) -> None:
    matcher = StopMatcher(stops, include_stop=include)
    shown, matched = "", None
    for part in parts:
        text, matched = matcher.push(part)
        shown += text
        if matched is not None:
            break
    else:
        shown += matcher.flush()
    whole = "".join(parts)
    expected = first_stop(whole, stops)
    if expected is None:
        assert (shown, matched) == (whole, None)
    else:
        end, stop = expected
        assert (shown, matched) == (whole[: end if include else end - len(stop)], stop)


@given(parts=st.lists(st.text("ab", max_size=3), max_size=12), stops=st.lists(st.text("ab", min_size=1, max_size=4)))
def test_nothing_is_held_back_that_cannot_become_a_stop_string(parts: list[str], stops: list[str]) -> None:
    matcher, shown, seen = StopMatcher(stops), "", ""
    for part in parts:
        text, matched = matcher.push(part)
        if matched is not None:
            return
        shown, seen = shown + text, seen + part
        held = seen[len(shown) :]
        begun = [n for stop in stops for n in range(1, len(stop)) if seen.endswith(stop[:n])]
        assert len(held) == max(begun, default=0)


def test_time_does_not_depend_on_the_length_of_a_stop_string() -> None:
    """A stop string that is nearly matched all along, the worst case of a search that starts over."""
    matcher = StopMatcher(["a" * 20_000 + "b"])
    shown = "".join(matcher.push("a" * 5)[0] for _ in range(20_000))
    assert len(shown) == 80_000
    assert matcher.push("b") == ("", "a" * 20_000 + "b")
