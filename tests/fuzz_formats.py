"""A seeded mutation fuzzer for the headers of GGUF and safetensors files.

    python tests/fuzz_formats.py --format gguf --count 1000000 --seed 1

Whatever the bytes, a parser gives a header or raises FormatError or UnsupportedError, quickly and in little memory;
a header that it gives keeps every promise: tensors inside the file, aligned, apart. Mutations aim at what parsers
believe: counts, lengths, types and offsets, at the places where an intact file has them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from unittest.mock import patch

from gguf_files import ARRAY, BOOL, F32, GGUF, I32, STRING, U8, U16, U32, U64, Field, Tensor, model_metadata
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES
from pagoda.formats.gguf import parse_gguf
from pagoda.formats.gguf_fields import Cursor
from pagoda.formats.mapped import TensorInfo
from pagoda.formats.safetensors import DTYPES, parse_safetensors

MAX_SECONDS = 1.0  # of one case, in CPU time; intact ones take well under a millisecond
PROMISED = (FormatError, UnsupportedError)


@dataclass(frozen=True)
class Seed:
    """An intact file and where its fields of 4 and 8 bytes stand."""

    raw: bytes
    fields: tuple[tuple[int, int], ...]


# GGUF


def gguf_seeds() -> list[Seed]:
    block = BLOCK_TYPES["Q4_K"].bytes
    files = [
        GGUF(model_metadata(), [Tensor("a", (8,), 0, bytes(32))]),
        GGUF(
            model_metadata(
                **{
                    "general.alignment": Field(U32, 64),
                    "tokens": Field(ARRAY, (STRING, ["<s>", "▁the", "", "塔" * 9])),
                    "scores": Field(ARRAY, (F32, [0.5, 1.0, 2.0])),
                    "types": Field(ARRAY, (I32, [1, 2, 3, 4, 5])),
                    "split.count": Field(U16, 1),
                    "bool": Field(BOOL, True),
                }
            ),
            [Tensor("x", (256, 3), 12, bytes(3 * block)), Tensor("y", (2, 2, 2, 2), 1, bytes(32))],
            alignment=64,
        ),
        GGUF({"nested": Field(ARRAY, (ARRAY, [(U8, [1, 2]), (ARRAY, [(U64, [3])]), (STRING, ["x"])]))}, version=2),
        GGUF({}, [Tensor(f"t{i}", (32, i + 1), 2, bytes(18 * (i + 1))) for i in range(6)]),
    ]
    return [Seed(raw, _gguf_fields(raw)) for raw in (file.encode() for file in files)]


def _gguf_fields(raw: bytes) -> tuple[tuple[int, int], ...]:
    """The places that the parser reads as fields of an intact file."""
    places: list[tuple[int, int]] = []
    take = Cursor.take

    def recording(cursor: Cursor, length: int, what: str) -> int:
        places.append((cursor.position, length))
        return take(cursor, length, what)

    with patch.object(Cursor, "take", recording):
        dict(parse_gguf(raw, "").metadata)
    return tuple((start, length) for start, length in places if length in (4, 8, 12))


INTERESTING = [0, 1, 2, 7, 8, 9, 31, 32, 33, 255, 256, 65_535, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40]
INTERESTING += [1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1]


def mutate_gguf(rng: random.Random, seeds: list[Seed]) -> bytes:
    """One to four changes of an intact file, most of them to its fields."""
    seed = rng.choice(seeds)
    raw = bytearray(seed.raw)
    for _ in range(rng.randint(1, 4)):
        rng.choices(_GGUF_MUTATIONS, _GGUF_WEIGHTS)[0](rng, raw, seed)
    return bytes(raw)


def _change_field(rng: random.Random, raw: bytearray, seed: Seed) -> None:
    start, length = rng.choice(seed.fields)
    length = min(length, 8)
    if start + length > len(raw):
        return
    old = int.from_bytes(raw[start : start + length], "little")
    near = [old + 1, old - 1, old * 2, old + 32, len(raw), len(raw) - start, rng.randrange(64), rng.getrandbits(64)]
    new = rng.choice(INTERESTING if rng.random() < 0.5 else near)
    raw[start : start + length] = (new % (1 << 8 * length)).to_bytes(length, "little")


def _change_bytes(rng: random.Random, raw: bytearray, seed: Seed) -> None:
    for _ in range(rng.randint(1, 8)):
        if raw:
            raw[rng.randrange(len(raw))] = rng.getrandbits(8)


def _truncate(rng: random.Random, raw: bytearray, seed: Seed) -> None:
    del raw[rng.randrange(len(raw) + 1) :]


def _insert(rng: random.Random, raw: bytearray, seed: Seed) -> None:
    at = rng.randrange(len(raw) + 1)
    raw[at:at] = rng.randbytes(rng.choice([1, 4, 8, 32]))


def _remove(rng: random.Random, raw: bytearray, seed: Seed) -> None:
    at = rng.randrange(len(raw) + 1)
    del raw[at : at + rng.choice([1, 4, 8, 32])]


def _repeat(rng: random.Random, raw: bytearray, seed: Seed) -> None:
    start = rng.randrange(len(raw) + 1)
    piece = raw[start : start + rng.randint(1, 64)]
    at = rng.randrange(len(raw) + 1)
    raw[at : at + rng.choice([0, len(piece)])] = piece


_GGUF_MUTATIONS = [_change_field, _change_bytes, _truncate, _insert, _remove, _repeat]
_GGUF_WEIGHTS = [10, 3, 1, 1, 1, 1]


def check_gguf(raw: bytes) -> None:
    """Parse and decode everything; hold the result to its promises."""
    header = parse_gguf(raw, "fuzz")
    for key in header.metadata:
        header.metadata[key]
    _check_tensors(header.tensors, raw)


def _check_tensors(tensors: tuple[TensorInfo, ...], raw: bytes) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        assert end <= tensor.offset <= tensor.offset + tensor.num_bytes <= len(raw)
        end = tensor.offset + tensor.num_bytes
        if block := BLOCK_TYPES.get(tensor.type):
            assert prod(tensor.shape) * block.bytes == tensor.num_bytes * block.elements
    assert len({tensor.name for tensor in tensors}) == len(tensors)


# safetensors


def safetensors_seeds() -> list[Seed]:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    }
    plain = json.dumps(header).encode()
    return [Seed(struct.pack("<Q", len(text)) + text + bytes(40), ()) for text in (plain, b"{}", plain + b" " * 5)]


_NUMBER = re.compile(rb"\d+")
_TOKENS = [b"[", b"]", b"{", b"}", b"[" * 5000, b'{"":' * 5000, b",", b":", b'"', b"null", b"-1", b"1e999", b"\xff"]
_TOKENS += [b'"a":', b"true", b"9" * 5000, b"NaN", b'"\\ud800"', *(dtype.encode() for dtype in DTYPES)]


def mutate_safetensors(rng: random.Random, seeds: list[Seed]) -> bytes:
    """Changes of the JSON text, of numbers in it, of the length before it and of the data behind it."""
    raw = rng.choice(seeds).raw
    size = struct.unpack_from("<Q", raw)[0]
    text, data = raw[8 : 8 + size], raw[8 + size :]
    for _ in range(rng.randint(1, 3)):
        text = _change_text(rng, text)
    length = len(text) if rng.random() < 0.8 else rng.choice([*INTERESTING, len(text) + 1, len(text) - 1])
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data) + 1)] + bytes(rng.choice([0, 0, 8]))
    return struct.pack("<Q", length % (1 << 64)) + text + data


def _change_text(rng: random.Random, text: bytes) -> bytes:
    numbers = list(_NUMBER.finditer(text))
    if numbers and rng.random() < 0.6:
        match = rng.choice(numbers)
        new = rng.choice([*INTERESTING, -1, int(match[0][:20]) + 1, int(match[0][:20]) - 1])
        return text[: match.start()] + str(new).encode() + text[match.end() :]
    at = rng.randrange(len(text) + 1)
    return text[:at] + (rng.choice(_TOKENS) if rng.random() < 0.6 else b"") + text[at + rng.choice([0, 1, 5]) :]


def check_safetensors(raw: bytes) -> None:
    """Parse; hold the result to its promises."""
    tensors = parse_safetensors(raw, "fuzz")
    _check_tensors(tensors, raw)
    for tensor in tensors:
        assert prod(tensor.shape) * DTYPES[tensor.type] == tensor.num_bytes


# Runs

Check = Callable[[bytes], None]
Mutate = Callable[[random.Random, list[Seed]], bytes]
FORMATS: dict[str, tuple[Callable[[], list[Seed]], Mutate, Check]] = {
    "gguf": (gguf_seeds, mutate_gguf, check_gguf),
    "safetensors": (safetensors_seeds, mutate_safetensors, check_safetensors),
}


def fuzz(format: str, count: int, seed: int) -> Counter[str]:
    """Run `count` cases. → how each ended. AssertionError with the case's bytes where a promise is broken."""
    make_seeds, mutate, check = FORMATS[format]
    rng, seeds, outcomes = random.Random(seed), make_seeds(), Counter[str]()
    for number in range(count):
        raw = mutate(rng, seeds)
        start = time.process_time()
        try:
            check(raw)
            outcomes["read"] += 1
        except PROMISED as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:
            raise AssertionError(f"case {number} of seed {seed}, {raw!r}: {error!r}") from error
        seconds = time.process_time() - start
        assert seconds < MAX_SECONDS, f"case {number} of seed {seed}, {raw!r}: {seconds} s"
    return outcomes


def main() -> None:
    """Fuzz from the command line, under a limit of memory that a hostile count would break."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=FORMATS, default="gguf")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory-mb", type=int, default=1024, help="limit of the address space")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (options.memory_mb << 20, options.memory_mb << 20))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    outcomes = fuzz(options.format, options.count, options.seed)
    seconds, grown = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{options.format}: {options.count:,} cases in {seconds:.0f} s: {dict(outcomes)}; memory grew {grown} KiB")


if __name__ == "__main__":
    main()
