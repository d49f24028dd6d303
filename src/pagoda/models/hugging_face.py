"""Any checkpoint as a Hugging Face folder would hold it: config.json's settings, its names, its order of rows.

Tensors stay as they lie in the file, in whatever block type; GGUF's reordering of Llama's q and k rows is undone on
whole rows of blocks, which changes no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from pagoda.formats.checkpoint import Checkpoint
from pagoda.models import gemma3
from pagoda.models.layers import Decoder
from pagoda.models.names import TENSORS
from pagoda.models.registry import load_model
from pagoda.models.rope import frequencies, llama3_frequencies
from pagoda.types import RawTensor

Config = dict[str, Any]

# GGUF files hold only the frequencies that come out of Llama 3's scaling. Meta's models differ in `factor` alone; of
# others the context before stretching is found by trying.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CONTEXTS = (8192, *(1 << n for n in range(6, 18) if n != 13))


class HuggingFaceView:
    """A GGUF checkpoint under Hugging Face's names; what models read of a `Checkpoint`, and `release`."""

    kind = "safetensors"

    def __init__(self, checkpoint: Checkpoint) -> None:
        decoder = load_model(checkpoint)
        assert isinstance(decoder, Decoder)
        family = _family(checkpoint, decoder)
        self.metadata: Mapping[str, Any] = _config(checkpoint, decoder, family)
        self.architecture = family.model_type.removesuffix("_text")
        self._checkpoint = checkpoint
        self._sources = dict(_pairs(checkpoint, family.names))  # Hugging Face's name → GGUF's
        self._interleaved = family.interleaved
        self._offset = family.norm_offset
        self._heads = {
            ".q_proj.": decoder.blocks[0].attention.spec.num_heads,
            ".k_proj.": decoder.blocks[0].attention.spec.num_kv_heads,
        }
        self.tensors: Mapping[str, RawTensor] = _LazyTensors(self._sources, self._tensor)

    def release(self, name: str) -> None:
        self._checkpoint.release(self._sources[name])

    def _tensor(self, name: str) -> RawTensor:
        raw = self._checkpoint.tensors[self._sources[name]]
        if self._interleaved:
            for part, heads in self._heads.items():
                if part in name:
                    return _half_split(raw, name, heads)
        if self._offset and name.endswith("norm.weight"):
            values = dequantize(raw.data, raw.type, raw.shape) - np.float32(self._offset)
            return RawTensor(name, "F32", raw.shape, values.view(np.uint8).reshape(-1))
        return RawTensor(name, raw.type, raw.shape, raw.data)


class _LazyTensors(Mapping[str, RawTensor]):
    """Tensors made when they are asked for, and not kept."""

    def __init__(self, names: Mapping[str, str], make: Callable[[str], RawTensor]) -> None:
        self._names = names
        self._make = make

    def __getitem__(self, name: str) -> RawTensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def as_hugging_face(checkpoint: Checkpoint) -> Checkpoint | HuggingFaceView:
    """The checkpoint itself if it is of a Hugging Face folder, else a view of it that looks like one.

    UnsupportedError for families that have no row here, and for settings that config.json cannot say.
    """
    return HuggingFaceView(checkpoint) if checkpoint.kind == "gguf" else checkpoint


@dataclass(frozen=True, slots=True)
class Family:
    """How Hugging Face calls a family, and where its files differ from GGUF's."""

    model_type: str
    architecture: str
    names: Mapping[str, tuple[str, str]] = field(default_factory=lambda: TENSORS)
    interleaved: bool = False  # rows of q and k lie side by side in GGUF
    norm_offset: float = 0.0  # GGUF's norms are larger by this


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", interleaved=True),
    "mistral": Family("mistral", "MistralForCausalLM", interleaved=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM"),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", gemma3.NAMES, norm_offset=1.0),
}


def _family(checkpoint: Checkpoint, decoder: Decoder) -> Family:
    name = checkpoint.architecture
    if name == "llama" and any(block.attention.spec.window for block in decoder.blocks):
        name = "mistral"  # GGUF calls it a Llama
    if name not in FAMILIES:
        raise UnsupportedError(f"a {name!r} model cannot be written as a Hugging Face folder yet")
    return FAMILIES[name]


