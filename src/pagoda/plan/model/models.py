"""Where shapes come from: a GGUF file, a config.json, or a built-in name.

A GGUF file's tensor table is exact for any architecture; what its attention keeps of a token comes from the metadata,
whose keys are the same for all. A config.json, and a built-in name, go through `config_shapes.py`.
"""

from __future__ import annotations

import difflib
import functools
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from pagoda.errors import FormatError, SourceError
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.models.planned import PLANNED
from pagoda.models.registry import FAMILIES, find_family
from pagoda.models.source import Settings
from pagoda.plan.model.config_shapes import shape_from_config
from pagoda.plan.model.shapes import EMBEDDING, AttentionShape, ModelShape, TensorShape
from pagoda.sources import ALIASES, Progress, cached_path, resolve
from pagoda.sources.hub import fetch_config
from pagoda.sources.names import HubSource, parse_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_LAYERS, MAX_LENGTH = 1 << 12, 1 << 30

FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL"},
    **{26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 38: "MXFP4_MOE"},
}


def find_shape(name: str, *, progress: Progress | None = None) -> ModelShape:
    """The shape of model `name`: a file or folder that is here, a built-in name, an alias, or a hub repository, of
    which only config.json is fetched. SourceError if it is none of them; FormatError if it is damaged."""
    path = Path(name).expanduser()
    if path.exists():
        return shape_of_file(path)
    if name in ALIASES and (cached := cached_path(name)):  # the very file, before the shape of its name
        return shape_of_file(cached).named(name)
    if name.lower() in builtin_names():
        return builtin_shape(name.lower())
    if name in ALIASES:
        return shape_of_file(resolve(name, progress=progress).path).named(name)
    source = parse_name(name)
    if isinstance(source, HubSource) and source.file is None:
        return replace(shape_of_file(fetch_config(source)), name=source.repo, hub=source.repo)
    if name.startswith(("hf:", "pypi:")):
        return shape_of_file(resolve(name, progress=progress).path)
    raise _unknown(name)


