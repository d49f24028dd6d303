"""Small jobs of `pagoda.quantize`, and models as their folders say, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.nf4 import unpack_nf4
from pagoda.formats.packed import GroupedWeight, unpack_awq, unpack_gptq, unpack_int8
from pagoda.models.registry import load_model
from pagoda.quantize.forward import PlainWeights, WindowOps
from pagoda.quantize.methods import Job, find_method
from pagoda.quantize.settings import QuantizeSettings
from pagoda.types import FloatArray, RawTensor
from tiny_models import MemoryCheckpoint, raw

TEXT = "the quick brown fox jumps over the lazy dog, and then it does so again: 12 times! " * 60
WINDOWS = np.random.default_rng(0).integers(0, 250, (3, 48)).astype(np.int32)
DTYPES = {"I32": np.int32, "U8": np.uint8, "I8": np.int8, "F32": np.float32, "F16": np.float16, "I64": np.int64}


def settings(folder: Path, to: str, **changes: Any) -> QuantizeSettings:
    """Of a job that takes a second."""
    text = folder / "calibration.txt"
    text.write_text(TEXT)
    small = {"calibration": str(text), "calibration_samples": 6, "calibration_tokens": 64, "group_size": 32}
    return QuantizeSettings(to=to, **(small | changes))


def run(source: Path, folder: Path, to: str, **changes: Any) -> tuple[Path, list[str]]:
    """The method's folder, its work beside it, and what it said."""
    work, said = folder / "work", []
    work.mkdir(exist_ok=True)
    job = Job(source, work, to, settings(folder, to, **changes), lambda what, done, total: None, said.append)
    return find_method(to).run(job), said


def logits(checkpoint: Any, windows: npt.NDArray[np.int32] = WINDOWS) -> FloatArray:
    """Of every token of the windows. → [N, V]"""
    found: list[FloatArray] = []
    ops = WindowOps(windows, PlainWeights(), on_logits=lambda i, chunk: found.append(chunk))
    load_model(checkpoint).forward(ops)
    return np.concatenate(found)


def dequantized(folder: Path) -> MemoryCheckpoint:
    """The folder's model with every linear unpacked by `pagoda.formats`."""
    opened = open_checkpoint(folder)
    arrays = {name: array(tensor) for name, tensor in opened.tensors.items()}
    tensors: dict[str, RawTensor] = {}
    for name, values in arrays.items():
        stem = name.rpartition(".")[0]
        parts = {key.removeprefix(f"{stem}."): v for key, v in arrays.items() if key.startswith(f"{stem}.")}
        if name.endswith(".qweight"):
            tensors[f"{stem}.weight"] = raw(f"{stem}.weight", unpacked(parts, opened.metadata).dequantize())
        elif name.endswith(".weight") and "weight_scale" in parts:
            tensors[name] = raw(name, unpack_int8(parts).dequantize())
        elif name.endswith(".weight") and "weight.quant_map" in parts:
            nf4 = {key.removeprefix("weight"): v for key, v in parts.items()}
            tensors[name] = raw(name, unpack_nf4(nf4).dequantize())
        elif opened.tensors[name].type in ("F16", "BF16") and not name.endswith("scales"):
            tensors[name] = raw(name, np.ascontiguousarray(values, np.float32))
    metadata = {key: value for key, value in opened.metadata.items() if key != "quantization_config"}
    return MemoryCheckpoint("safetensors", opened.architecture, metadata, tensors)


def unpacked(parts: dict[str, npt.NDArray[Any]], config: Any) -> GroupedWeight:
    quantization = config["quantization_config"]
    if quantization["quant_method"] == "awq":
        return unpack_awq(parts, group_size=quantization["group_size"])
    return unpack_gptq(parts, quantization["bits"], group_size=quantization["group_size"])


def array(tensor: RawTensor) -> npt.NDArray[Any]:
    if tensor.type == "BF16":
        bits = np.ascontiguousarray(tensor.data).view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    return np.ascontiguousarray(tensor.data).view(DTYPES[tensor.type]).reshape(tensor.shape)
