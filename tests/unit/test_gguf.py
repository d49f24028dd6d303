"""The GGUF reader: what it reads, and how it refuses files that lie."""

from __future__ import annotations

import struct
import time
import tracemalloc

import pytest

from gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    GGUF,
    I8,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Field,
    Tensor,
    encode_string,
)
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats import gguf_fields
from pagoda.formats.gguf import GGUFHeader, parse_gguf


def parse(raw: bytes) -> GGUFHeader:
    return parse_gguf(raw, "m.gguf")


def refusal(raw: bytes) -> FormatError:
    """The error that `raw` gives, be it at once or when values are decoded."""
    with pytest.raises(FormatError) as caught:
        dict(parse(raw).metadata)
    return caught.value


@pytest.mark.parametrize("version", [2, 3])
def test_reads_every_kind_of_value(version: int) -> None:
    values = {
        "u8": Field(U8, 255),
        "i8": Field(I8, -1),
        "u16": Field(U16, 65535),
        "u32": Field(U32, 1 << 31),
        "i32": Field(I32, -5),
        "f32": Field(F32, 0.5),
        "true": Field(BOOL, True),
        "text": Field(STRING, "pagoda 塔"),
        "u64": Field(U64, 1 << 63),
        "i64": Field(I64, -1 << 63),
        "f64": Field(F64, 0.1),
        "no strings": Field(ARRAY, (STRING, [])),
        "strings": Field(ARRAY, (STRING, ["a", "", "塔"])),
        "floats": Field(ARRAY, (F32, [1.0, -2.5])),
        "bools": Field(ARRAY, (BOOL, [True, False])),
        "longs": Field(ARRAY, (U64, [0, (1 << 64) - 1])),
    }
    metadata = parse(GGUF(values, version=version).encode()).metadata
    plain = {key: item.value[1] if item.type == ARRAY else item.value for key, item in values.items()}
    assert dict(metadata) == plain
    assert list(metadata) == list(values)
    assert all(type(metadata[key]) is type(value) for key, value in plain.items())


def test_lists_are_decoded_once() -> None:
    metadata = parse(GGUF({"list": Field(ARRAY, (U8, [1, 2]))}).encode()).metadata
    assert metadata["list"] is metadata["list"]
    with pytest.raises(KeyError):
        metadata["absent"]


def test_reads_nested_arrays_to_a_depth() -> None:
    nested = Field(ARRAY, (ARRAY, [(U8, [1, 2]), (STRING, ["x"]), (ARRAY, [(I32, [])])]))
    after = Field(U8, 7)
    assert dict(parse(GGUF({"nested": nested, "after": after}).encode()).metadata) == {
        "nested": [[1, 2], ["x"], [[]]],
        "after": 7,
    }
    deep: tuple[int, list[object]] = (U8, [1])
    for _ in range(8):
        deep = (ARRAY, [deep])
    assert "nested more than 8 deep" in str(refusal(GGUF({"deep": Field(ARRAY, deep)}).encode()))


def test_bytes_that_are_not_utf8_are_replaced_in_values_and_refused_in_names() -> None:
    raw = GGUF({"text": Field(STRING, b"a\xff"), "list": Field(ARRAY, (STRING, [b"\xfe"]))}).encode()
    assert dict(parse(raw).metadata) == {"text": "a\ufffd", "list": ["\ufffd"]}
    error = refusal(GGUF([(b"a\xff", Field(U8, 1))]).encode())
    assert "metadata key is not UTF-8" in str(error)
    assert error.offset == 24


def test_places_tensors() -> None:
    header = parse(
        GGUF(
            {"general.alignment": Field(U32, 64)},
            [Tensor("a", (32, 2), 2, bytes(36)), Tensor("b", (3,), 0, bytes(12)), Tensor("c", (), 30, bytes(2))],
            alignment=64,
        ).encode()
    )
    start = header.data_offset
    assert start % 64 == 0
    assert [(t.name, t.type, t.shape, t.offset - start, t.num_bytes) for t in header.tensors] == [
        ("a", "Q4_0", (2, 32), 0, 36),
        ("b", "F32", (3,), 64, 12),
        ("c", "BF16", (1,), 128, 2),
    ]


def test_a_whole_file_refuses_every_truncation() -> None:
    raw = GGUF(
        {"a": Field(ARRAY, (STRING, ["one", "two"])), "b": Field(ARRAY, (I32, [1, 2, 3])), "c": Field(STRING, "x")},
        [Tensor("t", (8, 4), 0, bytes(128))],
    ).encode()
    assert len(parse(raw).tensors) == 1
    for length in range(len(raw)):
        error = refusal(raw[:length])
        assert error.offset is not None
        assert error.offset <= length
        assert str(error).startswith(f"m.gguf: at byte {error.offset}: ")


