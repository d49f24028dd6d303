"""Prefix keys say all that a block's content depends on, and a match is all that a group needs."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.kv.prefix import PrefixCache, extend_keys, first_needed_block, longest_match, prefix_root

ROOTS = [
    ("", None),
    ("a", None),
    ("", "a"),
    ("a", "a"),
    ("", ""),
    ("+a", None),
    ("a+", "a"),
    ("", None, "a"),
    ("a", None, "a"),
]


def keys_of(tokens: list[int], salt: str = "", adapter: str | None = None) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, prefix_root(salt, adapter), array("i", tokens), len(tokens))
    return keys


def test_only_full_blocks_have_keys() -> None:
    assert [len(keys_of([1] * n)) for n in (0, 15, 16, 31, 32)] == [0, 0, 1, 1, 2]


def test_keys_grow_as_tokens_come() -> None:
    tokens = array("i", range(50))
    keys: list[bytes] = []
    for num_tokens in (10, 20, 20, 50):
        extend_keys(keys, prefix_root("", None), tokens, num_tokens)
    assert keys == keys_of(list(range(50)))


def test_roots_differ_in_salt_adapter_and_tenant() -> None:
    assert len({prefix_root(*root) for root in ROOTS}) == len(ROOTS)
    assert not set(keys_of([1] * 32)) & set(keys_of([1] * 32, salt="other"))


def test_a_lone_surrogate_in_a_salt_is_a_salt() -> None:
    assert prefix_root("\ud800", None) != prefix_root("\ud801", None)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=48, max_size=48), st.integers(0, 47), st.integers(1, 2**20))
def test_a_key_depends_on_every_token_up_to_its_block(tokens: list[int], at: int, change: int) -> None:
    changed = [*tokens]
    changed[at] = (changed[at] + change) % 2**31
    same = [a == b for a, b in zip(keys_of(tokens), keys_of(changed), strict=True)]
    assert same == [block < at // 16 for block in range(3)]


def test_equal_blocks_at_different_places_have_different_keys() -> None:
    assert len(set(keys_of([7] * 64))) == 4


@given(st.integers(0, 500), st.integers(1, 200))
def test_the_first_needed_block_holds_the_oldest_visible_token(num_computed: int, window: int) -> None:
    oldest = max(0, num_computed - window + 1)  # seen by the next token, at position num_computed
    assert first_needed_block(num_computed, window) == oldest // 16
    assert first_needed_block(num_computed, None) == 0


@pytest.mark.parametrize(
    ("published", "matched"),
    [("", 0), ("0", 1), ("012", 3), ("12", 0), ("013", 2), ("01234", 5)],
)
def test_full_attention_needs_every_block_from_the_first(published: str, matched: int) -> None:
    assert longest_match([cache_with(None, published)], keys_of([3] * 80)) == matched


@pytest.mark.parametrize(
    ("window", "published", "matched"),
    [
        (1, "", 5),  # the next token sees only itself
        (17, "", 0),
        (17, "4", 5),  # the next token sees the 16 before it
        (18, "4", 0),  # … and one more
        (18, "34", 5),
        (18, "013", 2),
        (500, "1234", 0),
        (500, "01234", 5),
    ],
)
def test_a_window_needs_its_own_blocks_only(window: int, published: str, matched: int) -> None:
    assert longest_match([cache_with(window, published)], keys_of([3] * 80)) == matched


def test_groups_agree_on_the_shorter_match() -> None:
    keys = keys_of([3] * 80)
    assert longest_match([cache_with(None, "0123"), cache_with(17, "14")], keys) == 2
    assert longest_match([cache_with(None, "0123"), cache_with(17, "4")], keys) == 0


def test_the_first_of_two_equal_blocks_stays_published() -> None:
    cache = PrefixCache(None)
    cache.publish(b"key", 1)
    cache.publish(b"key", 2)
    assert cache.block(b"key") == 1
    assert 2 not in cache
    cache.forget(1)
    assert len(cache) == 0
    cache.check(3)


def cache_with(window: int | None, published: str) -> PrefixCache:
    """The blocks of eighty 3s that `published` names are cached."""
    cache = PrefixCache(window)
    for i in map(int, published):
        cache.publish(keys_of([3] * 80)[i], i)
    return cache
