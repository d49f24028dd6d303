"""PEFT folders: adapter_config.json and adapter_model.safetensors, read and written.

base_model.model.MODULE.lora_A.weight, .lora_B.weight     the factors
…MODULE.lora_B.bias, .lora_magnitude_vector               of lora_bias, and of DoRA
…MODULE.lora_embedding_A, .lora_embedding_B               factors of an embedding
…MODULE.weight, .bias, …MODULE.base_layer.weight, .bias   trained whole
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.adapters.adapter import Adapter, Delta
from pagoda.adapters.peft_config import PeftConfig, parse_config
from pagoda.adapters.tensors import digest_of, floats
from pagoda.errors import FormatError, OutputError, UnsupportedError
from pagoda.formats.mapped import MappedFile
from pagoda.formats.safetensors import parse_safetensors, read_json
from pagoda.formats.safetensors_writer import Place, SafetensorsFolder
from pagoda.types import FloatArray

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Ends of names, and the part of a delta that such a tensor is.
PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
}
WHOLE = (".weight", ".bias")


def read_peft(folder: Path) -> Adapter:
    """FormatError for what is damaged, UnsupportedError for what is not understood; both name it."""
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        remedy = "adapter_model.bin may run programs; save it as safetensors" if pickled else "it holds the weights"
        raise FormatError(f"{WEIGHTS} is missing: {remedy}", path=str(folder))
    config = parse_config(read_json(folder / CONFIG), str(folder / CONFIG))
    file = MappedFile(folder / WEIGHTS)
    try:
        tensors = {info.name: floats(file, info) for info in parse_safetensors(file.buffer, str(file.path))}
    finally:
        file.close()
    parts, whole = _sorted(tensors, str(folder))
    deltas = {module: _delta(module, found, config, str(folder)) for module, found in parts.items()}
    return Adapter(folder, digest_of((folder / CONFIG, folder / WEIGHTS)), False, deltas, whole)


def _sorted(
    tensors: Mapping[str, FloatArray], path: str
) -> tuple[dict[str, dict[str, FloatArray]], dict[str, FloatArray]]:
    """Parts of deltas by module, and tensors trained whole by name."""
    parts: dict[str, dict[str, FloatArray]] = {}
    whole: dict[str, FloatArray] = {}
    for name, values in tensors.items():
        bare = name.removeprefix(PREFIX)
        end = next((end for end in PARTS if bare.endswith(end)), None)
        if end is not None:
            parts.setdefault(bare.removesuffix(end), {})[PARTS[end]] = values
        elif bare.endswith(WHOLE) and "lora_" not in bare:
            whole[bare.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = values
        else:
            raise UnsupportedError(f"{path}: tensor {name!r} is not understood, and the adapter would answer wrongly")
    return parts, whole


def _delta(module: str, found: Mapping[str, FloatArray], config: PeftConfig, path: str) -> Delta:
    is_embedding = "embedding_a" in found
    a, b = (found.get(f"embedding_{part}" if is_embedding else part) for part in "ab")
    if a is None or b is None:
        raise FormatError(f"{module} has only one of its two factors", path=path)
    if config.use_dora != ("magnitude" in found):
        raise FormatError(f"{module}: use_dora is {config.use_dora}, but the weights say otherwise", path=path)
    rank = config.rank_of(module)
    if a.ndim != 2 or a.shape[0] != rank:
        raise FormatError(f"{module} has A {a.shape}, but {CONFIG} says rank {rank}", path=path)
    magnitude = found.get("magnitude")
    if magnitude is not None:
        magnitude = magnitude.reshape(-1)
    return Delta(a, b, config.scale_of(module), magnitude, found.get("bias"), is_embedding)


def write_peft(
    folder: Path, deltas: Mapping[str, Delta], whole: Mapping[str, FloatArray], *, base: str | None = None
) -> None:
    """Write a folder that peft loads, in float32. Names are Hugging Face's.

    Each module's rank and scale is written under its exact name: peft takes the first key that matches, and sorts keys.
    OutputError where the folder cannot be written.
    """
    tensors: dict[str, FloatArray] = {}
    for module, delta in deltas.items():
        tensors |= {f"{PREFIX}{module}{end}": values for end, values in _tensors(delta).items()}
    tensors |= {f"{PREFIX}{name}": values for name, values in whole.items()}
    places = {name: Place("F32", values.shape) for name, values in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with SafetensorsFolder(folder, places, max_shard_bytes=1 << 62) as out:
            for name in out.order:
                out.write(name, [np.ascontiguousarray(tensors[name], np.float32)])
        (folder / "model.safetensors").replace(folder / WEIGHTS)
        text = json.dumps(_config(deltas, whole, base), indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _tensors(delta: Delta) -> dict[str, FloatArray]:
    if delta.is_embedding:
        return {".lora_embedding_A": delta.a, ".lora_embedding_B": delta.b}
    parts = {".lora_A.weight": delta.a, ".lora_B.weight": delta.b}
    if delta.bias is not None:
        parts[".lora_B.bias"] = delta.bias
    if delta.magnitude is not None:
        parts[".lora_magnitude_vector"] = delta.magnitude
    return parts


def _config(deltas: Mapping[str, Delta], whole: Mapping[str, FloatArray], base: str | None) -> dict[str, Any]:
    ranks = {module: delta.rank for module, delta in deltas.items()}
    alphas = {module: delta.scale * delta.rank for module, delta in deltas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else 8
    alpha = Counter(alphas.values()).most_common(1)[0][0] if alphas else 8
    has_biases = any(name.endswith(".bias") for name in whole)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({n.rsplit(".", 1)[0] for n in whole if not n.endswith(".bias")}) or None,
        "bias": "all" if has_biases else "none",
        "use_dora": any(delta.magnitude is not None for delta in deltas.values()),
        "lora_bias": any(delta.bias is not None for delta in deltas.values()),
        "use_rslora": False,
        "inference_mode": True,
    }
