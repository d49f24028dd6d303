"""Frozen linears against torch's own over decoded weights, both ways, in every format; and the head's loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from pagoda import _native
from pagoda.backends.packed_weights import PackedWeights
from pagoda.finetune.model import packed_matrix
from pagoda.finetune.model.frozen import FrozenEmbedding, FrozenLinear
from pagoda.finetune.model.head_loss import Head
from pagoda.finetune.model.packed_matrix import PackedMatrix
from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.quantized import as_floats
from pagoda.types import RawTensor
from quantized_models import KINDS, write_quantized
from tiny_blocks import encode, noise
from tiny_specs import TINY

ROWS, COLUMNS, TOKENS = 37, 512, 9  # rows are two panels of 16 and a part of one
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# Relative errors of norms: 16-bit codes of activations, 12-bit values of NF4's codebook, bfloat16 in two factors.
FORWARD, BACKWARD = 4e-4, {FLOAT32: 4e-4, BFLOAT16: 6e-3}


def raw_tensor(type: str, rows: int = ROWS, columns: int = COLUMNS) -> RawTensor:
    data = np.ascontiguousarray(encode(noise("frozen", (rows, columns)), type, "frozen"))
    return RawTensor("frozen", type, (rows, columns), data.view(np.uint8).reshape(-1))


def matrix(raw: RawTensor, dtype: torch.dtype = FLOAT32, isa: str | None = None, threads: int = 1) -> PackedMatrix:
    return PackedMatrix(PackedWeights(_native.Runtime(threads, isa)), raw, dtype)


def values(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(noise(name, shape).copy())


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check(found: PackedMatrix, weight: torch.Tensor, dtype: torch.dtype) -> None:
    x = values("x", TOKENS, weight.shape[1]).requires_grad_()
    bias, g = noise("bias", (weight.shape[0],)).copy(), values("g", TOKENS, weight.shape[0])
    out = FrozenLinear(found, bias)(x[None])[0]
    out.backward(g)
    assert error(out.detach(), x.detach() @ weight.T + torch.from_numpy(bias)) < FORWARD
    assert error(x.grad, g @ weight) < BACKWARD[dtype]


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("type", BLOCK_TYPES)
def test_every_block_type(type: str, dtype: torch.dtype, isa: str) -> None:
    raw = raw_tensor(type)
    check(matrix(raw, dtype, isa), torch.from_numpy(dequantize(raw.data, type, raw.shape)), dtype)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_folders(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    with open_checkpoint(write_quantized(tmp_path / kind, TINY["llama"], kind)) as checkpoint:
        raw = checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
        check(matrix(raw, dtype), torch.from_numpy(as_floats(raw)), dtype)


def test_tiles_threads_and_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_tensor("Q4_K", rows=80)
    x, g = values("x", 30, COLUMNS), values("g", 30, 80)
    whole = matrix(raw)
    expected = whole.product(x)
    assert torch.equal(matrix(raw, threads=3).product(x), expected)
    monkeypatch.setattr(packed_matrix, "MAX_TOKENS", 7)
    assert torch.equal(whole.product(x), expected)
    monkeypatch.setattr(packed_matrix, "TILE_NUMBERS", 16 * COLUMNS)
    assert error(whole.transposed_product(g), matrix(raw).transposed_product(g)) < 1e-6


def test_columns_that_are_no_whole_blocks() -> None:
    raw = raw_tensor("F16", columns=100)
    check(matrix(raw), torch.from_numpy(dequantize(raw.data, raw.type, raw.shape)), FLOAT32)


@pytest.mark.parametrize("type", ["F16", "Q6_K"])
def test_embedding(type: str) -> None:
    raw = raw_tensor(type)
    ids = torch.tensor([[3, 0, 3, 36]])
    expected = torch.from_numpy(dequantize(raw.data, type, raw.shape))[ids] * 2
    assert torch.equal(FrozenEmbedding(raw, 2.0)(ids), expected)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_head_loss(scale: float, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of three rows, against torch's cross entropy over all logits."""
    raw = raw_tensor("Q8_0")
    monkeypatch.setattr("pagoda.finetune.model.head_loss.PIECE_BYTES", 3 * 4 * ROWS)
    weight = torch.from_numpy(dequantize(raw.data, raw.type, raw.shape))
    ours, plain = (values("hidden", 8, COLUMNS).requires_grad_() for _ in range(2))
    targets = torch.tensor([0, 1, 5, 36, 36, 2, 9, 20])
    loss = Head(matrix(raw), scale, softcap).loss(ours, targets)
    logits = plain @ weight.T * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (loss / 7).backward()
    (expected / 7).backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert error(ours.grad, plain.grad) < 1e-3


def test_head_loss_of_nothing() -> None:
    hidden = torch.zeros(0, COLUMNS, requires_grad=True)
    loss = Head(matrix(raw_tensor("Q8_0"))).loss(hidden, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0
