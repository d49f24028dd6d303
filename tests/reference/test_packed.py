"""Layers that GPTQModel, AutoAWQ, compressed-tensors and bitsandbytes packed mean here what they mean there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagoda.formats.nf4 import unpack_nf4
from pagoda.formats.packed import (
    GroupedWeight,
    pack_awq,
    pack_compressed,
    pack_gptq,
    unpack_awq,
    unpack_compressed,
    unpack_gptq,
)

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "packed.json").read_text())


def parts_of(name: str) -> dict[str, np.ndarray]:
    parts = GOLDENS[name]["parts"].items()
    return {part: np.frombuffer(bytes.fromhex(raw), dtype).reshape(shape) for part, (dtype, shape, raw) in parts}


def check(name: str, weight: GroupedWeight, packed: dict[str, Any] | None = None) -> None:
    """The weights are the library's, and packing them again gives the library's bits."""
    exact = "nf4" not in name  # the library may decode these in another order of operations
    np.testing.assert_allclose(
        weight.dequantize().reshape(-1)[::7], GOLDENS[name]["weights"], rtol=0 if exact else 1e-6
    )
    for part, array in (packed or {}).items():
        np.testing.assert_array_equal(array, parts_of(name)[part], part)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int) -> None:
    name = f"gptq-{bits}"
    weight = unpack_gptq(parts_of(name), bits, group_size=32, version=2)  # in memory the library keeps version 2
    check(name, weight, pack_gptq(weight, version=2))


def test_awq() -> None:
    weight = unpack_awq(parts_of("awq"), group_size=32)
    check("awq", weight, pack_awq(weight))


@pytest.mark.parametrize(("bits", "kind"), [(4, "sym"), (4, "asym"), (8, "sym"), (3, "asym")])
def test_compressed_tensors(bits: int, kind: str) -> None:
    name = f"compressed-{bits}-{kind}"
    weight = unpack_compressed(parts_of(name), bits, group_size=32)
    check(name, weight, pack_compressed(weight, symmetric=kind == "sym"))


@pytest.mark.parametrize("name", ["nf4", "nf4-double"])
def test_bitsandbytes(name: str) -> None:
    check(name, unpack_nf4(parts_of(name)))
