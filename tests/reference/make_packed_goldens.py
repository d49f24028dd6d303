"""Write goldens/packed.json: layers packed by the libraries that made the layouts, and what they mean.

    python -m venv .venv && .venv/bin/pip install torch==2.13.0 compressed-tensors==0.20.0 bitsandbytes==0.50.2 \
        gptqmodel==7.7.0 && pip download --no-deps --no-binary :all: autoawq==0.2.9 && tar xzf autoawq-0.2.9.tar.gz
    .venv/bin/python tests/reference/make_packed_goldens.py autoawq-0.2.9
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from bitsandbytes import functional
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from gptqmodel.nn_modules.qlinear.torch import TorchLinear

ROWS, COLUMNS, GROUP = 32, 64, 32
DTYPES = {torch.int32: "<i4", torch.int64: "<i8", torch.float16: "<f2", torch.float32: "<f4", torch.uint8: "u1"}


def ramp(rows: int, columns: int, top: int, step: int = 7) -> torch.Tensor:
    """Integers in [0, top) without a pattern."""
    i = torch.arange(rows * columns)
    return ((i * i * step + 3 * i + i // 5) % top).reshape(rows, columns)


def layer(bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes [R, C], zeros [R, G] above 0, scales [R, G]: powers of two, so that no order of operations matters."""
    groups = COLUMNS // GROUP
    zeros = ramp(ROWS, groups, (1 << bits) - 1, 11) + 1
    scales = 2.0 ** -(5 + ramp(ROWS, groups, 4, 5)).float()
    return ramp(ROWS, COLUMNS, 1 << bits), zeros, scales


def floats(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    return scales[:, groups] * (codes - zeros[:, groups])


def linear(weight: torch.Tensor) -> torch.nn.Linear:
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight.float()
    return module


def golden(parts: dict[str, torch.Tensor], meaning: torch.Tensor) -> dict[str, Any]:
    return {
        "parts": {
            name: [DTYPES[t.dtype], list(t.shape), t.contiguous().numpy().tobytes().hex()] for name, t in parts.items()
        },
        "weights": meaning.float().reshape(-1)[::7].tolist(),
    }


def gptq(bits: int) -> dict[str, Any]:
    codes, zeros, scales = layer(bits)
    groups = torch.arange(COLUMNS) * 5 // 2 % COLUMNS // GROUP
    module = TorchLinear(bits, GROUP, False, True, COLUMNS, ROWS)
    module.pack_original(linear(floats(codes, zeros, scales, groups)), scales, zeros, groups.int())
    module.post_init()
    parts = {name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    return golden(parts, module.dequantize_weight().T)


def awq(sources: str) -> dict[str, Any]:
    for name in ("awq", "awq.modules", "awq.modules.linear"):  # without running the package's __init__
        module = sys.modules[name] = ModuleType(name)
        module.__path__ = [f"{sources}/{name.replace('.', '/')}"]
    gemm = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    meaning = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    codes, zeros, scales = layer(4)
    weight = floats(codes, zeros, scales, torch.arange(COLUMNS) // GROUP)
    packed = gemm.from_linear(linear(weight), 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    parts = {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")}
    return golden(parts, meaning(**parts, bits=4, group_size=GROUP).T)


def compressed(bits: int, symmetric: bool) -> dict[str, Any]:
    codes, zeros, scales = layer(bits)
    middle = 1 << (bits - 1)
    zeros = torch.full_like(zeros, middle) if symmetric else zeros
    weight = floats(codes, zeros, scales, torch.arange(COLUMNS) // GROUP)
    arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=GROUP)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    state = {"weight": weight, "weight_scale": scales, "weight_zero_point": (zeros - middle).to(torch.int8)}
    parts = PackedQuantizationCompressor.compress(state, scheme)
    return golden(parts, PackedQuantizationCompressor.decompress(parts, scheme)["weight"])


def nf4(double: bool) -> dict[str, Any]:
    weight = (ramp(ROWS, COLUMNS, 1001).float() - 500) / 512 * (1 + ramp(ROWS, 1, 9))
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    parts = {"": packed} | {f".{name}": part for name, part in state.as_dict(packed=True).items()}
    return golden(parts, functional.dequantize_4bit(packed, state))


if __name__ == "__main__":
    layers = {f"gptq-{bits}": gptq(bits) for bits in (2, 3, 4, 8)} | {"awq": awq(sys.argv[1])}
    layers |= {
        f"compressed-{b}-{s}": compressed(b, s == "sym") for b, s in ((4, "sym"), (4, "asym"), (8, "sym"), (3, "asym"))
    }
    layers |= {"nf4": nf4(False), "nf4-double": nf4(True)}
    (Path(__file__).parent / "goldens" / "packed.json").write_text(json.dumps(layers, indent=None) + "\n")
