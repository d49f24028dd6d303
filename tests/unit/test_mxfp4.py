"""Stacks of MXFP4 as gpt-oss's folders hold them: what they stand for, their parts, and the same in GGUF's blocks."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from paged_run import reference_run
from pagoda.errors import FormatError
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.mxfp4 import Mxfp4Tensor
from pagoda.formats.quant_methods import fold
from pagoda.formats.quantized import as_floats
from pagoda.models.registry import load_model
from pagoda.types import FloatArray, RawTensor
from quantized_models import write_folder
from tiny_blocks import noise
from tiny_models import TINY, VOCAB, hf_config, weights

CONFIG = {"quant_method": "mxfp4"}
TOKENS = [(37 * i + 11) % VOCAB for i in range(40)]


def packed(values: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """values [N, R, C] → blocks [N, R, C / 32, 16] and scales [N, R, C / 32]; rounded by the gguf package."""
    n, rows, columns = values.shape
    made = gguf.quants.quantize(values.reshape(-1, columns), gguf.GGMLQuantizationType.MXFP4).reshape(n, rows, -1, 17)
    codes = np.concatenate([made[..., 1:] & 15, made[..., 1:] >> 4], axis=-1)  # in order
    return codes[..., ::2] | codes[..., 1::2] << 4, np.ascontiguousarray(made[..., 0])


def stack(values: FloatArray) -> Mxfp4Tensor:
    parts = dict(zip(("w_blocks", "w_scales"), packed(values), strict=True))
    raws = {
        name: RawTensor(name, "U8", part.shape, np.ascontiguousarray(part).reshape(-1)) for name, part in parts.items()
    }
    (tensor,) = fold(raws, CONFIG).values()
    assert isinstance(tensor, Mxfp4Tensor)
    return tensor


def test_matrices_and_their_rows() -> None:
    values = noise("stack", (3, 10, 64))
    whole = stack(values)
    assert (whole.name, whole.type, whole.shape) == ("w", "MXFP4", (3, 10, 64))
    for i in range(3):
        matrix = whole.matrix(i)
        decoded = as_floats(matrix)
        assert decoded.shape == matrix.shape == (10, 64)
        assert np.linalg.norm(decoded - values[i]) < 0.15 * np.linalg.norm(values[i])
        np.testing.assert_array_equal(dequantize(matrix.file_blocks(), "MXFP4", (10, 64)), decoded)
        for first in (0, 1):
            half = matrix.every_second_row(first)
            assert (half.shape, half.part_of) == ((5, 64), "w")
            np.testing.assert_array_equal(as_floats(half), decoded[first::2])
            np.testing.assert_array_equal(dequantize(half.file_blocks(), "MXFP4", (5, 64)), decoded[first::2])


@pytest.mark.parametrize(
    "shapes", [((2, 8, 2, 16), (2, 8, 3)), ((2, 8, 2, 15), (2, 8, 2)), ((8, 2, 16), (8, 2)), ((2, 8, 0, 16), (2, 8, 0))]
)
def test_parts_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    raws = {
        f"w_{part}": RawTensor("w", "U8", shape, np.zeros(int(np.prod(shape)), np.uint8))
        for part, shape in zip(("blocks", "scales"), shapes, strict=True)
    }
    with pytest.raises(FormatError, match=r"stack 'w' has blocks of shape"):
        fold(raws, CONFIG)


def test_a_folder_computes_what_its_experts_decode_to(tmp_path: Path) -> None:
    spec, arrays, floats = TINY["gpt_oss"], dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name, values in weights(spec).items():
        arrays[name] = floats[name] = values
        if values.ndim == 3:
            del arrays[name]
            upright = np.ascontiguousarray(values.swapaxes(1, 2))
            arrays[f"{name}_blocks"], arrays[f"{name}_scales"] = packed(upright)
            made = stack(upright)
            floats[name] = np.stack([as_floats(made.matrix(i)).T for i in range(len(values))])
    folder = write_folder(tmp_path / "packed", {**hf_config(spec), "quantization_config": CONFIG}, arrays)
    plain = write_folder(tmp_path / "floats", hf_config(spec), floats)
    with open_checkpoint(folder) as one, open_checkpoint(plain) as other:
        logits = [reference_run(load_model(c)).step({"a": TOKENS})["a"] for c in (one, other)]
    np.testing.assert_array_equal(*logits)
