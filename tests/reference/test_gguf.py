"""The GGUF reader against the `gguf` package: files that it writes, and its reading of the default model."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import open_checkpoint


def test_reads_what_gguf_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    rng = np.random.default_rng(5)
    arrays = {"a": rng.standard_normal((6, 64)).astype("f4"), "b": rng.standard_normal((2, 3, 32)).astype("f2")}
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(4096)
    writer.add_rope_freq_base(1e6)
    writer.add_token_list(["a", "é", "塔", "\n"])
    writer.add_token_scores([0.0, -1.5, 2.0, 3.0])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_bool("yes", True)
    writer.add_custom_alignment(128)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    packed = gguf.quants.quantize(arrays["a"], gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.architecture == "qwen2"
        assert dict(checkpoint.metadata) == {
            "general.architecture": "qwen2",
            "general.alignment": 128,
            "qwen2.context_length": 4096,
            "qwen2.rope.freq_base": 1e6,
            "tokenizer.ggml.tokens": ["a", "é", "塔", "\n"],
            "tokenizer.ggml.scores": [0.0, -1.5, 2.0, 3.0],
            "nested": [[1, 2], [3]],
            "yes": True,
        }
        for name, array in arrays.items():
            tensor = checkpoint.tensors[name]
            np.testing.assert_array_equal(dequantize(tensor.data, tensor.type, tensor.shape), array.astype("f4"))
        assert checkpoint.tensors["q"].data.tobytes() == packed.tobytes()
        assert checkpoint.tensors["q"].shape == (6, 64)


def test_reads_the_splits_that_gguf_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for number in range(5):
        writer.add_tensor(f"t{number}", np.full((2, 4), number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    checkpoint = open_checkpoint(tmp_path / "m-00002-of-00003.gguf")
    assert [tensor.data.view("<f4")[0] for tensor in checkpoint.tensors.values()] == [0, 1, 2, 3, 4]


def test_reads_the_default_model_as_gguf_does(default_model: Path) -> None:
    expected = gguf.GGUFReader(default_model)
    with open_checkpoint(default_model) as checkpoint:
        fields = {name: field.contents() for name, field in expected.fields.items() if not name.startswith("GGUF.")}
        assert dict(checkpoint.metadata) == fields
        assert list(checkpoint.tensors) == [tensor.name for tensor in expected.tensors]
        for tensor in expected.tensors:
            ours = checkpoint.tensors[tensor.name]
            assert ours.type == tensor.tensor_type.name
            assert ours.shape == tuple(int(extent) for extent in tensor.shape[::-1])
            assert np.array_equal(ours.data, tensor.data.reshape(-1).view(np.uint8)), tensor.name
