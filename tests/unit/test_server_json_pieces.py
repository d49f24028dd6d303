"""Pieces of JSON, joined, are what orjson writes at once."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from pagoda.server import json_pieces
from pagoda.server.json_pieces import ITEMS, dumps

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=9)


def containers(children: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    lists = st.lists(children, max_size=9)
    return lists | lists.map(tuple) | st.dictionaries(st.text(max_size=5), children, max_size=5)


@given(st.recursive(LEAVES, containers, max_leaves=60), st.integers(1, 5))
def test_the_same_as_at_once(value: object, items: int) -> None:
    kept, json_pieces.ITEMS = json_pieces.ITEMS, items
    try:
        assert dumps(value) == orjson.dumps(value)
    finally:
        json_pieces.ITEMS = kept


def test_a_response_with_many_logprobs() -> None:
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0}]}
    choice = {"index": 0, "logprobs": {"content": [entry] * (3 * ITEMS + 7), "refusal": None}}
    answer = {"id": "x", "choices": [choice] * 3, "prompt_logprobs": [None, *[{"1": entry}] * 1000], "usage": {}}
    assert dumps(answer) == orjson.dumps(answer)
