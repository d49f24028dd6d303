"""Checked hits by tenant: counts, intervals, a bounded number of tenants, and what is read back."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.cache.checked import MAX_TENANTS, OTHER, Checked, CheckedHits


def test_counts_by_tenant() -> None:
    hits = CheckedHits()
    for wrong in (False, True, False, False):
        hits.add("a", wrong=wrong)
    hits.add("b", wrong=False)
    assert dict(hits) == {"a": Checked(4, 1), "b": Checked(1, 0)}
    assert dict(hits)["a"].share == 0.25
    assert Checked(0, 0).share == 0.0


def test_the_interval_is_clopper_and_pearsons() -> None:
    """R's binom.test(1, 4)$conf.int"""
    assert Checked(4, 1).interval == pytest.approx((0.006309463, 0.8058796), abs=1e-6)
    assert Checked(0, 0).interval == (0.0, 1.0)


def test_tenants_are_bounded() -> None:
    hits = CheckedHits()
    for place in range(MAX_TENANTS + 50):
        hits.add(f"tenant {place}", wrong=place % 2 == 0)
    counts = dict(hits)
    assert len(counts) == MAX_TENANTS + 1
    assert counts[OTHER] == Checked(50, 25)
    again = CheckedHits()
    again.restore(hits.to_json())
    assert dict(again) == counts


@pytest.mark.parametrize("shape", [None, [], {"a": 1}, {"a": [1]}, {"a": [1, 2]}, {"a": [1, -1]}, {"a": ["x", 0]}])
def test_what_cannot_be_is_refused(shape: Any) -> None:
    hits = CheckedHits()
    hits.add("a", wrong=False)
    with pytest.raises(ValueError, match="its counts by tenant"):
        hits.restore(shape)
    assert dict(hits) == {"a": Checked(1, 0)}
