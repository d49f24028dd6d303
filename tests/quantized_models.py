"""Tiny models as quantized Hugging Face folders, in every layout that Pagoda reads.

    folder = write_quantized(tmp_path, TINY["llama"], "gptq-act-order")   # a row of KINDS
    floats = write_decoded(tmp_path, TINY["llama"], "gptq-act-order")     # the same weights as float32

Weights are rounded to nearest; embedding, head and norms stay float.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from float_kinds import FP8, compressed_config, fp8, fp8_config, nvfp4
from pagoda.formats.nf4 import DoubleQuantized, pack_nf4
from pagoda.formats.packed import (
    NF4_VALUES,
    GroupedWeight,
    even_groups,
    pack_awq,
    pack_compressed,
    pack_gptq,
    pack_int8,
)
from pagoda.types import FloatArray
from tiny_models import TinyModel, hf_config, weights
from tiny_tokenizer import tokenizer_json

Arrays = dict[str, np.ndarray]
DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8"}
ST_NAMES = {np.dtype(numpy): name for numpy, name in DTYPES.items()} | {FP8: "F8_E4M3"}


@dataclass(frozen=True)
class Kind:
    """`pack` makes a weight's parts by what follows the layer's name, `decode` what they stand for."""

    config: Mapping[str, Any]
    quantize: Callable[[str, FloatArray], Any]
    pack: Callable[[Any], Arrays]


def rounded(
    values: FloatArray, bits: int, size: int, *, symmetric: bool = False, order: np.ndarray | None = None
) -> GroupedWeight:
    """Rounded to nearest in groups of `size` columns, taken in `order`; zeros are at least 1."""
    columns = values.shape[1]
    groups = even_groups(columns, size)
    if order is not None:
        groups = groups[np.argsort(order)]
    num_groups, top = int(groups.max()) + 1, (1 << bits) - 1
    low = np.stack([values[:, groups == g].min(1) for g in range(num_groups)], 1).clip(max=0)
    high = np.stack([values[:, groups == g].max(1) for g in range(num_groups)], 1).clip(min=0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    scales = ((high - low) / top).astype(np.float16).astype(np.float32)
    zeros = np.full(scales.shape, 1 << (bits - 1)) if symmetric else np.rint(-low / scales).clip(1, top)
    zeros = zeros.astype(np.int32)
    codes = (np.rint(values / scales[:, groups]) + zeros[:, groups]).clip(0, top).astype(np.uint8)
    return GroupedWeight(bits, codes, scales, zeros, groups)


def act_order(name: str, columns: int) -> np.ndarray:
    """An order of columns that is equal for layers which read the same input, as activations make it."""
    shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    layer = name.rsplit(".", 1)
    key = f"{layer[0]}.{shared.get(layer[1], layer[1])}"
    return np.random.default_rng(sum(map(ord, key))).permutation(columns)


def nf4(values: FloatArray, *, double: bool) -> tuple[np.ndarray, Any]:
    """Codes and scales; those in eight bits are on a plain grid."""
    blocks = np.abs(np.pad(values.reshape(-1), (0, -values.size % 64))).reshape(-1, 64)
    absmax: Any = blocks.max(1)
    if double:
        steps = np.linspace(-1, 1, 256, dtype=np.float32)
        offset = float(np.float32(absmax.mean()))
        spread = np.abs(absmax - offset).max()
        eight = np.rint((absmax - offset) / spread * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
        absmax = DoubleQuantized(eight, steps, np.full(-(-eight.size // 256), spread, np.float32), offset)
    scales = absmax.dequantize() if double else absmax
    normal = values.reshape(-1) / np.repeat(scales, 64)[: values.size]
    return np.searchsorted((NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2, normal).astype(np.uint8).reshape(
        values.shape
    ), absmax


def _gptq(bits: int, size: int, *, version: int = 1, symmetric: bool = False, ordered: bool = False) -> Kind:
    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": ordered, "sym": symmetric}
    config["checkpoint_format"] = "gptq_v2" if version == 2 else "gptq"

    def quantize(name: str, values: FloatArray) -> GroupedWeight:
        order = act_order(name, values.shape[1]) if ordered else None
        return rounded(values, bits, size, symmetric=symmetric, order=order)

    return Kind(config, quantize, lambda w: _dotted(pack_gptq(w, version=version)))


def _compressed(bits: int, size: int, *, symmetric: bool = True) -> Kind:
    packed = bits < 8
    strategy = {"strategy": "group", "group_size": size} if size > 0 else {"strategy": "channel", "group_size": None}
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy},
        "input_activations": None if packed else {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"},
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if packed else "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    return Kind(
        config,
        lambda name, values: rounded(values, bits, size, symmetric=symmetric),
        lambda w: _dotted(pack_compressed(w, symmetric=symmetric) if packed else pack_int8(w)),
    )


def _nf4(*, double: bool) -> Kind:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return Kind(
        config | {"bnb_4bit_use_double_quant": double},
        lambda name, values: nf4(values, double=double),
        lambda made: {f".weight{part}": array for part, array in pack_nf4(*made).items()},
    )


def _llm_int8() -> Kind:
    def quantize(name: str, values: FloatArray) -> Arrays:
        largest = np.abs(values).max(1)
        codes = np.rint(values / largest[:, None] * 127).astype(np.int8)
        return {".weight": codes, ".SCB": largest, ".weight_format": np.zeros(1, np.uint8)}

    return Kind({"quant_method": "bitsandbytes", "load_in_8bit": True}, quantize, lambda parts: parts)


def _floats(config: Mapping[str, Any], make: Callable[..., Arrays], *arguments: str) -> Kind:
    return Kind(config, lambda name, values: make(values, *arguments), lambda parts: parts)


def _dotted(parts: Arrays) -> Arrays:
    return {f".{part}": array for part, array in parts.items()}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
KINDS: dict[str, Kind] = {
    "gptq-2": _gptq(2, 32, version=2),
    "gptq-3": _gptq(3, 32),
    "gptq-4": _gptq(4, 32),
    "gptq-4-sym": _gptq(4, 64, symmetric=True),
    "gptq-4-rows": _gptq(4, -1, version=2),
    "gptq-8": _gptq(8, 32),
    "gptq-8-sym": _gptq(8, -1, symmetric=True),
    "gptq-act-order": _gptq(4, 32, ordered=True),
    "awq": Kind(AWQ, lambda name, values: rounded(values, 4, 32), lambda w: _dotted(pack_awq(w))),
    "w4a16": _compressed(4, 32),
    "w4a16-asym": _compressed(4, 32, symmetric=False),
    "w8a8": _compressed(8, -1),
    "w8a8-groups": _compressed(8, 32, symmetric=False),
    "nf4": _nf4(double=False),
    "nf4-double": _nf4(double=True),
    "llm-int8": _llm_int8(),
    "fp8-blocks": _floats(fp8_config(32), fp8, ".weight_scale_inv", "block"),
    "fp8-tensor": _floats(fp8_config(None), fp8, ".weight_scale", "tensor"),
    "fp8-modelopt": _floats({"quant_method": "modelopt", "quant_algo": "FP8"}, fp8, ".weight_scale", "tensor"),
    "fp8-rows": _floats(
        compressed_config("float-quantized", num_bits=8, strategy="channel"), fp8, ".weight_scale", "row"
    ),
    "nvfp4": _floats(
        compressed_config("nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16),
        partial(nvfp4, divided=True), ".weight_packed", ".weight_global_scale",
    ),
    "nvfp4-modelopt": _floats(
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}, partial(nvfp4, divided=False), ".weight", ".weight_scale_2"
    ),
}  # fmt: skip


def is_quantized(name: str, values: FloatArray) -> bool:
    return values.ndim == 2 and "embed" not in name and "lm_head" not in name


def quantized_arrays(spec: TinyModel, kind: Kind) -> Arrays:
    """All tensors of the folder."""
    arrays: Arrays = {}
    for name, values in weights(spec).items():
        if is_quantized(name, values):
            layer = name.removesuffix(".weight")
            parts = kind.pack(kind.quantize(layer, values))
            arrays |= {layer + part: array for part, array in parts.items()}
        else:
            arrays[name] = values
    return arrays


def write_quantized(folder: Path, spec: TinyModel, kind: str, **config: Any) -> Path:
    """`config` overrides entries of the quantization_config."""
    made = KINDS[kind]
    quantization = {**made.config, **config}
    return write_folder(folder, {**hf_config(spec), "quantization_config": quantization}, quantized_arrays(spec, made))


def write_folder(folder: Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """A model folder of these settings and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    header, offset = {}, 0
    for name, array in arrays.items():
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": ST_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": span}
        offset += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder
