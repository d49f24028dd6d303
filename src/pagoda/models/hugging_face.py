"""Any checkpoint as a Hugging Face folder would hold it: config.json's settings, its names, its order of rows.

Tensors stay as they lie in the file, in whatever block type; GGUF's reordering of Llama's q and k rows is undone on
whole rows of blocks, which changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pagoda.backends.specs import Activation
from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import Checkpoint
from pagoda.formats.lazy_tensors import LazyTensors
from pagoda.models.family import Family, shifted
from pagoda.models.layers import Decoder, Experts, FeedForward
from pagoda.models.names import GGUF, Named, translate
from pagoda.models.registry import family_of, load_model
from pagoda.models.rope import frequencies, llama3_frequencies, longrope_attention_factor
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
        self._family = family_of(checkpoint)
        self._family.check_converted()
        self._checkpoint = checkpoint
        self._sources = {source.other: source for source in _sources(checkpoint, self._family)}
        self.architecture = self._family.name
        self.metadata: Mapping[str, Any] = _config(checkpoint, decoder, self._family)
        if decoder.is_hybrid:
            raise UnsupportedError("models with recurrent layers are not converted: take llama.cpp's converter")
        spec = decoder.attention.spec
        self._interleaved = {"attn_q": spec.num_heads, "attn_k": spec.num_kv_heads} if self._family.interleaved else {}
        self.tensors: Mapping[str, RawTensor] = LazyTensors(self._sources, self._tensor)

    def release(self, name: str) -> None:
        self._checkpoint.release(self._sources[name].name)

    def _tensor(self, name: str) -> RawTensor:
        source = self._sources[name]
        raw = self._checkpoint.tensors[source.name]
        raw = replace(raw if source.expert is None else raw.matrix(source.expert), name=name, part_of=None)
        if source.role in self._interleaved:
            return _half_split(raw, self._interleaved[source.role])
        is_weight = source.role.endswith("norm") and name.endswith(".weight")
        return shifted(raw, -self._family.norm_offset) if is_weight else raw


def _sources(checkpoint: Checkpoint, family: Family) -> Iterator[Named]:
    """Where each tensor of the folder comes from. UnsupportedError for what Hugging Face has no name for."""
    for found in translate(checkpoint.tensors, family.tensors, GGUF):
        if found.role == "attn_qkv" and not family.fused:
            raise UnsupportedError(f"{found.name!r} holds q, k and v in one, which a {family.name} folder cannot say")
        if found.role == "ffn_gate_up_exps":
            raise UnsupportedError(f"{found.name!r} holds gates and ups in one: convert a file that holds them apart")
        if "{e}" not in found.other:
            yield found
            continue
        for expert in range(checkpoint.tensors[found.name].shape[0]):
            yield replace(found, other=found.other.replace("{e}", str(expert)), expert=expert)


def as_hugging_face(checkpoint: Checkpoint) -> Checkpoint | HuggingFaceView:
    """The checkpoint itself if it is of a Hugging Face folder, else a view of it that looks like one.

    UnsupportedError for families that have no row here, and for settings that config.json cannot say.
    """
    return HuggingFaceView(checkpoint) if checkpoint.kind == "gguf" else checkpoint


def _config(checkpoint: Checkpoint, decoder: Decoder, family: Family) -> Config:
    block = decoder.blocks[0]
    assert block.ffn is not None  # as in all families that are converted
    attention = decoder.attention
    metadata = checkpoint.metadata
    config: Config = {
        "architectures": [family.hf_class],
        "model_type": family.model_type or family.name,
        "hidden_size": decoder.embedding.shape[1],
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": attention.spec.num_heads,
        "num_key_value_heads": attention.spec.num_kv_heads,
        "head_dim": attention.spec.head_dim,
        "max_position_embeddings": decoder.max_context,
        **_eps(checkpoint, family),
        "vocab_size": decoder.vocab_size,
        "tie_word_embeddings": decoder.output.name == decoder.embedding.name,
        "attention_bias": attention.q.bias is not None,
        **_ffn(checkpoint, block.ffn),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        **_rope(checkpoint, decoder, family),
        **_windows(decoder, family),
    }
    return config | (family.extra_config(checkpoint, decoder) if family.extra_config else {})


def _eps(checkpoint: Checkpoint, family: Family) -> Config:
    kind, key = ("", "layer_norm_eps") if family.layer_norm else ("rms_", "rms_norm_eps")
    return {key: float(checkpoint.metadata[f"{checkpoint.architecture}.attention.layer_norm_{kind}epsilon"])}


def _ffn(checkpoint: Checkpoint, ffn: FeedForward | Experts) -> Config:
    config: Config = {"intermediate_size": int(checkpoint.metadata[f"{checkpoint.architecture}.feed_forward_length"])}
    if isinstance(ffn, FeedForward):
        return {**config, "hidden_act": _activation(ffn.activation), "mlp_bias": ffn.up.bias is not None}
    return {
        **config,
        "hidden_act": _activation(ffn.spec.activation),
        **dict.fromkeys(("num_experts", "num_local_experts"), len(ffn.gate)),  # families call it the one or the other
        "num_experts_per_tok": ffn.spec.num_used,
        "moe_intermediate_size": ffn.gate[0].shape[0],
        "norm_topk_prob": ffn.spec.normalize,
    }


def _activation(name: Activation) -> str:
    return "gelu_pytorch_tanh" if name == "gelu_tanh" else name


def _windows(decoder: Decoder, family: Family) -> Config:
    if not family.windows:
        return {}
    windows = [attention.spec.window for attention in decoder.attentions.values()]
    window = next((window for window in windows if window), None)
    if not family.window_pattern:
        return {"sliding_window": window}
    types = ["sliding_attention" if window else "full_attention" for window in windows]
    return {"sliding_window": window or decoder.max_context, "layer_types": types}


def _rope(checkpoint: Checkpoint, decoder: Decoder, family: Family) -> Config:
    """`rope_theta` and `rope_scaling` as transformers 4 wrote them, which all versions read."""

    def get(key: str, default: Any = None) -> Any:
        return checkpoint.metadata.get(f"{checkpoint.architecture}.rope.{key}", default)

    theta: Config = {"rope_theta": float(get("freq_base", 10_000.0))}
    head_dim, rotary_dim = decoder.head_dim, get("dimension_count", decoder.head_dim)
    if family.partial_rotary:
        theta["partial_rotary_factor"] = rotary_dim / head_dim
    elif rotary_dim != head_dim:
        raise UnsupportedError("embeddings that turn only part of each head cannot be written to config.json yet")
    if "rope_freqs.weight" in checkpoint.tensors:
        return {**theta, "rope_scaling": _llama3(decoder, theta["rope_theta"])}
    if "rope_factors_long.weight" in checkpoint.tensors:
        original = int(get("scaling.original_context_length", decoder.max_context))
        return {**theta, **_longrope(checkpoint, decoder, original)}
    method, factor = get("scaling.type", "linear"), float(get("scaling.factor", get("scale_linear", 1.0)) or 1.0)
    if method == "none" or factor == 1.0:
        return theta
    scaling: Config = {"rope_type": method, "factor": factor}
    if method == "yarn":
        original = get("scaling.original_context_length", decoder.max_context)
        scaling |= {"original_max_position_embeddings": int(original)}
        scaling |= {
            key: float(get(f"scaling.yarn_{key}")) for key in ("beta_fast", "beta_slow") if get(f"scaling.yarn_{key}")
        }
        scaling["attention_factor"] = decoder.rope.scale
    return {**theta, "rope_scaling": scaling}


def _longrope(checkpoint: Checkpoint, decoder: Decoder, original: int) -> Config:
    """The two sets of factors. transformers 4 allows three keys, and computes the scale from the contexts."""
    scaling: Config = {"type": "longrope"}
    for which in ("long", "short"):
        raw = checkpoint.tensors[f"rope_factors_{which}.weight"]
        scaling[f"{which}_factor"] = dequantize(raw.data, raw.type, raw.shape).tolist()
    scale = decoder.rope.scale
    if not np.isclose(scale, longrope_attention_factor(decoder.max_context / original, original), rtol=1e-5):
        scaling["attention_factor"] = scale
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


def _llama3(decoder: Decoder, theta: float) -> Config:
    """The scaling that gives the file's frequencies: the slowest pair is slowed by `factor`."""
    found = decoder.rope.inv_freq.astype(np.float64)
    base = frequencies(decoder.head_dim, theta)
    factor = float(np.round(base[-1] / found[-1], 3))
    for original in LLAMA3_CONTEXTS:
        low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
        if np.allclose(llama3_frequencies(base, factor, low, high, original), found, rtol=1e-4):
            stretched = {"factor": factor, **LLAMA3, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", **stretched}
    raise UnsupportedError("rope_freqs are not Llama 3's; config.json has no name for them")


def _half_split(raw: RawTensor, heads: int) -> RawTensor:
    """Rows of each head from rotary pairs side by side to pairs half a head apart. Also of vectors."""
    rows = raw.data.reshape(heads, raw.shape[0] // heads // 2, 2, -1)
    return replace(raw, data=np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1))
