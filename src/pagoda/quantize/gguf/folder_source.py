"""A Hugging Face folder as a GGUF file would hold it: its names, its order of rows, its metadata.

GGUF has the rows of Llama's q and k reordered so that a rotary pair lies side by side, and Gemma's norms with the 1
that is added to them. What config.json says that GGUF has no key for is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import Checkpoint
from pagoda.formats.gguf_writer import Value, f32, text, u32
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.models import gemma3
from pagoda.models.layers import Decoder
from pagoda.models.names import REDUNDANT_SUFFIXES, TENSORS
from pagoda.models.registry import load_model
from pagoda.models.rope import frequencies
from pagoda.quantize.gguf.repack import block_type, blocks_of
from pagoda.quantize.gguf.source_model import SourceTensor, decode_rows
from pagoda.quantize.gguf.tokenizer_values import tokenizer_values
from pagoda.types import FloatArray, RawTensor

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Kind:
    """What GGUF calls a family, and how its files differ."""

    architecture: str
    names: Mapping[str, tuple[str, str]]
    interleaved: bool = False  # rows of q and k
    norm_offset: float = 0.0


# By the model_type of config.json, without `_text`.
KINDS = {
    "llama": Kind("llama", TENSORS, interleaved=True),
    "mistral": Kind("llama", TENSORS, interleaved=True),
    "qwen2": Kind("qwen2", TENSORS),
    "qwen3": Kind("qwen3", TENSORS),
    "gemma3": Kind("gemma3", gemma3.NAMES, norm_offset=1.0),
}


class FolderSource:
    """`SourceModel` of a Hugging Face folder. UnsupportedError for a family or settings that GGUF cannot say."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        kind = KINDS.get(checkpoint.architecture)
        decoder = load_model(checkpoint)  # checks every shape, and that nothing is left over
        if kind is None or not isinstance(decoder, Decoder):
            raise UnsupportedError(f"a {checkpoint.architecture!r} folder cannot be written as a GGUF file yet")
        self.checkpoint = checkpoint
        self._threads = threads
        self._decoded: RawTensor | None = None
        self._kind = kind
        spec = decoder.blocks[0].attention.spec
        self._heads = {".attn_q.": spec.num_heads, ".attn_k.": spec.num_kv_heads}
        self.names = _gguf_names(checkpoint, kind, tied=decoder.output.name == decoder.embedding.name)
        factors = _rope_factors(checkpoint.metadata, decoder)
        self._made = {} if factors is None else {ROPE_FACTORS: factors}
        self.sources = {name: SourceTensor(raw.shape, _type_of(raw)) for name, raw in self._raws()}
        self.sources |= {name: SourceTensor(values.shape, "F32") for name, values in self._made.items()}
        self.values = {
            **model_values(checkpoint, decoder, kind),
            **tokenizer_values(checkpoint.path, checkpoint.metadata, decoder.vocab_size),
        }

    def _raws(self) -> list[tuple[str, RawTensor]]:
        return [(name, self.checkpoint.tensors[theirs]) for name, theirs in self.names.items()]

    def raw(self, name: str) -> npt.NDArray[np.uint8] | None:
        if name in self._made:
            return None
        raw, order = self.checkpoint.tensors[self.names[name]], self._order(name)
        if isinstance(raw, QuantizedTensor):
            blocks = blocks_of(raw.unpack())
            return blocks if blocks is None or order is None else blocks[order]
        return raw.data if len(raw.shape) > 1 and order is None else None

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        if name in self._made:
            return self._made[name].reshape(1, -1)[start:stop]
        raw = self._plain(self.checkpoint.tensors[self.names[name]])
        order = self._order(name)
        if order is None:
            x = decode_rows(raw, start, stop, self._threads)
        elif len(raw.shape) == 1:
            x = decode_rows(raw, 0, 1, 1)[:, order]
        else:
            x = decode_rows(raw, 0, raw.shape[0], self._threads)[order[start:stop]]
        if self._kind.norm_offset and name.endswith("norm.weight"):
            x = x + np.float32(self._kind.norm_offset)
        return np.ascontiguousarray(x)

    def _plain(self, raw: RawTensor) -> RawTensor:
        """`raw`, or float32 instead of a layer that the folder has quantized; the last one is kept."""
        if not isinstance(raw, QuantizedTensor):
            return raw
        if self._decoded is None or self._decoded.name != raw.name:
            values = np.ascontiguousarray(as_floats(raw), dtype=np.float32)
            self._decoded = RawTensor(raw.name, "F32", raw.shape, values.view(np.uint8).reshape(-1))
        return self._decoded

    def release(self, name: str) -> None:
        if name in self.names:
            self.checkpoint.release(self.names[name])

    def _order(self, name: str) -> npt.NDArray[np.int64] | None:
        """Which of the folder's rows each row of the new file is; None where they are the same."""
        if not self._kind.interleaved:
            return None
        heads = next((heads for part, heads in self._heads.items() if part in name), None)
        if heads is None:
            return None
        rows = self.checkpoint.tensors[self.names[name]].shape[0]
        return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _type_of(raw: RawTensor) -> str:
    """Vectors are float32 in GGUF files; what a folder holds in a way of its own gets the nearest block type."""
    if isinstance(raw, QuantizedTensor):
        return block_type(raw.unpack())[0]
    return "F32" if len(raw.shape) == 1 else raw.type


