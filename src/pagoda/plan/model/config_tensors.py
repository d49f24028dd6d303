"""The tensors of the model that a config.json describes, by GGUF's names."""

from __future__ import annotations

from collections.abc import Iterator

from pagoda.backends.specs import ScanSpec
from pagoda.plan.model.config_sizes import ConfigSizes, LayerSizes
from pagoda.plan.model.shapes import EMBEDDING, OUTPUT, TensorShape


def tensor_shapes(sizes: ConfigSizes) -> Iterator[TensorShape]:
    return _TensorList(sizes).all()


class _TensorList:
    def __init__(self, sizes: ConfigSizes) -> None:
        self.sizes, self.settings, self.family = sizes, sizes.settings, sizes.family
        self.hidden = sizes.hidden

    def all(self) -> Iterator[TensorShape]:
        vocab, hidden = self.sizes.vocab, self.hidden
        yield TensorShape(EMBEDDING, (vocab, hidden))
        if self.family.learned_positions:
            yield TensorShape("position_embd.weight", (self.sizes.context, hidden))
        if not self.settings.flag("tie_word_embeddings"):
            yield TensorShape(OUTPUT, (vocab, hidden))
        if self.family.head_bias:
            yield TensorShape("output.bias", (vocab,))
        yield from self._norm("output_norm", hidden)
        for i, layer in enumerate(self.sizes.layers):
            yield from self._layer(f"blk.{i}.", layer)
        if self.family.extra_tensors is not None:
            for name, shape in self.family.extra_tensors(self.settings):
                yield TensorShape(name, shape)

    def _layer(self, prefix: str, layer: LayerSizes) -> Iterator[TensorShape]:
        if layer.heads and layer.kind != "none":
            if self.family.pre_norms:
                yield from self._norm(prefix + "attn_norm", self.hidden)
            yield from self._attention(prefix, layer)
        if layer.ffn_size or layer.has_experts:
            if self.family.pre_norms and not self.family.parallel:
                yield from self._norm(prefix + "ffn_norm", self.hidden)
            if layer.has_experts:
                yield from self._experts(prefix, layer)
            if not layer.has_experts or self.family.dense_beside:
                yield from self._ffn(prefix, layer.ffn_size)
        for name in ("post_attention_norm", "post_ffw_norm") if self.family.post_norms else ():
            yield from self._norm(prefix + name, self.hidden)

    def _linear(self, name: str, rows: int, columns: int, bias: bool = False) -> Iterator[TensorShape]:
        yield TensorShape(name + ".weight", (rows, columns))
        if bias:
            yield TensorShape(name + ".bias", (rows,))

    def _norm(self, name: str, size: int) -> Iterator[TensorShape]:
        yield TensorShape(name + ".weight", (size,))
        if self.family.norm_bias:
            yield TensorShape(name + ".bias", (size,))

    # Attention

    def _attention(self, prefix: str, layer: LayerSizes) -> Iterator[TensorShape]:
        if layer.recurs:
            yield from self._linear_attention(prefix)
        if layer.kind == "linear":
            return
        if self.sizes.latent:
            yield from self._latent_attention(prefix, layer)
        elif layer.kv_heads:
            yield from self._plain_attention(prefix, layer)
        else:  # one matrix instead
            yield from self._linear(prefix + "attn_output", self.hidden, self.hidden)

    def _plain_attention(self, prefix: str, layer: LayerSizes) -> Iterator[TensorShape]:
        head_dim = layer.key_dim
        q, kv = layer.heads * head_dim, layer.kv_heads * head_dim
        bias = self.family.qkv_bias or self.settings.flag("attention_bias")
        if self.family.fused:
            yield from self._linear(prefix + "attn_qkv", q + 2 * kv, self.hidden, bias)
        else:
            yield from self._linear(prefix + "attn_q", q * (2 if self.family.gated_queries else 1), self.hidden, bias)
            keys_alone = layer.kind == "full" and self.settings.flag("attention_k_eq_v")
            for role in () if layer.shares_kv else ("attn_k",) if keys_alone else ("attn_k", "attn_v"):
                yield from self._linear(prefix + role, kv, self.hidden, bias)
        yield from self._linear(prefix + "attn_output", self.hidden, q, self.family.output_has_bias(bias))
        own = any(self.settings.flag(key) for key in ("use_qk_norm", "qk_layernorm"))  # of each head, or of all alike
        if self.family.qk_norm or self.family.whole_qk_norm or own:
            whole = self.family.whole_qk_norm or (own and self.family.layer_norm)
            yield TensorShape(f"{prefix}attn_q_norm.weight", (q if whole else head_dim,))
            if not layer.shares_kv:
                yield TensorShape(f"{prefix}attn_k_norm.weight", (kv if whole else head_dim,))

    def _latent_attention(self, prefix: str, layer: LayerSizes) -> Iterator[TensorShape]:
        """Multi-head latent attention: queries, and keys with values, go through matrices of low rank."""
        s = self.sizes
        q = layer.heads * s.key_dim
        if self.settings.get("q_lora_rank") is not None:
            rank = s.size("q_lora_rank")
            yield from self._linear(prefix + "attn_q_a", rank, self.hidden)
            yield TensorShape(prefix + "attn_q_a_norm.weight", (rank,))
            yield from self._linear(prefix + "attn_q_b", q, rank)
        else:
            yield from self._linear(prefix + "attn_q", q, self.hidden)
        yield from self._linear(prefix + "attn_kv_a_mqa", s.rank + s.rotary, self.hidden)
        yield TensorShape(prefix + "attn_kv_a_norm.weight", (s.rank,))
        yield from self._linear(prefix + "attn_kv_b", layer.heads * (s.key_dim - s.rotary + s.value_dim), s.rank)
        yield from self._linear(prefix + "attn_output", self.hidden, layer.heads * s.value_dim)

    def _linear_attention(self, prefix: str) -> Iterator[TensorShape]:
        if self.sizes.mamba is not None:
            yield from self._mamba(prefix, self.sizes.mamba)
        else:
            yield from self._delta_net(prefix)

    def _mamba(self, prefix: str, spec: ScanSpec) -> Iterator[TensorShape]:
        bias = self.settings.flag("mamba_proj_bias")
        rows = spec.inner_size + spec.mixed_size + spec.num_heads
        yield from self._linear(prefix + "ssm_in", rows, self.hidden, bias)
        yield TensorShape(prefix + "ssm_conv1d.weight", (spec.mixed_size, self.sizes.size("mamba_d_conv")))
        if self.settings.flag("mamba_conv_bias", True):
            yield TensorShape(prefix + "ssm_conv1d.bias", (spec.mixed_size,))
        yield TensorShape(prefix + "ssm_dt.bias", (spec.num_heads,))
        yield TensorShape(prefix + "ssm_a", (spec.num_heads, 1))
        yield TensorShape(prefix + "ssm_d", (spec.num_heads, 1))
        if self.settings.flag("mamba_rms_norm", True):
            yield TensorShape(prefix + "ssm_norm.weight", (spec.num_groups, spec.inner_size // spec.num_groups))
        yield from self._linear(prefix + "ssm_out", self.hidden, spec.inner_size, bias)

    def _delta_net(self, prefix: str) -> Iterator[TensorShape]:
        size = self.sizes.size
        value_heads, value_dim = size("linear_num_value_heads"), size("linear_value_head_dim")
        keys, values = size("linear_num_key_heads") * size("linear_key_head_dim"), value_heads * value_dim
        yield from self._linear(prefix + "ssm_in", 2 * keys + 2 * values, self.hidden)
        yield from self._linear(prefix + "ssm_ba", 2 * value_heads, self.hidden)
        yield TensorShape(prefix + "ssm_conv1d.weight", (2 * keys + values, size("linear_conv_kernel_dim")))
        yield TensorShape(prefix + "ssm_dt.bias", (value_heads,))
        yield TensorShape(prefix + "ssm_a", (value_heads,))
        yield TensorShape(prefix + "ssm_norm.weight", (value_dim,))
        yield from self._linear(prefix + "ssm_out", self.hidden, values)

    # Feed-forward

    def _ffn(self, prefix: str, size: int, suffix: str = "") -> Iterator[TensorShape]:
        bias = self.settings.flag("mlp_bias")
        if (self.family.fused and self.family.gated_ffn) or self.family.fused_ffn:
            yield from self._linear(prefix + "ffn_up", 2 * size, self.hidden, bias)
        else:
            for role in ("ffn_gate", "ffn_up") if self.family.gated_ffn else ("ffn_up",):
                yield from self._linear(f"{prefix}{role}{suffix}", size, self.hidden, bias)
        yield from self._linear(f"{prefix}ffn_down{suffix}", self.hidden, size, bias)

    def _experts(self, prefix: str, layer: LayerSizes) -> Iterator[TensorShape]:
        count, hidden = self.sizes.experts, self.hidden
        size = self.sizes.count("moe_intermediate_size") or layer.ffn_size
        yield from self._linear(prefix + "ffn_gate_inp", count, hidden, self.family.expert_bias)
        if self.family.scoring == "sigmoid" and "expert_corrections" in self.family.tensors:
            yield TensorShape(prefix + "exp_probs_b.bias", (count,))
        for role, rows, columns in (("gate", size, hidden), ("up", size, hidden), ("down", hidden, size)):
            yield TensorShape(f"{prefix}ffn_{role}_exps.weight", (count, rows, columns))
            if self.family.expert_bias:
                yield TensorShape(f"{prefix}ffn_{role}_exps.bias", (count, rows))
        gated, plain = (self.sizes.count(f"shared_{of}intermediate_size") for of in ("expert_", ""))
        shared = gated or plain or self.sizes.count("n_shared_experts") * size
        if shared:
            yield from self._ffn(prefix, shared, "_shexp")
        if gated:
            yield from self._linear(prefix + "ffn_gate_inp_shexp", 1, hidden)