def _config(checkpoint: Checkpoint, decoder: Decoder, family: Family) -> Config:
    block = decoder.blocks[0]
    attention, ffn = block.attention, block.ffn
    metadata = checkpoint.metadata
    config: Config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": decoder.embedding.shape[1],
        "intermediate_size": ffn.gate.weight.shape[0],
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": attention.spec.num_heads,
        "num_key_value_heads": attention.spec.num_kv_heads,
        "head_dim": attention.spec.head_dim,
        "max_position_embeddings": decoder.max_context,
        "rms_norm_eps": float(np.float32(block.attn_norm.eps)),
        "vocab_size": decoder.vocab_size,
        "tie_word_embeddings": decoder.output.name == decoder.embedding.name,
        "attention_bias": attention.q.bias is not None,
        "mlp_bias": ffn.gate.bias is not None,
        "hidden_act": "gelu_pytorch_tanh" if ffn.activation == "gelu_tanh" else ffn.activation,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        **_rope(checkpoint, decoder),
    }
    if family.model_type == "gemma3_text":
        config |= _gemma3(checkpoint, decoder)
    elif family.model_type == "mistral":
        config["sliding_window"] = attention.spec.window
    return config


def _rope(checkpoint: Checkpoint, decoder: Decoder) -> Config:
    """`rope_theta` and `rope_scaling` as transformers 4 wrote them, which all versions read."""

    def get(key: str, default: Any = None) -> Any:
        return checkpoint.metadata.get(f"{checkpoint.architecture}.rope.{key}", default)

    theta = float(get("freq_base", 10_000.0))
    head_dim = decoder.head_dim
    if get("dimension_count", head_dim) != head_dim:
        raise UnsupportedError("embeddings that turn only part of each head cannot be written to config.json yet")
    if "rope_freqs.weight" in checkpoint.tensors:
        return {"rope_theta": theta, "rope_scaling": _llama3(decoder, theta)}
    method, factor = get("scaling.type", "linear"), float(get("scaling.factor", get("scale_linear", 1.0)) or 1.0)
    if method == "none" or factor == 1.0:
        return {"rope_theta": theta}
    scaling: Config = {"rope_type": method, "factor": factor}
    if method == "yarn":
        original = get("scaling.original_context_length", decoder.max_context)
        scaling |= {"original_max_position_embeddings": int(original)}
        scaling |= {
            key: float(get(f"scaling.yarn_{key}")) for key in ("beta_fast", "beta_slow") if get(f"scaling.yarn_{key}")
        }
        scaling["attention_factor"] = decoder.blocks[0].attention.rope.scale
    return {"rope_theta": theta, "rope_scaling": scaling}


def _llama3(decoder: Decoder, theta: float) -> Config:
    """The scaling that gives the file's frequencies: the slowest pair is slowed by `factor`."""
    found = decoder.blocks[0].attention.rope.inv_freq.astype(np.float64)
    base = frequencies(decoder.head_dim, theta)
    factor = float(np.round(base[-1] / found[-1], 3))
    for original in LLAMA3_CONTEXTS:
        low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
        if np.allclose(llama3_frequencies(base, factor, low, high, original), found, rtol=1e-4):
            stretched = {"factor": factor, **LLAMA3, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", **stretched}
    raise UnsupportedError("rope_freqs are not Llama 3's; config.json has no name for them")


def _gemma3(checkpoint: Checkpoint, decoder: Decoder) -> Config:
    windows = [block.attention.spec.window for block in decoder.blocks]
    local = checkpoint.metadata.get("gemma3.rope.freq_base_swa", gemma3.LOCAL_THETA)
    window = next((window for window in windows if window), None)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(decoder.blocks[0].attention.spec.scale ** -2),
        "rope_local_base_freq": float(local),
        "sliding_window": window or decoder.max_context,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        "final_logit_softcapping": decoder.logit_softcap,
        "attn_logit_softcapping": decoder.blocks[0].attention.spec.softcap,
    }


def _pairs(checkpoint: Checkpoint, names: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(Hugging Face's name, GGUF's) of each tensor; what config.json says instead is left out."""
    table = {gguf: ours for gguf, ours in names.values() if ours}
    for name in checkpoint.tensors:
        stem, _, suffix = name.rpartition(".")
        if stem in table:
            yield f"{table[stem]}.{suffix}", name
        elif stem.startswith("blk."):
            _, layer, part = stem.split(".", 2)
            yield f"{table[f'blk.{{i}}.{part}'].format(i=layer)}.{suffix}", name


def _half_split(raw: RawTensor, name: str, heads: int) -> RawTensor:
    """Rows of each head from rotary pairs side by side to pairs half a head apart. Also of vectors."""
    block = BLOCK_TYPES[raw.type]
    row_bytes = block.bytes * (raw.shape[1] // block.elements) if len(raw.shape) == 2 else block.bytes
    rows = np.asarray(raw.data).reshape(-1).view(np.uint8).reshape(heads, -1, 2, row_bytes)
    return RawTensor(name, raw.type, raw.shape, np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1))
