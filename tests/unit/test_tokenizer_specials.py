"""Cutting special tokens out of a text."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from pagoda.text.specials import SpecialSplitter


def test_leftmost_then_longest_wins() -> None:
    splitter = SpecialSplitter({"<s>": 5, "<s>x": 6, "  ": 7})
    assert splitter.split("a<s>xb<s>é<s>   ") == ["a", 6, "b", 5, "é", 5, 7, " "]


def test_without_specials_a_text_is_one_piece() -> None:
    assert SpecialSplitter({}).split("abc") == ["abc"]
    assert SpecialSplitter({}).split("") == []
    assert SpecialSplitter({"": 3, "<s>": 4}).split("") == []


@given(st.sets(st.text("ab<>\0é", min_size=1, max_size=4), max_size=6), st.text("ab<>\0é", max_size=40))
def test_equals_a_regular_expression(specials: set[str], text: str) -> None:
    ids = {special: 100 + n for n, special in enumerate(sorted(specials))}
    longest_first = sorted(specials, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
    expected: list[str | int] = []
    at = 0
    for match in re.finditer(pattern, text):
        expected += [text[at : match.start()], ids[match.group()]]
        at = match.end()
    expected.append(text[at:])
    assert SpecialSplitter(ids).split(text) == [piece for piece in expected if piece != ""]
