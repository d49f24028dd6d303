"""What several kernels share: sums that came in parts, the step's header, sizes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_parts(pointers, mask, stride, PARTS: tl.constexpr):
    """The sum of PARTS tensors that lie `stride` apart, in order, in float32."""
    total = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(pointers + part * stride, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def table_row(meta_ptr, group, seq):
    """Where the block table of sequence `seq` starts in the step's metadata; see `metadata.py`."""
    at = tl.load(meta_ptr + 2 * group)
    width = tl.load(meta_ptr + 2 * group + 1)
    return meta_ptr + at + seq.to(tl.int64) * width


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def warps_for(elements: int) -> int:
    """So that a thread has about 16 elements."""
    return min(max(elements // 512, 1), 16)