def _gguf_names(checkpoint: Checkpoint, kind: Kind, *, tied: bool) -> dict[str, str]:
    """GGUF name → the folder's, embedding first and then layer by layer."""
    patterns = [
        (re.compile(re.escape(theirs).replace(r"\{i\}", r"(\d+)") + r"\.(weight|bias)"), ours)
        for ours, theirs in kind.names.values()
        if theirs
    ]
    found: dict[str, str] = {}
    for name in checkpoint.tensors:
        if name.endswith(REDUNDANT_SUFFIXES) or (tied and name.startswith("lm_head.")):
            continue
        for pattern, ours in patterns:
            if match := pattern.fullmatch(name):
                layer = match[1] if match.re.groups == 2 else ""
                found[f"{ours.format(i=layer)}.{match[match.re.groups]}"] = name
    return dict(sorted(found.items(), key=_place))


def _place(item: tuple[str, str]) -> tuple[int, str]:
    layer = re.match(r"blk\.(\d+)\.", item[0])
    return int(layer[1]) if layer else -1, item[0]


def model_values(checkpoint: Checkpoint, decoder: Decoder, kind: Kind) -> dict[str, Value]:
    """What GGUF says of a model besides its tokenizer."""
    arch, config = kind.architecture, checkpoint.metadata
    block = decoder.blocks[0]
    spec = block.attention.spec
    values = {
        "general.architecture": text(arch),
        "general.type": text("model"),
        "general.name": text(checkpoint.path.absolute().name),
        f"{arch}.block_count": u32(decoder.num_layers),
        f"{arch}.context_length": u32(decoder.max_context),
        f"{arch}.embedding_length": u32(decoder.embedding.shape[1]),
        f"{arch}.feed_forward_length": u32(block.ffn.gate.weight.shape[0]),
        f"{arch}.attention.head_count": u32(spec.num_heads),
        f"{arch}.attention.head_count_kv": u32(spec.num_kv_heads),
        f"{arch}.attention.key_length": u32(spec.head_dim),
        f"{arch}.attention.value_length": u32(spec.head_dim),
        f"{arch}.attention.layer_norm_rms_epsilon": f32(block.attn_norm.eps),
        f"{arch}.vocab_size": u32(decoder.vocab_size),
        f"{arch}.rope.dimension_count": u32(2 * len(block.attention.rope.inv_freq)),
        f"{arch}.rope.freq_base": f32(_theta(config, arch)),
    }
    return {**values, **_windows(decoder, arch, config), **_softcaps(decoder, arch), **_scaling(config, arch)}


def _rope_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`rope_parameters` (transformers 5), else `rope_scaling`; those of full attention where kinds differ."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = found.get("full_attention", found)
    return nested if isinstance(nested, Mapping) else {}


def _theta(config: Mapping[str, Any], arch: str) -> float:
    default = gemma3.GLOBAL_THETA if arch == "gemma3" else 10_000.0
    return float(_rope_settings(config).get("rope_theta") or config.get("rope_theta") or default)


def _scaling(config: Mapping[str, Any], arch: str) -> dict[str, Value]:
    """Linear and YaRN by keys; Llama 3's is in a tensor."""
    settings = _rope_settings(config)
    method = settings.get("rope_type", settings.get("type", "default"))
    if method in ("default", "llama3"):
        return {}
    values = {f"{arch}.rope.scaling.type": text(method), f"{arch}.rope.scaling.factor": f32(float(settings["factor"]))}
    if method == "yarn":
        original = settings.get("original_max_position_embeddings", config.get("max_position_embeddings"))
        values[f"{arch}.rope.scaling.original_context_length"] = u32(int(original or 0))
        for key in ("beta_fast", "beta_slow"):
            if settings.get(key) is not None:
                values[f"{arch}.rope.scaling.yarn_{key}"] = f32(float(settings[key]))
    return values


def _rope_factors(config: Mapping[str, Any], decoder: Decoder) -> FloatArray | None:
    """By what Llama 3 divides each pair's frequency."""
    settings = _rope_settings(config)
    if settings.get("rope_type", settings.get("type")) != "llama3":
        return None
    inv_freq = decoder.blocks[0].attention.rope.inv_freq.astype(np.float64)
    factors = frequencies(2 * len(inv_freq), _theta(config, "llama")) / inv_freq
    return factors.astype(np.float32)


def _windows(decoder: Decoder, arch: str, config: Mapping[str, Any]) -> dict[str, Value]:
    windows = [block.attention.spec.window for block in decoder.blocks]
    sizes = {window for window in windows if window is not None}
    if not sizes:
        return {}
    (size,) = sizes
    if arch == "gemma3":
        _check_pattern(windows, config)
        return {f"{arch}.attention.sliding_window": u32(size)}
    if arch == "llama" and all(windows):
        return {f"{arch}.attention.sliding_window": u32(size)}
    raise UnsupportedError(f"GGUF has no key for the sliding windows of this {config.get('model_type')} model")


def _check_pattern(windows: list[int | None], config: Mapping[str, Any]) -> None:
    if any((window is None) != ((layer + 1) % 6 == 0) for layer, window in enumerate(windows)):
        raise UnsupportedError("GGUF files of Gemma 3 have five sliding layers before each global one; this has not")


def _softcaps(decoder: Decoder, arch: str) -> dict[str, Value]:
    cap = decoder.logit_softcap
    if decoder.blocks[0].attention.spec.softcap:
        raise UnsupportedError("GGUF files of this family have no soft cap of attention")
    return {f"{arch}.final_logit_softcapping": f32(cap)} if cap else {}
