"""JSON of long answers, written piece by piece, so that no piece holds the interpreter's lock for long.

orjson does not let go of the lock while it writes, and ten megabytes of logprobs take it 50 ms. In pieces, on a thread,
they keep nobody waiting.
"""

from __future__ import annotations

from typing import Any

import orjson

ITEMS = 256  # of a list, written at once
DEPTH = 4  # a response's choices hold logprobs, which hold lists: deeper, everything is short


def dumps(value: Any, depth: int = DEPTH) -> bytes:
    """What `orjson.dumps` gives."""
    if depth and isinstance(value, dict):
        pairs = [orjson.dumps(name) + b":" + dumps(part, depth - 1) for name, part in value.items()]
        return b"{" + b",".join(pairs) + b"}"
    if not isinstance(value, list | tuple):
        return orjson.dumps(value)
    if depth and len(value) <= ITEMS and any(isinstance(part, dict) for part in value):
        return b"[" + b",".join([dumps(part, depth - 1) for part in value]) + b"]"
    pieces = [orjson.dumps(value[start : start + ITEMS])[1:-1] for start in range(0, len(value), ITEMS)]
    return b"[" + b",".join(pieces) + b"]"
