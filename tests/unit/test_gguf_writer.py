"""GGUF files as written: both readers find the same, an interrupt costs one tensor, a full disk is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pagoda.errors import CapacityError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.gguf_writer import F32, GGUFWriter, TensorRow, boolean, f32, numbers, text, texts, u32, u64

VALUES = {
    "general.architecture": text("llama"),
    "count": u32(7),
    "large": u64(1 << 40),
    "share": f32(0.5),
    "yes": boolean(True),
    "words": texts(["a", "", "größe"]),
    "scores": numbers(F32, [1.0, -2.5]),
}
ROWS = [TensorRow("odd", "F32", (3,)), TensorRow("matrix", "Q8_0", (4, 64)), TensorRow("last", "F16", (2, 5))]


def data(row: TensorRow) -> np.ndarray:
    rng = np.random.default_rng(len(row.name))
    return rng.integers(0, 60, row.num_bytes, dtype=np.uint8)


def write(path: Path, stop_after: int = 3) -> None:
    with GGUFWriter(path, VALUES, ROWS) as writer:
        for row in writer.missing()[:stop_after]:
            writer.write(row.name, data(row))


def test_both_readers_find_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata["words"] == ["a", "", "größe"]
        assert [checkpoint.metadata[key] for key in ("count", "large", "share", "yes")] == [7, 1 << 40, 0.5, True]
        for row in ROWS:
            found = checkpoint.tensors[row.name]
            assert (found.type, found.shape) == (row.type, row.shape)
            np.testing.assert_array_equal(found.data, data(row))
    reader = gguf.GGUFReader(path)
    assert [field.name for field in reader.fields.values()][3:] == list(VALUES)
    for tensor, row in zip(reader.tensors, ROWS, strict=True):
        np.testing.assert_array_equal(tensor.data.reshape(-1).view(np.uint8), data(row))


def test_metadata_copied_from_a_file_are_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        metadata: Any = checkpoint.metadata
        assert {key: metadata.raw(key) for key in metadata} == {k: (v.type, v.raw) for k, v in VALUES.items()}


@pytest.mark.parametrize("cut", [0, 30, 290, 310, 500, 545])
def test_a_file_that_was_cut_anywhere_is_gone_on_with(tmp_path: Path, cut: int) -> None:
    whole, part = tmp_path / "whole.gguf", tmp_path / "part.gguf"
    write(whole)
    part.write_bytes(whole.read_bytes()[:cut])
    write(part)
    assert part.read_bytes() == whole.read_bytes()


def test_whole_tensors_are_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path)
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(len(whole) - 20)  # within the last tensor, which takes 20 bytes and 12 of padding
    with GGUFWriter(path, VALUES, ROWS) as writer:
        assert [row.name for row in writer.missing()] == ["last"]
        writer.write("last", data(ROWS[2]))
    assert path.read_bytes() == whole


def test_a_file_of_another_header_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with GGUFWriter(path, {"general.architecture": text("qwen2")}, ROWS[:1]) as writer:
        writer.write("odd", data(ROWS[0]))
    write(path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.architecture == "llama"
        assert len(checkpoint.tensors) == 3


def test_a_tensor_may_come_in_pieces(tmp_path: Path) -> None:
    write(tmp_path / "whole.gguf")
    with GGUFWriter(tmp_path / "pieces.gguf", VALUES, ROWS) as writer:
        for row in ROWS:
            for piece in np.array_split(data(row), 3):
                writer.write(row.name, piece)
    assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.usefixtures("full_disk")
def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="0 MB left"):
        GGUFWriter(tmp_path / "m.gguf", VALUES, ROWS)
    assert list(tmp_path.iterdir()) == []
