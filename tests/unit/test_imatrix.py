"""Importance matrices: both file forms, damage, and what encoders are given of them."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from pagoda.errors import FormatError
from pagoda.quantize.calibration.imatrix import Entry, Imatrix, read_imatrix, write_imatrix

SUMS = np.array([4.0, 0.0, 100.0, 2.5])
MATRIX = Imatrix(
    {"blk.0.ffn_up.weight": Entry.of(SUMS, 1024.0), "a.weight": Entry.of(SUMS[:2] * 3, 1024.0)}, "x", ("t.txt",), 2
)
EXPERTS = Entry(np.arange(6.0), np.array([2.0, 0.0, 4.0]))  # three of two columns; no token went to the second


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    write_imatrix(MATRIX, path)
    found = read_imatrix(path)
    assert found.entries.keys() == MATRIX.entries.keys()
    assert (found.datasets, found.chunks) == (("t.txt",), 2)
    for name, entry in MATRIX.entries.items():
        np.testing.assert_allclose(found.entries[name].means(), entry.means(), rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_the_gguf_form_is_llama_cpps(tmp_path: Path) -> None:
    write_imatrix(MATRIX, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["t.txt"]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    np.testing.assert_array_equal(tensors["blk.0.ffn_up.weight.in_sum2"], SUMS.astype(np.float32))
    assert tensors["blk.0.ffn_up.weight.counts"] == 1024


def test_the_legacy_form_is_llama_cpps(tmp_path: Path) -> None:
    """Means times calls, as `IMatrixCollector::save_imatrix_legacy` writes them."""
    name = b"w"
    body = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 3, 2) + struct.pack("<2f", 6.0, 1.5)
    (tmp_path / "old.dat").write_bytes(body)
    (tmp_path / "new.dat").write_bytes(body + struct.pack("<ii", 3, 4) + b"text")
    assert read_imatrix(tmp_path / "old.dat").entries["w"].means().tolist() == [[2.0, 0.5]]
    new = read_imatrix(tmp_path / "new.dat")
    assert (new.datasets, new.chunks, new.entries["w"].means().tolist()) == (("text",), 3, [[2.0, 0.5]])


def test_columns_of_unknown_or_silent_weights_are_none() -> None:
    silent = Imatrix({"w": Entry.of(np.zeros(2), 10.0)}, "x")
    assert silent.columns("w", 2) == [None]
    assert silent.columns("v", 2, 3) == [None] * 3
    with pytest.raises(FormatError, match="another model"):
        MATRIX.columns("a.weight", 64)


def test_experts_have_an_importance_each(tmp_path: Path) -> None:
    write_imatrix(Imatrix({"blk.0.ffn_up_exps.weight": EXPERTS}, "x"), tmp_path / "m.gguf")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors["blk.0.ffn_up_exps.weight.in_sum2"].shape == (3, 2)  # as llama.cpp's imatrix writes them
    assert tensors["blk.0.ffn_up_exps.weight.counts"].tolist() == [[2], [0], [4]]
    first, second, third = read_imatrix(tmp_path / "m.gguf").columns("blk.0.ffn_up_exps.weight", 2, 3)
    assert second is None
    assert (first.tolist(), third.tolist()) == ([0.0, 0.5], [1.0, 1.25])  # type: ignore[union-attr]
    with pytest.raises(FormatError, match="another model"):
        read_imatrix(tmp_path / "m.gguf").columns("blk.0.ffn_up_exps.weight", 3, 2)


@pytest.mark.parametrize("cut", [3, 10, 25, 40])
def test_truncated_files_are_refused(tmp_path: Path, cut: int) -> None:
    for suffix in (".gguf", ".dat"):
        path = tmp_path / f"m{suffix}"
        write_imatrix(MATRIX, path)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(FormatError):
            read_imatrix(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_numbers_that_are_no_means_are_refused(tmp_path: Path, bad: float) -> None:
    write_imatrix(Imatrix({"w": Entry.of(np.array([1.0, bad]), 1.0)}, "x"), tmp_path / "m.gguf")
    with pytest.raises(FormatError, match="no mean of squares"):
        read_imatrix(tmp_path / "m.gguf")


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match="no importance matrix"):
        read_imatrix(path)
