"""From the settings in a config.json to the tensors that such a model has, by GGUF's names.

What differs from Llama stands in the architecture's `Family`. One that has none is planned as a Llama, and the shape
says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pagoda.errors import FormatError
from pagoda.models import experts, llama
from pagoda.models.family import Family
from pagoda.models.registry import known_family
from pagoda.models.source import Settings
from pagoda.plan.model.shapes import EMBEDDING, OUTPUT, AttentionShape, ModelShape, TensorShape

MAX_LAYERS, MAX_SIZE, MAX_EXPERTS = 1 << 12, 1 << 24, 1 << 14
NESTED = "text_config"  # of models that also see or hear


def shape_from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape of the model that config.json describes. FormatError if a size is missing or cannot be."""
    assumptions = []
    model_type = str(config.get("model_type", "llama"))
    nested = config.get(NESTED)
    if isinstance(nested, Mapping):
        assumptions.append("only the language part is counted, not the one that sees")
        config = {**{k: v for k, v in config.items() if k != NESTED}, **nested}
        model_type = str(nested.get("model_type", model_type))
    model_type = model_type.removesuffix("_text")
    family = known_family(model_type)
    if family is None:
        assumptions.append(f"the architecture {model_type!r} is unknown: its tensors are taken to be those of a Llama")
        family = replace(llama.FAMILY, windows=True)
    return _Recipe(family.settings(config), family).shape(name, model_type, assumptions)


