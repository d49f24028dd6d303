"""Every Triton kernel, run by numpy in Triton's interpreter, against the same op in plain torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from cuda_cases import NO_GPU, need_torch

need_torch(triton=True)
if NO_GPU is None:
    pytest.skip("there is a GPU: tests/device runs the kernels on it", allow_module_level=True)

import torch

from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.fast import FastOps
from pagoda.backends.cuda.kernels import decode, dense, grouped
from pagoda.backends.cuda.kv import DTYPES, KVPool
from pagoda.backends.cuda.layer import AttentionLayer, Rotation
from pagoda.backends.cuda.metadata import Limits, Step, StepBuffer, TileSizes
from pagoda.backends.cuda.parts import whole
from pagoda.backends.cuda.planes import PlaneWeight, dequantize
from pagoda.backends.cuda.unpack import KINDS
from pagoda.backends.cuda.weights import WeightLoader
from pagoda.backends.specs import Activation, AttentionSpec, KVType
from pagoda.formats.blocks import BLOCK_TYPES
from pagoda.types import Batch, RawTensor
from tiny_blocks import encode, noise

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of exp, in the interpreter

CPU = torch.device("cpu")
F32 = torch.float32


def numbers(*shape: int, name: str = "x", dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.from_numpy(noise(name, shape).copy()).to(dtype)


def ops(dtype: torch.dtype = F32) -> tuple[FastOps, EagerOps]:
    return FastOps(dtype, max_context=1024, max_seqs=4), EagerOps(dtype)


def close(got: torch.Tensor, right: torch.Tensor, tolerance: float = 2e-6) -> None:
    off = (whole(got) - whole(right)).norm() / whole(right).norm()
    assert off < tolerance, float(off)


# Rows


@pytest.mark.parametrize("parts", [0, 1, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_norm_of_what_is_added(parts: int, stream: bool) -> None:
    if not parts and not stream:
        return
    x, y = (numbers(1, 3, 96) for _ in "xy")
    added = numbers(parts, 3, 96, name="y") if parts else None
    weight = numbers(96, name="w")
    fast, eager = ops()
    got = fast.norm(x if stream else None, added, weight, 1e-5)
    close(got, eager.norm(y if stream else None, added, weight, 1e-5))
    assert torch.allclose(x, y, atol=1e-6)


def test_layer_norm() -> None:
    x, weight, bias = numbers(1, 3, 96) + 2, numbers(96, name="w"), numbers(96, name="b")
    fast, eager = ops()
    close(fast.norm(None, x, weight, 1e-5, bias), eager.norm(None, x, weight, 1e-5, bias))


@pytest.mark.parametrize("activation", get_args(Activation))
def test_gated(activation: Activation) -> None:
    gate, up = numbers(2, 3, 100, name="gate") * 8, numbers(1, 3, 100, name="up") * 8
    for dtype, tolerance in ((F32, 2e-6), (torch.float16, 1e-3)):
        fast, eager = ops(dtype)
        close(fast.gated(gate, up, activation), eager.gated(gate, up, activation), tolerance)
        close(fast.gated(gate, None, activation), eager.gated(gate, None, activation), tolerance)
        close(fast.multiply(gate, up), eager.multiply(gate, up), tolerance)


def test_heads_are_normed_or_turned_alone() -> None:
    x, weight = numbers(2, 3, 11 * 24), numbers(24, name="w")
    fast, eager = ops()
    close(fast.head_norm(x, weight, 1e-5, 11), eager.head_norm(x, weight, 1e-5, 11))
    for rotation in (Rotation(0, 16, True), Rotation(0, 24, False)):
        layer = AttentionLayer(AttentionSpec(11, 11, 24, 1.0), 0, 0, rotation)
        step = step_of([3], [40], TileSizes(16, 16, 16), layer)
        close(fast.rope(x, 11, rotation, step), eager.rope(x, 11, rotation, step))


def test_gated_stays_within_half_precision() -> None:
    fast, _ = ops(torch.float16)
    gate = torch.full((1, 1, 8), 6e4)
    assert fast.gated(gate, gate, "silu").max() == 65504


# Products


def planes(type: str, rows: int, columns: int) -> PlaneWeight:
    data = np.ascontiguousarray(encode(noise("w", (rows, columns)), type, "w")).view(np.uint8).reshape(-1)
    weight = WeightLoader(torch.float16, CPU).matrix(RawTensor("w", type, (rows, columns), data))
    assert isinstance(weight, PlaneWeight)
    return weight


@pytest.mark.parametrize("type", KINDS)
def test_quantized_products_and_decoding(type: str) -> None:
    """Two tiles of rows, the second short; where a format allows it, columns that end within a run."""
    weight = planes(type, 24, 256 if BLOCK_TYPES[type].elements == 256 else 160)
    right = dequantize(weight)
    assert torch.equal(decode.decode(weight, None, F32), right)
    rows = torch.tensor([7, 0], dtype=torch.int32)
    close(decode.decode(weight, rows, F32, factor=2.0)[None], right[[7, 0]][None] * 2)
    x, bias = numbers(1, 3, weight.columns), numbers(24, name="b")
    expected = (x[0] @ right.t() + bias)[None]
    for tokens in (1, 2):
        close(grouped.skinny(x[:, :tokens], weight, bias, F32), expected[:, :tokens])
    close(grouped.tiled(x, weight, bias, F32, invariant=False), expected)
    half = grouped.tiled(x.to(torch.float16), weight, None, torch.float16, invariant=True)
    close(half, (x[0] @ right.t())[None], 2e-3)


@pytest.mark.parametrize("dtype", [F32, torch.float16])
def test_dense_products(dtype: torch.dtype) -> None:
    x, weight, bias = numbers(1, 2, 600, dtype=dtype), numbers(40, 600, name="w", dtype=dtype), numbers(40, name="b")
    expected = (x[0].to(F32) @ weight.to(F32).t() + bias)[None]
    for product in (dense.skinny, dense.tiled):
        close(product(x, weight, bias, F32), expected)


def test_invariant_products_of_a_row_are_the_same_in_any_batch() -> None:
    fast = FastOps(torch.float16, batch_invariant=True, max_context=64, max_seqs=4)
    x, half = numbers(1, 70, 1088, dtype=torch.float16), torch.float16
    for weight in (numbers(24, 1088, name="w", dtype=half), planes("Q4_0", 24, 1088)):
        many = whole(fast.linear(x, weight, None, F32))
        alone = whole(fast.linear(x[:, 66:67].contiguous(), weight, None, F32))
        assert torch.equal(many[66:67], alone)


# Attention


def step_of(counts: list[int], contexts: list[int], sizes: TileSizes, layer: AttentionLayer, seed: int = 0) -> Step:
    """Sequences whose last `count` of `context` tokens are computed, over blocks in random order."""
    rng = np.random.default_rng(seed)
    width = -(-max(contexts) // 16)
    tables = rng.permutation(64)[: len(counts) * width].reshape(len(counts), width).astype(np.int32)
    positions = [np.arange(end - count, end) for count, end in zip(counts, contexts, strict=True)]
    total = sum(counts)
    batch = Batch(
        np.zeros(total, np.int32),
        np.concatenate(positions).astype(np.int32),
        np.cumsum([0, *counts]).astype(np.int32),
        np.array(contexts, np.int32),
        (tables,),
        np.zeros(1, np.int32),
    )
    buffer = StepBuffer(Limits(64, 8, 8, 64, 1), sizes, CPU)
    padded = total + 1 if max(counts) == 1 else total  # decoding is padded
    step = buffer.send(buffer.lay_out(batch, padded, 1), batch.tokens)
    angle = step.positions[:, None] * torch.linspace(1, 0.01, max(layer.rotation.dim // 2, 1))
    return step.with_angles(((angle.cos(), angle.sin()),))


def pool_of(layer: AttentionLayer, kv_type: KVType) -> KVPool:
    pool = KVPool((0,), 64, (layer.spec.num_kv_heads, layer.spec.head_dim), kv_type, CPU)
    old = numbers(*pool.k.shape[1:], name="old")
    if pool.kind:
        pool.k[0], pool.v[0] = ((old * 50).to(pool.k.dtype) for _ in "kv")
        for scales in pool.scales:
            scales[0] = 0.02
    else:
        pool.k[0], pool.v[0] = old.to(pool.k.dtype), old.flip(0).to(pool.k.dtype)
    return pool


LAYERS: dict[str, AttentionLayer] = {
    "grouped": AttentionLayer(AttentionSpec(4, 2, 16, 0.25), 0, 0, Rotation(0, 16)),
    "windowed": AttentionLayer(AttentionSpec(2, 2, 16, 0.25, window=20), 0, 0, Rotation(0, 16, True)),
    "capped, normed": AttentionLayer(
        AttentionSpec(3, 1, 24, 0.25, softcap=2.0), 0, 0, Rotation(0, 16),
        numbers(24, name="qn") + 1, numbers(24, name="kn") + 1, 1e-5,
    ),
    "with sinks": AttentionLayer(
        AttentionSpec(6, 2, 16, 0.25, window=20), 0, 0, Rotation(0, 16), sinks=numbers(6, name="sinks") * 2
    ),
    "of large heads": AttentionLayer(AttentionSpec(4, 2, 288, 0.06), 0, 0, Rotation(0, 288)),
}  # fmt: skip


# No bf16: the interpreter multiplies its bits as integers.
# Queries and weights are rounded to the type of the keys (f16 for 8 bits) before tensor cores take them.
TOLERANCES: dict[KVType, float] = {"f32": 2e-6, "f16": 2e-3, "int8": 5e-3, "fp8": 5e-3}


@pytest.mark.parametrize(
    ("name", "kv_type"),
    [
        ("grouped", "f32"),
        ("windowed", "f16"),
        ("capped, normed", "f32"),
        ("capped, normed", "int8"),
        ("grouped", "fp8"),
        ("with sinks", "f32"),
        ("with sinks", "int8"),
        ("of large heads", "f32"),
    ],
)
@pytest.mark.parametrize(("counts", "contexts"), [([1, 1], [300, 17]), ([18, 1, 2], [37, 5, 50])])
def test_attention(name: str, kv_type: KVType, counts: list[int], contexts: list[int]) -> None:
    """Decoding over chunks of keys; a long tile beside short ones. Stored keys must be the same, too."""
    layer = LAYERS[name]
    spec = layer.spec
    fast, eager = ops()
    bits = 8 * DTYPES[kv_type][1].itemsize
    sizes = fast.tile_sizes(spec.num_heads // spec.num_kv_heads, spec.head_dim, bits)
    step = step_of(counts, contexts, sizes, layer)
    tokens = len(step.tokens)
    q = numbers(2, tokens, spec.num_heads * spec.head_dim, name="q")
    k, v = (numbers(1, tokens, spec.num_kv_heads * spec.head_dim, name=n) for n in "kv")
    results, pools = [], []
    for op in (fast, eager):
        pool = pool_of(layer, kv_type)
        results.append(op.attend(op.rope_and_store_kv(q, k, v, layer, pool.layer(0), step), layer, pool.layer(0), step))
        pools.append(pool)
    live = (step.positions >= 0).nonzero()[:, 0]
    close(results[0][:, live], results[1][:, live], TOLERANCES[kv_type])
    kind = pools[0].k.dtype
    stored = [pool.k.to(F32) if kind != torch.uint8 else pool.k.view(torch.uint8).to(F32) for pool in pools]
    assert (stored[0] - stored[1]).abs().max() <= (1 if pools[0].kind else 2e-2)


def test_queries_over_keys_of_another_layer() -> None:
    layer = LAYERS["capped, normed"]
    fast, eager = ops()
    step = step_of([3], [40], TileSizes(16, 16, 16), layer)
    q, kv = numbers(2, 3, 3 * 24, name="q"), pool_of(layer, "f32").layer(0)
    before = kv.k.clone()
    got, right = (op.rope_and_store_kv(q, None, None, layer, kv, step)[None] for op in (fast, eager))
    close(got, right)
    assert torch.equal(kv.k, before)


def test_bits_of_attention_do_not_depend_on_the_cut_or_the_batch() -> None:
    """A row alone, in a tile with others, and beside another sequence; with chunks shared by several programs."""
    layer = LAYERS["grouped"]
    fast = FastOps(F32, batch_invariant=True, max_context=1024, max_seqs=4)
    sizes = fast.tile_sizes(2, 16, 32)
    results = []
    for counts, contexts in (([3], [300]), ([3, 1], [300, 300])):
        step = step_of(counts, contexts, sizes, layer)
        q = numbers(64, 64, name="q")[: sum(counts)]
        pool = pool_of(layer, "f32")
        if len(counts) == 1:
            width = step.meta[1]
            first = step.meta[step.meta[0] : step.meta[0] + width].clone()
        else:
            step.meta[step.meta[0] : step.meta[0] + width] = first
        results.append(fast.attend(q, layer, pool.layer(0), step)[0, :3])
    assert torch.equal(*results)


def test_kernels_compile_for_gpus() -> None:
    """To machine code, for an A100 and an H100, in a process where nothing is interpreted."""
    script = Path(__file__).parents[1] / "compile_kernels.py"
    wanted = ["fp8 short", "Q4_K (one|few)", "(bf16|int8) adapters", "delta rule"]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    done = subprocess.run(
        [sys.executable, script, "80", "90", *wanted], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sm_80") == done.stdout.count("sm_90") == 9