HUGE = 1 << 62
HOSTILE = {
    "not a GGUF file": b"GGML" + bytes(100),
    f"a count of {HUGE} tensors": GGUF(num_tensors=HUGE).encode(),
    f"a count of {HUGE} metadata keys": GGUF(num_keys=HUGE).encode(),
    "a count of 18446744073709551615 tensors": GGUF(num_tensors=(1 << 64) - 1).encode(),
    f"metadata key of {HUGE} bytes": GGUF(num_keys=1).encode() + struct.pack("<Q", HUGE) + bytes(40),
    "is longer than 65535": GGUF([("k" * 70_000, Field(U8, 1))]).encode(),
    "metadata key 'k' stands twice": GGUF([("k", Field(U8, 1)), ("k", Field(U8, 2))]).encode(),
    "has the unknown type 13": GGUF({"k": Field(13, 1)}).encode(),
    "unknown array element type 77": GGUF(num_keys=1).encode()
    + encode_string("k")
    + struct.pack("<IIQ", ARRAY, 77, 0)
    + bytes(16),
    f"an array of {HUGE} elements": GGUF(num_keys=1).encode()
    + encode_string("k")
    + struct.pack("<IIQ", ARRAY, STRING, HUGE)
    + bytes(99),
    "an array of 100 elements": GGUF(num_keys=1).encode()
    + encode_string("k")
    + struct.pack("<IIQ", ARRAY, U64, 100)
    + bytes(99),
    "a string runs past": GGUF(num_keys=1).encode()
    + encode_string("k")
    + struct.pack("<IIQQ", ARRAY, STRING, 2, HUGE)
    + bytes(99),
    "5 dimensions": GGUF({}, [Tensor("t", (1,) * 5)]).encode(),
    "4294967295 dimensions": GGUF(num_tensors=1).encode() + encode_string("t") + b"\xff" * 4 + bytes(99),
    "has an empty dimension": GGUF({}, [Tensor("t", (4, 0))]).encode(),
    "are not whole Q4_K blocks of 256": GGUF({}, [Tensor("t", (128, 2), 12, bytes(144))]).encode(),
    "which is not aligned to 32": GGUF({}, [Tensor("t", (4,), 0, bytes(64), offset=4)]).encode(),
    "would end at byte": GGUF({}, [Tensor("t", (1 << 20, 1 << 20), 0, bytes(64))]).encode(),
    f"t' ({HUGE}, {HUGE}, {HUGE}, {HUGE}) of F32 would end": GGUF({}, [Tensor("t", (HUGE,) * 4)]).encode(),
    "(1,) of F32 would end at byte 18446744073709551": GGUF({}, [Tensor("t", (1,), offset=(1 << 64) - 32)]).encode(),
    "'t' stands twice": GGUF({}, [Tensor("t", (8,), 0, bytes(32)), Tensor("t", (8,), 0, bytes(32))]).encode(),
    "tensors 't' and 'u' overlap": GGUF(
        {}, [Tensor("u", (8,), 0, bytes(32), offset=32), Tensor("t", (16,), 0, bytes(32), offset=0)]
    ).encode(),
    "general.alignment is 0": GGUF({"general.alignment": Field(U32, 0)}).encode(),
    "general.alignment is 48": GGUF({"general.alignment": Field(U32, 48)}).encode(),
    "general.alignment is 'x'": GGUF({"general.alignment": Field(STRING, "x")}).encode(),
    "general.alignment is True": GGUF({"general.alignment": Field(BOOL, True)}).encode(),
    "general.alignment is 9223372036854775808": GGUF({"general.alignment": Field(U64, 1 << 63)}).encode(),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_refuses_hostile_files(message: str) -> None:
    error = refusal(HOSTILE[message])
    assert message in str(error)
    assert error.offset is not None


def test_hostile_files_allocate_nothing() -> None:
    tracemalloc.start()
    try:
        for raw in HOSTILE.values():
            refusal(raw)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (GGUF(version=1).encode(), "version 1 is not supported"),
        (GGUF(version=4).encode(), "version 4 is not supported"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (GGUF({}, [Tensor("t", (256,), 41, bytes(36))]).encode(), "'t' has the type Q1_0"),
        (GGUF({}, [Tensor("t", (256,), 4000, bytes(66))]).encode(), "'t' has the type number 4000"),
    ],
)
def test_refuses_what_it_does_not_read(raw: bytes, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        parse(raw)


def test_headers_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_fields, "MAX_HEADER_BYTES", 1 << 20)
    raw = GGUF({"k": Field(ARRAY, (U8, [0] * 1_100_000))}).encode()
    assert "makes the header larger than 1 MiB" in str(refusal(raw))


def test_a_vocabulary_of_260_000_tokens_reads_well_under_a_second() -> None:
    tokens = [f"▁token{i}" for i in range(260_000)]
    raw = GGUF(
        {
            "tokens": Field(ARRAY, (STRING, tokens)),
            "scores": Field(ARRAY, (F32, [0.0] * 260_000)),
            "types": Field(ARRAY, (I32, [1] * 260_000)),
        }
    ).encode()
    start = time.process_time()  # not the wall's: other processes may share the machine
    metadata = parse(raw).metadata
    assert metadata["tokens"] == tokens
    assert len(metadata["scores"]) == len(metadata["types"]) == 260_000
    assert time.process_time() - start < 0.8