def _unknown(name: str) -> SourceError:
    near = difflib.get_close_matches(name.lower(), [*builtin_names(), *ALIASES], 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"built-in are {', '.join(builtin_names())}"
    return SourceError(f"there is no model {name!r} to plan for: {hint}; or name a .gguf file, a folder, hf:owner/repo")


# Built-in names


@functools.cache
def _builtin() -> Mapping[str, Mapping[str, Any]]:
    text = resources.files("pagoda.plan.model").joinpath("models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def builtin_names() -> tuple[str, ...]:
    return tuple(_builtin())


@functools.cache
def builtin_shape(name: str) -> ModelShape:
    """The shape of a row of models.toml."""
    row = _builtin()[name]
    while "like" in row:
        row = {**_builtin()[row["like"]], **{key: value for key, value in row.items() if key != "like"}}
    return replace(shape_from_config(row, name), hub=row["hub"])


# Files


def shape_of_file(path: Path) -> ModelShape:
    """The shape of a .gguf file, a folder with one, a folder with config.json, or a config.json."""
    config = path / "config.json" if path.is_dir() else path
    if config.name == "config.json" and config.is_file():
        return _of_config(config)
    with open_checkpoint(path, any_type=True) as checkpoint:
        return _of_gguf(checkpoint)


def _of_config(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"is not valid JSON: {error}", path=str(path)) from None
    if not isinstance(config, dict):
        raise FormatError("is not a JSON object", path=str(path))
    shape = shape_from_config(config, path.parent.resolve().name)
    weights = list(path.parent.glob("*.safetensors"))
    stored = config.get("torch_dtype") or config.get("dtype")
    quantized = config.get("quantization_config")
    if isinstance(quantized, Mapping):
        stored = quantized.get("quant_method")
    size = sum(file.stat().st_size for file in weights) if weights else None
    here = path.parent if weights and not isinstance(quantized, Mapping) else None
    return replace(shape, stored_as=STORED.get(str(stored)), file_bytes=size, path=here)


STORED = {
    **{"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "fp8": "fp8", "gptq": "gptq", "awq": "awq"},
    **{"bitsandbytes": "nf4"},
}


def _of_gguf(checkpoint: Checkpoint) -> ModelShape:
    reader = _GGUFReader(checkpoint)
    tensors = tuple(TensorShape(t.name, t.shape, t.type) for t in checkpoint.tensors.values())
    if all(tensor.name != EMBEDDING for tensor in tensors):
        raise FormatError(f"{EMBEDDING!r} is missing; this is not a language model", path=str(checkpoint.path))
    vocab, hidden = next(tensor.shape for tensor in tensors if tensor.name == EMBEDDING)
    return ModelShape(
        name=checkpoint.path.stem,
        architecture=checkpoint.architecture,
        hidden_size=hidden,
        vocab_size=vocab,
        max_context=reader.integer("context_length", 2048, high=MAX_LENGTH),
        attention=reader.attention(hidden),
        tensors=tensors,
        num_experts=reader.integer("expert_count", 0, low=0, high=1 << 14),
        experts_used=reader.integer("expert_used_count", 0, low=0, high=1 << 14),
        stored_as=FILE_TYPES.get(checkpoint.metadata.get("general.file_type", -1)) or _commonest(tensors),
        file_bytes=checkpoint.file_bytes,
        path=checkpoint.path,
        assumptions=tuple(reader.assumptions),
    )


def _commonest(tensors: tuple[TensorShape, ...]) -> str | None:
    """The block type that most weights are stored in."""
    totals: Counter[str | None] = Counter()
    for tensor in tensors:
        totals[tensor.type] += tensor.elements
    return totals.most_common(1)[0][0]


class _GGUFReader:
    """Attention, from metadata keys that are the same for all architectures."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._architecture = checkpoint.architecture
        self._family = find_family(checkpoint, (*FAMILIES, *PLANNED))
        self._settings = Settings(checkpoint.metadata)
        self.assumptions: list[str] = []
        if self._has("ssm.state_size"):
            self.assumptions.append("its recurrent state is not counted, and every layer is taken to keep K and V")

    def _key(self, key: str) -> str:
        return f"{self._architecture}.{key}"

    def _has(self, key: str) -> bool:
        return self._settings.get(self._key(key)) is not None

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = 1 << 24) -> int:
        return self._settings.integer(self._key(key), default, low=low, high=high)

    def _each(self, key: str, num_layers: int, default: int | None = None) -> list[int]:
        """One number for each layer; files may state a single number for all."""
        if self._settings.is_sequence(self._key(key)):
            return [int(value) for value in self._settings.sequence(self._key(key), num_layers)]
        return [self.integer(key, default, low=0)] * num_layers

    def attention(self, hidden: int) -> tuple[AttentionShape, ...]:
        num_layers = self.integer("block_count", high=MAX_LAYERS)
        heads = self._each("attention.head_count", num_layers)
        kv_heads = self._each("attention.head_count_kv", num_layers, max(heads))
        key_dim = self.integer("attention.key_length", max(1, hidden // max(1, max(heads))))
        value_dim = self.integer("attention.value_length", key_dim)
        latent = None
        if self._has("attention.kv_lora_rank"):
            latent = self.integer("attention.kv_lora_rank") + self.integer("rope.dimension_count")
            key_dim = self.integer("attention.key_length_mla", key_dim)
            value_dim = self.integer("attention.value_length_mla", value_dim)
        kinds: Counter[tuple[int, int, int | None]] = Counter()
        for layer, window in enumerate(self._windows(num_layers)):
            if heads[layer] and kv_heads[layer]:  # 0: a layer without attention
                kinds[heads[layer], kv_heads[layer], window] += 1
        if not kinds:
            raise FormatError(f"{self._key('attention.head_count')} says that no layer has attention")
        return tuple(AttentionShape(n, h, kv, key_dim, value_dim, w, latent) for (h, kv, w), n in kinds.items())

    def _windows(self, num_layers: int) -> list[int | None]:
        window = self.integer("attention.sliding_window", 0, low=0, high=MAX_LENGTH)
        context = self.integer("context_length", 2048, high=MAX_LENGTH)
        if not 0 < window < context or (self._family and not self._family.windows):
            return [None] * num_layers
        key = self._key("attention.sliding_window_pattern")
        if self._settings.is_sequence(key):
            return [window if slides else None for slides in self._settings.sequence(key, num_layers)]
        usual = self._family.window_pattern if self._family else 0
        pattern = self.integer("attention.sliding_window_pattern", usual, low=0)
        return [window if not pattern or (layer + 1) % pattern else None for layer in range(num_layers)]
