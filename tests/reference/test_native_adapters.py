"""Adapters in the native backend: on every instruction set and weight format, and in batches of any mix bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_run import PagedRun
from pagoda import _native
from pagoda.backends.base import Backend
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.reference import ReferenceBackend
from pagoda.backends.specs import AdapterWeights, LoraDelta
from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.types import FloatArray
from quantized_models import write_quantized
from tiny_blocks import noise
from tiny_models import TINY, VOCAB, memory_checkpoint, write_gguf

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
TOKENS = [(37 * i + 11) % VOCAB for i in range(150)]


def model(name: str = "llama") -> Decoder:
    checkpoint: Any = memory_checkpoint(TINY[name], kind="gguf")
    return load_model(checkpoint, max_context=256)


def adapter(
    decoder: Decoder, seed: str, rank: int, targets: tuple[str, ...] = LINEARS, *, scaled: bool = False
) -> AdapterWeights:
    """Random factors, of other ranks at other targets; `scaled`: rows of the weights are, too."""
    weights: dict[str, LoraDelta] = {}
    for matrix in (matrix for block in decoder.blocks for matrix in block.matrices):
        role = matrix.name.split(".")[2]
        if role in targets:
            rows, columns = matrix.shape
            r = max(1, rank - targets.index(role))
            a = noise(f"{seed} a {matrix.name}", (r, columns), columns**-0.5)
            b = noise(f"{seed} b {matrix.name}", (rows, r), 0.7 * r**-0.5)
            bias = noise(f"{seed} bias {matrix.name}", (rows,), 0.1) if role == "attn_q" else None
            scale = 1.2 + noise(f"{seed} scale {matrix.name}", (rows,), 0.2) if scaled else None
            weights[matrix.name] = LoraDelta(a, b, bias, scale)
    return weights


def loaded(backend: Backend, decoder: Decoder) -> Any:
    return backend.load(decoder, max_batch_tokens=256, max_batch_seqs=256, kv_type="f32")


@pytest.mark.parametrize("scaled", [False, True])
def test_every_instruction_set_computes_what_the_reference_does(scaled: bool) -> None:
    decoder = model()
    weights = adapter(decoder, "x", 13, scaled=scaled)
    expected = with_adapter(ReferenceBackend(), decoder, weights)
    assert np.abs(expected - with_adapter(ReferenceBackend(), decoder, None)).max() > 0.5
    for isa in _native.available_isas():
        np.testing.assert_allclose(with_adapter(CpuBackend(threads=2, isa=isa), decoder, weights), expected, atol=2e-3)


def with_adapter(
    backend: Backend, decoder: Decoder, weights: AdapterWeights | None, *, type: Any = "f32"
) -> FloatArray:
    made = loaded(backend, decoder)
    adapters = {} if weights is None else {"s": made.place_adapter(weights, type=type)}
    return PagedRun(decoder, made).step({"s": TOKENS}, adapters=adapters)["s"]


@pytest.mark.parametrize("type", ["F32", "F16", "Q4_1", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_kind_of_weights_takes_adapters(type: str, bits: int, tmp_path: Any) -> None:
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", TINY["llama"], type=type)) as checkpoint:
        decoder = load_model(checkpoint, max_context=256)
        weights = adapter(decoder, "x", 8)
        found = with_adapter(CpuBackend(threads=2, activation_bits=bits), decoder, weights)
        expected = with_adapter(ReferenceBackend(), decoder, weights)
    cosine = (found * expected).sum() / np.sqrt((found**2).sum() * (expected**2).sum())
    assert cosine > (0.9999 if bits == 16 else 0.999)


@pytest.mark.parametrize("kind", ["gptq-act-order", "awq", "nf4"])
def test_quantized_folders_take_adapters(kind: str, tmp_path: Path) -> None:
    """Where columns are sorted by group, an adapter reads them as they are."""
    with open_checkpoint(write_quantized(tmp_path, TINY["llama"], kind)) as checkpoint:
        decoder = load_model(checkpoint, max_context=256)
        weights: dict[str, LoraDelta] = {}
        for block in decoder.blocks:
            for matrix in block.matrices:
                rows, columns = matrix.shape
                a = noise(f"a {matrix.name}", (5, columns), columns**-0.5)
                weights[matrix.name] = LoraDelta(a, noise(f"b {matrix.name}", (rows, 5), 0.3))
        found = with_adapter(CpuBackend(threads=2), decoder, weights)
        expected = with_adapter(ReferenceBackend(), decoder, weights)
        plain = with_adapter(ReferenceBackend(), decoder, None)
    assert np.abs(plain - expected).max() > 0.5
    assert (found * expected).sum() / np.sqrt((found**2).sum() * (expected**2).sum()) > 0.9999


@pytest.mark.parametrize(("type", "limit"), [("bf16", 0.1), ("int8", 0.3)])
def test_smaller_numbers_are_close_to_float32(type: Any, limit: float) -> None:
    decoder = model()
    weights = adapter(decoder, "x", 13)
    exact = with_adapter(CpuBackend(threads=1), decoder, weights)
    moved = np.abs(with_adapter(CpuBackend(threads=1), decoder, weights, type=type) - exact)
    assert 0 < moved.max() < limit
    assert moved.mean() < limit / 8


RANKS = [(1, LINEARS), (4, ("attn_q", "attn_v")), (9, LINEARS), (16, LINEARS), (40, ("ffn_down", "ffn_up"))]
SCALED = 3  # which of them scales rows of the weights
mixes = st.lists(
    st.tuples(st.integers(-1, 4), st.integers(0, 60), st.sampled_from([1, 1, 1, 2, 3, 5, 16, 33])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(mix=mixes)
def test_a_row_of_a_mixed_batch_is_what_it_is_alone(mix: list[tuple[int, int, int]]) -> None:
    decoder = model("llama")
    backend = CpuBackend(threads=2)
    together, alone = (loaded(backend, decoder) for _ in range(2))
    made = [
        [
            m.place_adapter(
                adapter(decoder, str(i), r, targets, scaled=i == SCALED), type=("f32", "bf16", "int8")[i % 3]
            )
            for i, (r, targets) in enumerate(RANKS)
        ]
        for m in (together, alone)
    ]
    chunks = {str(n): TOKENS[offset : offset + count] for n, (_, offset, count) in enumerate(mix)}
    which = {str(n): adapter for n, (adapter, _, _) in enumerate(mix) if adapter >= 0}
    found = PagedRun(decoder, together).step(chunks, adapters={name: made[0][i] for name, i in which.items()})
    single = PagedRun(decoder, alone)
    for name, tokens in chunks.items():
        adapters = {name: made[1][which[name]]} if name in which else {}
        np.testing.assert_array_equal(found[name], single.step({name: tokens}, adapters=adapters)[name])


def test_adapters_of_other_programs_and_shapes_are_refused() -> None:
    decoder = model()
    backend = CpuBackend(threads=1)
    first, second = loaded(backend, decoder), loaded(backend, decoder)
    weights = adapter(decoder, "x", 4)
    placed = first.place_adapter(weights, type="f32")
    with pytest.raises(ValueError, match="another program"):
        PagedRun(decoder, second).step({"s": TOKENS[:4]}, adapters={"s": placed})
    name, delta = next(iter(weights.items()))
    with pytest.raises(ValueError, match="shape"):
        first.place_adapter({name: LoraDelta(delta.a[:, 1:], delta.b)}, type="f32")
    with pytest.raises(UnsupportedError, match="nowhere"):
        first.place_adapter({"nowhere.weight": delta}, type="f32")
