"""Ops with a state on the CUDA backend: in plain torch against numpy's, and their kernels, in Triton's interpreter,
against plain torch. What is computed, what is saved, and that no bit depends on how a prompt is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from cuda_cases import NO_GPU, need_torch

need_torch(triton=True)
if NO_GPU is None:
    pytest.skip("there is a GPU: tests/device runs the kernels on it", allow_module_level=True)

import torch

from pagoda.backends import arithmetic
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.fast import FastOps
from pagoda.backends.cuda.metadata import Limits, Step, StepBuffer, TileSizes
from pagoda.backends.specs import DeltaSpec, ScanSpec
from pagoda.types import Batch
from tiny_blocks import noise

F32, SLOTS = torch.float32, 9
FAST = FastOps(F32, max_context=64, max_seqs=8)
EAGER = EagerOps(F32)
SPEC = DeltaSpec(2, 6, 12, 20, tiled=True)
GROUPED = DeltaSpec(2, 4, 16, 16)
SCANS = [ScanSpec(6, 20, 2, 12), ScanSpec(4, 16, 1, 32)]


@dataclass(frozen=True)
class Case:
    """Tokens of each sequence, the slot that it begins at, and where states are saved, by token of the step."""

    counts: Sequence[int]
    starts: Sequence[int]
    saves: dict[int, int]
    padding: int = 0


CASES = {
    "a prompt, a token, drafts": Case([7, 1, 4], [-1, 3, 5], {6: 0, 7: 3, 8: 5, 9: 1, 10: 2, 11: 4}),
    "snapshots within a prompt": Case([20], [8], {3: 0, 15: 1, 19: 8}),
    "less than a window": Case([2, 2], [-1, 4], {0: 1, 1: 2, 2: 3, 3: 4}),
    "decoding, padded": Case([1, 1, 1], [2, -1, 2], {0: 0, 1: 1, 2: 7}, padding=2),
}


def step_of(case: Case) -> Step:
    total, seqs = sum(case.counts), len(case.counts)
    saves = np.full(total, -1, np.int32)
    saves[list(case.saves)] = list(case.saves.values())
    batch = Batch(
        np.zeros(total, np.int32),
        np.concatenate([np.arange(count, dtype=np.int32) for count in case.counts]),
        np.cumsum([0, *case.counts]).astype(np.int32),
        np.array(case.counts, np.int32),
        (np.zeros((seqs, 2), np.int32),),
        np.zeros(1, np.int32),
        state_starts=np.array(case.starts, np.int32),
        state_saves=saves,
    )
    buffer = StepBuffer(Limits(64, 8, 8, 4, 1, has_states=True), TileSizes(16, 16, 16), torch.device("cpu"))
    return buffer.send(buffer.lay_out(batch, total + case.padding, 1), batch.tokens)


def numbers(*shape: int, name: str) -> torch.Tensor:
    return torch.from_numpy(noise(name, shape).copy())


def conv(ops: EagerOps, case: Case, taps: int, *, silu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """→ (what of real tokens comes out, the pool after it); two parts go in"""
    step, pool = step_of(case), numbers(SLOTS, taps - 1, 40, name="pool")
    x = numbers(2, len(step.tokens), 40, name="x")
    weight, bias = numbers(40, taps, name="taps"), numbers(40, name="bias") if silu else None
    out = ops.short_conv(x, weight, pool, step, silu=silu, bias=bias)
    return out[0, : sum(case.counts)], pool


def delta(ops: EagerOps, case: Case, spec: DeltaSpec) -> tuple[torch.Tensor, torch.Tensor]:
    step, heads = step_of(case), spec.num_v_heads
    tokens, pool = len(step.tokens), numbers(SLOTS, heads, spec.v_dim, spec.k_dim, name="pool")
    qkv = numbers(2, tokens, 2 * spec.num_k_heads * spec.k_dim + heads * spec.v_dim, name="qkv")
    alpha, beta = (numbers(2, tokens, heads, name=name) for name in ("alpha", "beta"))
    decay, dt_bias = -numbers(heads, name="decay").abs(), numbers(heads, name="dt")
    out = ops.delta_rule(qkv, alpha, beta, decay, dt_bias, spec, pool, step)
    return out[0, : sum(case.counts)], pool


def scan(ops: EagerOps, case: Case, spec: ScanSpec) -> tuple[torch.Tensor, torch.Tensor]:
    step, heads = step_of(case), spec.num_heads
    tokens, pool = len(step.tokens), numbers(SLOTS, heads, spec.head_dim, spec.state_dim, name="pool")
    xbc, dt = numbers(2, tokens, spec.mixed_size, name="xbc"), numbers(2, tokens, heads, name="dt")
    decay, dt_bias, skip = (numbers(heads, name=name) for name in ("decay", "bias", "skip"))
    out = ops.selective_scan(xbc, dt, -decay.abs(), dt_bias, skip, spec, pool, step)
    return out[0, : sum(case.counts)], pool


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("taps", "silu"), [(4, True), (3, False)])
def test_convolutions(name: str, taps: int, silu: bool) -> None:
    out, pool = conv(EAGER, CASES[name], taps, silu=silu)
    fast_out, fast_pool = conv(FAST, CASES[name], taps, silu=silu)
    assert torch.allclose(fast_out, out, atol=1e-5)
    assert torch.allclose(fast_pool, pool, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("spec", [SPEC, GROUPED], ids=["tiled", "grouped"])
def test_delta_rules(name: str, spec: DeltaSpec) -> None:
    out, pool = delta(EAGER, CASES[name], spec)
    fast_out, fast_pool = delta(FAST, CASES[name], spec)
    assert torch.allclose(fast_out, out, atol=1e-5)
    assert torch.allclose(fast_pool, pool, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("spec", SCANS, ids=["groups", "one group"])
def test_selective_scans(name: str, spec: ScanSpec) -> None:
    out, pool = scan(EAGER, CASES[name], spec)
    fast_out, fast_pool = scan(FAST, CASES[name], spec)
    assert torch.allclose(fast_out, out, atol=1e-5)
    assert torch.allclose(fast_pool, pool, atol=1e-5)


@pytest.mark.parametrize("spec", SCANS, ids=["groups", "one group"])
def test_a_selective_scan_is_numpys(spec: ScanSpec) -> None:
    out, pool = scan(EAGER, Case([5], [3], {2: 0, 4: 3}), spec)
    xbc, dt = (noise(name, (2, 5, width)).sum(0) for name, width in (("xbc", spec.mixed_size), ("dt", spec.num_heads)))
    state = noise("pool", (SLOTS, spec.num_heads, spec.head_dim, spec.state_dim))[3].swapaxes(1, 2).copy()
    saved = np.zeros_like(state)
    decay, dt_bias, skip = (noise(name, (spec.num_heads,)) for name in ("decay", "bias", "skip"))
    given = (-np.abs(decay), dt_bias, skip)
    right = arithmetic.selective_scan(xbc, dt, numbers=given, spec=spec, state=state, saves={2: saved})
    np.testing.assert_allclose(out.numpy(), right, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pool[3].numpy(), state.swapaxes(1, 2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pool[0].numpy(), saved.swapaxes(1, 2), rtol=1e-5, atol=1e-5)


def test_a_convolution_is_numpys() -> None:
    case = Case([5], [3], {4: 3})
    out, pool = conv(EAGER, case, 4, silu=False)
    x, before = numbers(2, 5, 40, name="x").sum(0).numpy(), noise("pool", (SLOTS, 3, 40))[3]
    right = arithmetic.short_conv(x, before, noise("taps", (40, 4)), with_silu=False)
    np.testing.assert_allclose(out.numpy(), right, atol=1e-6)
    np.testing.assert_array_equal(pool[3].numpy(), x[2:])


@pytest.mark.parametrize("spec", [SPEC, GROUPED], ids=["tiled", "grouped"])
def test_a_delta_rule_is_numpys(spec: DeltaSpec) -> None:
    out, pool = delta(EAGER, Case([5], [3], {2: 0, 4: 3}), spec)
    heads = spec.num_v_heads
    columns = 2 * spec.num_k_heads * spec.k_dim + heads * spec.v_dim
    qkv, alpha, beta = (
        noise(name, (2, 5, width)).sum(0) for name, width in (("qkv", columns), ("alpha", heads), ("beta", heads))
    )
    state = noise("pool", (SLOTS, heads, spec.v_dim, spec.k_dim))[3].swapaxes(1, 2).copy()
    saved = np.zeros_like(state)
    numbers = -np.abs(noise("decay", (heads,))), noise("dt", (heads,))
    right = arithmetic.delta_rule(qkv, alpha, beta, numbers=numbers, spec=spec, state=state, saves={2: saved})
    np.testing.assert_allclose(out.numpy(), right, atol=1e-5)
    np.testing.assert_allclose(pool[3].numpy(), state.swapaxes(1, 2), atol=1e-5)
    np.testing.assert_allclose(pool[0].numpy(), saved.swapaxes(1, 2), atol=1e-5)


def _in_chunks(ops: EagerOps, cuts: Sequence[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A sequence of 12 tokens in slot 1, in steps of so many: what all ops give, and their pools."""
    conv_pool, delta_pool, scan_pool = (torch.zeros(SLOTS, *shape) for shape in ((3, 40), (4, 16, 16), (4, 16, 32)))
    x, qkv = numbers(1, 12, 40, name="x"), numbers(1, 12, 128, name="qkv")
    heads = numbers(1, 12, 4, name="heads")
    taps, of_heads = numbers(40, 4, name="taps"), -numbers(4, name="decay").abs()
    rows, at = [], 0
    for count in cuts:
        step, here = step_of(Case([count], [1 if at else -1], {count - 1: 1})), slice(at, at + count)
        convolved = ops.short_conv(x[:, here], taps, conv_pool, step, silu=True)
        given = (qkv[:, here], heads[:, here], heads[:, here], of_heads, of_heads)
        changed = ops.delta_rule(*given, GROUPED, delta_pool, step)
        scanned = ops.selective_scan(
            qkv[:, here], heads[:, here], of_heads, of_heads, of_heads, SCANS[1], scan_pool, step
        )
        rows.append(torch.cat([convolved, changed, scanned], dim=2)[0])
        at += count
    return rows, [conv_pool, delta_pool, scan_pool]


@pytest.mark.parametrize("ops", [EAGER, FAST], ids=["torch", "kernels"])
@pytest.mark.parametrize("cuts", [(1,) * 12, (2, 7, 3), (11, 1)])
def test_chunks_change_no_bit(ops: EagerOps, cuts: Sequence[int]) -> None:
    whole, pools = _in_chunks(ops, (12,))
    rows, others = _in_chunks(ops, cuts)
    assert torch.equal(torch.cat(rows), torch.cat(whole))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(pools, others, strict=True))
