"""The safetensors reader: what it reads, and how it refuses files that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from pagoda.errors import FormatError
from pagoda.formats.mapped import TensorInfo
from pagoda.formats.safetensors import parse_json, parse_safetensors, read_json


def encode(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_places_tensors_by_offset() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "later": entry("BF16", [2, 3], [8, 20]),
        "first": entry(),
        "scalar": entry("I64", [], [20, 28]),
        "empty": entry("F32", [0, 4], [28, 28]),
    }
    raw = encode(header, bytes(28))
    start = len(raw) - 28
    assert parse_safetensors(raw, "m") == (
        TensorInfo("first", "F32", (2,), start, 8),
        TensorInfo("later", "BF16", (2, 3), start + 8, 12),
        TensorInfo("scalar", "I64", (1,), start + 20, 8),
        TensorInfo("empty", "F32", (0, 4), start + 28, 0),
    )


def test_refuses_every_truncation() -> None:
    raw = encode({"a": entry(), "b": entry("F16", [4], [8, 16])}, bytes(16))
    assert len(parse_safetensors(raw, "m")) == 2
    for length in range(len(raw)):
        with pytest.raises(FormatError) as caught:
            parse_safetensors(raw[:length], "m")
        assert caught.value.offset is not None
        assert caught.value.offset <= length


BAD_SHAPES = [None, "2", [-1], [2.0], [True], [1 << 70], [1] * 9, {"0": 2}]
BAD_OFFSETS = [None, [0], [0, 8, 8], [8, 0], [0, 8.0], ["0", "8"], [-8, 0], [False, 8], [0, 1 << 70]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"short", "starts with 8 bytes"),
        (struct.pack("<Q", (1 << 64) - 1) + bytes(20), "larger than 32 MiB"),
        (struct.pack("<Q", 1000) + b"{}", "runs past the end at 10"),
        (encode(b"{"), "not valid JSON"),
        (encode(b"[]"), "a JSON object is needed, not a list"),
        (encode(b"[" * 100_000), "not valid JSON"),
        (encode(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
        (encode(b"\xff{}"), "not valid JSON"),
        (encode(b'{"a": 1, "a": 2}'), "a key stands twice"),
        (encode({"a": 5}), "'a' is not described by an object"),
        (encode({"a": entry("Q4_0")}, bytes(8)), "has the unknown dtype 'Q4_0'"),
        (encode({"a": entry(["F32"])}, bytes(8)), "has the unknown dtype"),
        (encode({"a": entry(shape=[3])}, bytes(8)), "takes 12 bytes, but its data_offsets span 8"),
        (encode({"a": entry(shape=[1 << 63, 1 << 63])}, bytes(8)), "but its data_offsets span 8"),
        (encode({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "'b' overlaps the one before"),
        (encode({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "'b' leaves a gap before it"),
        (encode({"a": entry()}, bytes(9)), "has bytes that belong to no tensor"),
        *[(encode({"a": entry(shape=shape)}, bytes(8)), "has the impossible shape") for shape in BAD_SHAPES],
        *[(encode({"a": entry(offsets=pair)}, bytes(8)), "has the impossible data_offsets") for pair in BAD_OFFSETS],
    ],
)
def test_refuses_hostile_headers(raw: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse_safetensors(raw, "m.safetensors")
    assert str(caught.value).startswith("m.safetensors: at byte ")


def test_json_with_integers_that_are_too_long_for_python_is_refused() -> None:
    with pytest.raises(FormatError, match="not valid JSON"):
        parse_json(b'{"a": ' + b"1" * 10_000 + b"}", "config.json")


def test_in_a_config_the_last_of_two_values_counts(tmp_path: Path) -> None:
    """As in Python's json module, which transformers reads it with; a byte order mark is skipped."""
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}')
    assert read_json(path) == {"a": 3, "b": {"c": 2}}


def test_reads_json_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    with pytest.raises(FormatError, match=r"absent\.json: cannot be read: No such file"):
        read_json(tmp_path / "absent.json")
