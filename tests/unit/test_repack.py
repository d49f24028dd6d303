"""Quantized folders as GGUF files: codes are taken over where blocks can hold them, and the error is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paged_run import reference_run
from pagoda.errors import QualityError
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.packed import NF4_VALUES
from pagoda.models.registry import load_model
from pagoda.quantize.gguf.repack import block_type, blocks_of
from pagoda.quantize.run import quantize
from pagoda.quantize.settings import QuantizeSettings
from quantized_models import act_order, rounded, write_quantized
from tiny_blocks import noise
from tiny_models import TINY, VOCAB, write_safetensors

LLAMA = TINY["llama"]
TOKENS = [(37 * i + 11) % VOCAB for i in range(20)]
VALUES = noise("repacked", (20, 128), 0.05)


@pytest.mark.parametrize(
    ("bits", "symmetric", "type", "error"),
    [(4, True, "Q4_0", 0), (4, False, "Q4_1", 1e-3), (3, False, "Q4_1", 1e-3), (8, True, "Q8_0", 0)],
)
def test_codes_are_taken_over(bits: int, symmetric: bool, type: str, error: float) -> None:
    weight = rounded(VALUES, bits, 64, symmetric=symmetric)
    if symmetric:
        weight.zeros[:] = 8 if bits == 4 else 128
    assert block_type(weight) == (type, True)
    blocks = blocks_of(weight)
    assert blocks is not None
    values = weight.dequantize()
    change = np.linalg.norm(dequantize(blocks, type, weight.shape) - values) / np.linalg.norm(values)
    assert change <= error


def test_what_blocks_cannot_hold_is_rounded_to_eight_bits() -> None:
    ordered = rounded(VALUES, 4, 32, order=act_order("a.q_proj", 128))
    assert (block_type(ordered), blocks_of(ordered)) == (("Q8_0", False), None)
    assert block_type(rounded(VALUES, 8, 32)) == ("Q8_0", False)
    assert block_type(rounded(VALUES, 4, 16)) == ("Q8_0", False)
    assert block_type(rounded(VALUES[:, :100], 4, 50)) == ("F16", False)
    assert NF4_VALUES.size == 16


@pytest.mark.parametrize(
    ("kind", "types", "says", "least", "most"),
    [
        ("gptq-4", {"Q4_1"}, "GPTQ-4 as Q4_1", 0.0, 0.05),
        ("awq", {"Q4_1"}, "AWQ-4 as Q4_1", 0.0, 0.05),
        ("gptq-act-order", {"Q8_0"}, "GPTQ-4 as Q8_0", 0.3, 0.6),  # percent: a bell rounded to 8 bits in blocks of 32
        ("nf4-double", {"Q8_0"}, "NF4 as Q8_0", 0.3, 0.6),
    ],
)
def test_a_folder_becomes_a_file_that_says_the_same(
    kind: str, types: set[str], says: str, least: float, most: float, tmp_path: Path
) -> None:
    """Llama's rows of q and k are reordered on the way. What the blocks add in error is told."""
    folder = write_quantized(tmp_path / "folder", LLAMA, kind)
    lines: list[str] = []
    file = quantize(folder, tmp_path / "out.gguf", QuantizeSettings(to="gguf"), say=lines.append)
    (line,) = [line for line in lines if line.startswith(f"14 layers: {says}, added error ")]
    assert least <= float(line.split()[-1].removesuffix("%")) <= most
    with open_checkpoint(folder) as a, open_checkpoint(file) as b:
        assert {b.tensors[name].type for name in b.tensors if "blk" in name and "norm" not in name} == types
        logits = [reference_run(load_model(c)).step({"a": TOKENS})["a"] for c in (a, b)]
    assert np.linalg.norm(logits[1] - logits[0]) < 0.02 * np.linalg.norm(logits[0])


def test_other_formats_take_the_decoded_weights(tmp_path: Path) -> None:
    folder = write_quantized(tmp_path / "folder", LLAMA, "gptq-act-order")
    file = quantize(folder, tmp_path / "out.gguf", QuantizeSettings(to="f32"))
    with open_checkpoint(folder) as a, open_checkpoint(file) as b:
        logits = [reference_run(load_model(c)).step({"a": TOKENS})["a"] for c in (a, b)]
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_a_folder_of_floats_can_be_had_back(tmp_path: Path) -> None:
    folder = write_quantized(tmp_path / "folder", LLAMA, "awq")
    floats = quantize(str(folder), str(tmp_path / "floats"), QuantizeSettings(to="safetensors", dtype="f32"))
    assert floats == tmp_path / "floats"
    with open_checkpoint(folder) as a, open_checkpoint(floats) as b:
        logits = [reference_run(load_model(c)).step({"a": TOKENS})["a"] for c in (a, b)]
    np.testing.assert_array_equal(*logits)


def test_a_result_that_is_too_much_worse_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path / "cache"))
    original, output = write_safetensors(tmp_path / "original", LLAMA), tmp_path / "out.gguf"
    with pytest.raises(QualityError, match=r"KL divergence is .*, more than --max-kld 1e-05; nothing was kept"):
        quantize(original, output, QuantizeSettings(to="q4_0", max_kld=1e-5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "original"]
    lines: list[str] = []
    assert quantize(original, output, QuantizeSettings(to="q8_0", max_kld=1.0), say=lines.append).is_file()
    assert any("mean KL divergence" in line for line in lines)
