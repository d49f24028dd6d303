"""llama.cpp's GGUF adapters, read and written: `NAME.weight.lora_a` and `.lora_b`, one alpha for all.

A module's scale is alpha / rank, the same alpha everywhere. What the format cannot say is not written: llama.cpp would
load the file without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.adapters.adapter import Adapter, Delta
from pagoda.adapters.tensors import digest_of, floats
from pagoda.errors import FormatError, OutputError, UnsupportedError
from pagoda.formats.gguf import parse_gguf
from pagoda.formats.gguf_writer import GGUFWriter, TensorRow, f32, text
from pagoda.formats.mapped import MappedFile
from pagoda.types import FloatArray

ENDS = (".weight.lora_a", ".weight.lora_b")
UNDERSTOOD = ("adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix")


def read_gguf_adapter(path: Path) -> Adapter:
    """FormatError for what is damaged, UnsupportedError for what is not understood; both name it."""
    file = MappedFile(path)
    try:
        header = parse_gguf(file.buffer, str(path))
        metadata = header.metadata
        alpha = _alpha(metadata, str(path))
        tensors = {info.name: floats(file, info) for info in header.tensors}
    finally:
        file.close()
    found: dict[str, dict[str, FloatArray]] = {}
    for name, values in tensors.items():
        end = next((end for end in ENDS if name.endswith(end)), None)
        if end is None or name.startswith("token_embd."):
            raise UnsupportedError(f"{path}: tensor {name!r} is not understood, and the adapter would answer wrongly")
        found.setdefault(name.removesuffix(end), {})[end] = values
    deltas = {module: _delta(module, pair, alpha, str(path)) for module, pair in found.items()}
    architecture = metadata.get("general.architecture")
    return Adapter(path, digest_of((path,)), True, deltas, {}, architecture if isinstance(architecture, str) else None)


def _alpha(metadata: Mapping[str, Any], path: str) -> float:
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        raise FormatError("is no LoRA adapter: general.type and adapter.type do not say so", path=path)
    unknown = [key for key in metadata if key.startswith("adapter.") and key not in UNDERSTOOD]
    if unknown:
        raise UnsupportedError(f"{path}: {unknown[0]} is not understood, and the adapter would answer wrongly")
    alpha = metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, float):
        raise FormatError(f"adapter.lora.alpha must be a number, not {alpha!r}", path=path)
    return alpha


def _delta(module: str, pair: Mapping[str, FloatArray], alpha: float, path: str) -> Delta:
    if len(pair) != 2:
        raise FormatError(f"{module} has only one of its two factors", path=path)
    a, b = (pair[end] for end in ENDS)
    return Delta(a, b, alpha / a.shape[0] if alpha else 1.0)  # llama.cpp takes an alpha of 0 for a scale of 1


def write_gguf_adapter(path: Path, architecture: str, deltas: Mapping[str, Delta]) -> None:
    """Write float32 factors; names and order of rows are GGUF's. Scales become part of B, under an alpha of 1.

    OutputError where the file cannot be written.
    """
    values = {
        "general.architecture": text(architecture),
        "general.type": text("adapter"),
        "adapter.type": text("lora"),
        "adapter.lora.alpha": f32(1.0),
    }
    tensors: dict[str, FloatArray] = {}
    for module, delta in deltas.items():
        tensors[module + ENDS[0]] = np.ascontiguousarray(delta.a, np.float32)
        tensors[module + ENDS[1]] = np.ascontiguousarray(delta.b * np.float32(delta.scale * delta.rank), np.float32)
    rows = [TensorRow(name, "F32", array.shape) for name, array in tensors.items()]
    try:
        path.unlink(missing_ok=True)  # a writer goes on with a file of the same header
        with GGUFWriter(path, values, rows) as writer:
            for row in rows:
                writer.write(row.name, tensors[row.name].view(np.uint8).reshape(-1))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
