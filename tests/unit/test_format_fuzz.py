"""A few seconds of the fuzzer `tests/fuzz_formats.py`; run that for millions of cases."""

from __future__ import annotations

import pytest

from fuzz_formats import fuzz


@pytest.mark.parametrize(("format", "count"), [("gguf", 20_000), ("safetensors", 5_000)])
def test_mutated_headers_are_read_or_refused(format: str, count: int) -> None:
    outcomes = fuzz(format, count, seed=20)
    # Mutations must get past the first field: a good share is still readable, a good share is not.
    assert outcomes["read"] > count / 100
    assert outcomes["FormatError"] > count / 10
