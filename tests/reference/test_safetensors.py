"""The safetensors reader against the `safetensors` package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from pagoda.errors import FormatError
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.safetensors import parse_safetensors


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    arrays = {"b": rng.standard_normal((3, 5)).astype("f4"), "a": rng.standard_normal((2, 3, 4)).astype("f2")}
    save_file({**arrays, "ids": np.arange(7)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    checkpoint = open_checkpoint(tmp_path)
    for name, array in arrays.items():
        tensor = checkpoint.tensors[name]
        np.testing.assert_array_equal(dequantize(tensor.data, tensor.type, tensor.shape), array.astype("f4"))
    assert checkpoint.tensors["ids"].type == "I64"
    assert checkpoint.tensors["ids"].data.tobytes() == np.arange(7).tobytes()


@pytest.mark.parametrize(
    "entries",
    [
        {"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])},  # overlap
        {"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [12, 20])},  # gap
        {"a": ("F32", [3], [0, 8])},  # shape too large for the offsets
        {"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [8, 16]), "c": ("F32", [2], [16, 24])},  # past the end
    ],
)
def test_refuses_what_safetensors_refuses(tmp_path: Path, entries: dict[str, tuple[str, list[int], list[int]]]) -> None:
    header = {name: {"dtype": d, "shape": s, "data_offsets": o} for name, (d, s, o) in entries.items()}
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(20))
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "numpy"):
        pass
    with pytest.raises(FormatError):
        parse_safetensors(path.read_bytes(), str(path))