class _Recipe:
    """Reads the sizes, then lists the tensors."""

    def __init__(self, settings: Settings, family: Family) -> None:
        self.settings, self.family = settings, family
        size = self._size
        self.layers = size("num_hidden_layers", high=MAX_LAYERS)
        self.hidden = size("hidden_size")
        self.ffn = size("intermediate_size")
        self.heads = size("num_attention_heads")
        self.kv_heads = size("num_key_value_heads", self.heads)
        self.vocab = size("vocab_size")
        self.latent = settings.get("kv_lora_rank") is not None
        if self.latent:
            self.rank, self.rotary = size("kv_lora_rank"), size("qk_rope_head_dim")
            self.key_dim = size("qk_nope_head_dim") + self.rotary
            self.value_dim = size("v_head_dim")
        else:
            if settings.get("head_dim") is None and self.hidden % self.heads:
                raise FormatError(f"a hidden size of {self.hidden} does not divide into {self.heads} heads")
            self.key_dim = self.value_dim = size("head_dim", self.hidden // self.heads)
        self.experts = experts.num_experts(settings)
        self.used = size("num_experts_per_tok", 2, high=MAX_EXPERTS) if self.experts else 0

    def _size(self, key: str, default: int | None = None, *, high: int = MAX_SIZE) -> int:
        return self.settings.integer(key, default, high=high)

    def _first(self, *keys: str) -> int:
        """The value of the first of `keys` that is set, else 0."""
        found = (key for key in keys if self.settings.get(key) is not None)
        return next((self.settings.integer(key, low=0, high=MAX_EXPERTS * MAX_EXPERTS) for key in found), 0)

    def shape(self, name: str, model_type: str, assumptions: list[str]) -> ModelShape:
        context = self._size("max_position_embeddings", high=1 << 30)
        return ModelShape(
            name=name,
            architecture=model_type,
            hidden_size=self.hidden,
            vocab_size=self.vocab,
            max_context=context,
            attention=self._attention(context),
            tensors=tuple(self._tensors()),
            num_experts=self.experts,
            experts_used=self.used,
            assumptions=tuple(assumptions),
        )

    # Attention

    def _attention(self, context: int) -> tuple[AttentionShape, ...]:
        window = self._window(context)
        sliding = self._num_sliding() if window else 0
        kinds = [(self.layers - sliding, None), (sliding, window)]
        return tuple(self._kind(count, w) for count, w in kinds if count)

    def _kind(self, count: int, window: int | None) -> AttentionShape:
        latent = self.rank + self.rotary if self.latent else None
        return AttentionShape(count, self.heads, self.kv_heads, self.key_dim, self.value_dim, window, latent)

    def _window(self, context: int) -> int | None:
        heeded = self.family.windows or self.settings.flag("use_sliding_window", False)
        if not heeded or self.settings.get("sliding_window") is None:
            return None
        window = self.settings.integer("sliding_window", low=0, high=1 << 30)
        return window if 0 < window < context else None

    def _num_sliding(self) -> int:
        if self.settings.get("layer_types") is not None:
            return self.settings.sequence("layer_types", self.layers).count("sliding_attention")
        pattern = self.settings.integer("sliding_window_pattern", self.family.window_pattern, low=0, high=MAX_LAYERS)
        if pattern:
            return self.layers - self.layers // pattern
        if self.settings.get("max_window_layers") is not None:
            return max(0, self.layers - self.settings.integer("max_window_layers", low=0, high=MAX_LAYERS))
        return self.layers

    # Tensors

    def _tensors(self) -> Iterator[TensorShape]:
        yield TensorShape(EMBEDDING, (self.vocab, self.hidden))
        if not self.settings.flag("tie_word_embeddings"):
            yield TensorShape(OUTPUT, (self.vocab, self.hidden))
        if self.family.head_bias:
            yield TensorShape("output.bias", (self.vocab,))
        yield from self._norm("output_norm", self.hidden)
        for layer in range(self.layers):
            prefix = f"blk.{layer}."
            yield from self._norms(prefix)
            yield from self._latent_attention(prefix) if self.latent else self._plain_attention(prefix)
            has_experts = self.experts and experts.has_experts(self.settings, layer)
            yield from self._experts(prefix) if has_experts else self._ffn(prefix)

    def _linear(self, name: str, rows: int, columns: int, bias: bool = False) -> Iterator[TensorShape]:
        yield TensorShape(name + ".weight", (rows, columns))
        if bias:
            yield TensorShape(name + ".bias", (rows,))

    def _norm(self, name: str, size: int) -> Iterator[TensorShape]:
        yield TensorShape(name + ".weight", (size,))
        if self.family.norm_bias:
            yield TensorShape(name + ".bias", (size,))

    def _norms(self, prefix: str) -> Iterator[TensorShape]:
        names = ["attn_norm", "ffn_norm", *(["post_attention_norm", "post_ffw_norm"] if self.family.post_norms else [])]
        for name in names:
            yield from self._norm(prefix + name, self.hidden)

    def _plain_attention(self, prefix: str) -> Iterator[TensorShape]:
        q, kv = self.heads * self.key_dim, self.kv_heads * self.key_dim
        bias = self.family.qkv_bias or self.settings.flag("attention_bias")
        if self.family.fused:
            yield from self._linear(prefix + "attn_qkv", q + 2 * kv, self.hidden)
        else:
            for role, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
                yield from self._linear(prefix + role, rows, self.hidden, bias)
        output_bias = self.family.output_bias or (bias and not self.family.qkv_bias)
        yield from self._linear(prefix + "attn_output", self.hidden, q, output_bias)
        for role in ("attn_q_norm", "attn_k_norm") if self.family.qk_norm else ():
            yield TensorShape(f"{prefix}{role}.weight", (self.key_dim,))

    def _latent_attention(self, prefix: str) -> Iterator[TensorShape]:
        """Multi-head latent attention: queries, and keys with values, go through matrices of low rank."""
        q = self.heads * self.key_dim
        if self.settings.get("q_lora_rank") is not None:
            rank = self._size("q_lora_rank")
            yield from self._linear(prefix + "attn_q_a", rank, self.hidden)
            yield TensorShape(prefix + "attn_q_a_norm.weight", (rank,))
            yield from self._linear(prefix + "attn_q_b", q, rank)
        else:
            yield from self._linear(prefix + "attn_q", q, self.hidden)
        yield from self._linear(prefix + "attn_kv_a_mqa", self.rank + self.rotary, self.hidden)
        yield TensorShape(prefix + "attn_kv_a_norm.weight", (self.rank,))
        yield from self._linear(
            prefix + "attn_kv_b", self.heads * (self.key_dim - self.rotary + self.value_dim), self.rank
        )
        yield from self._linear(prefix + "attn_output", self.hidden, self.heads * self.value_dim)

    def _ffn(self, prefix: str, size: int | None = None, suffix: str = "") -> Iterator[TensorShape]:
        size = size or self.ffn
        bias = self.settings.flag("mlp_bias")
        if self.family.fused:
            yield from self._linear(prefix + "ffn_up", 2 * size, self.hidden)
        else:
            yield from self._linear(f"{prefix}ffn_gate{suffix}", size, self.hidden, bias)
            yield from self._linear(f"{prefix}ffn_up{suffix}", size, self.hidden, bias)
        yield from self._linear(f"{prefix}ffn_down{suffix}", self.hidden, size, bias)

    def _experts(self, prefix: str) -> Iterator[TensorShape]:
        size = self._first("moe_intermediate_size") or self.ffn
        yield from self._linear(prefix + "ffn_gate_inp", self.experts, self.hidden)
        if self.settings.get("topk_method") == "noaux_tc":
            yield TensorShape(prefix + "exp_probs_b.bias", (self.experts,))
        for role, rows, columns in (
            ("gate", size, self.hidden),
            ("up", size, self.hidden),
            ("down", self.hidden, size),
        ):
            yield TensorShape(f"{prefix}ffn_{role}_exps.weight", (self.experts, rows, columns))
        shared = self._first("shared_expert_intermediate_size") or self._first("n_shared_experts") * size
        if shared:
            yield from self._ffn(prefix, shared, "_shexp")
        if self._first("shared_expert_intermediate_size"):
            yield from self._linear(prefix + "ffn_gate_inp_shexp", 1, self.hidden)
