"""How KV values lie in 8 bits: int8, or fp8 e4m3 by bits alone, so that every GPU and the interpreter do the same.

Both have a scale a token and head, which turns the largest value into 127 or 448. An e4m3 byte without its sign,
shifted by 7, is the float16 of 2^-8 times its value; scales are stored times 256 for it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_int8(x):
    """x within ±127, to the nearest."""
    return tl.floor(x + 0.5).to(tl.int8)


@triton.jit
def to_e4m3(x):
    """x within ±448, to the nearest, ties to even. → uint8"""
    bits = (x * 0.00390625).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    size = bits & 0x7FFF
    size = (size + 0x3F + ((size >> 7) & 1)) >> 7
    return (((bits >> 8) & 0x80) | size).to(tl.uint8)


@triton.jit
def from_e4m3(byte):
    """→ float16, 2^-8 times the value"""
    bits = byte.to(tl.int32)
    return (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
