"""The sizes of the model that a config.json describes, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pagoda.backends.specs import ScanSpec
from pagoda.errors import FormatError
from pagoda.models import experts
from pagoda.models.family import Family
from pagoda.models.source import Settings

MAX_LAYERS, MAX_SIZE, MAX_EXPERTS = 1 << 12, 1 << 24, 1 << 14

# both: attention beside a layer with a state. none: neither.
AttentionKind = Literal["full", "sliding", "linear", "both", "none"]
KINDS: dict[str, AttentionKind] = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "linear_attention": "linear",
    "hybrid": "both",
    "mlp": "none",
}


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """kv_heads 0: no attention, or one matrix instead where there are heads; ffn_size 0: no feed-forward."""

    kind: AttentionKind
    heads: int
    kv_heads: int
    key_dim: int
    ffn_size: int
    has_experts: bool
    shares_kv: bool  # with an earlier layer

    @property
    def recurs(self) -> bool:
        """Whether it keeps a state."""
        return self.kind in ("linear", "both")


class ConfigSizes:
    """What config.json says, checked."""

    def __init__(self, settings: Settings, family: Family) -> None:
        self.settings, self.family = settings, family
        size = self.size
        self.num_layers = size("num_hidden_layers", high=MAX_LAYERS)
        self.hidden = size("hidden_size")
        self.vocab = size("vocab_size")
        self.context = size("max_position_embeddings", high=1 << 30)
        heads = max(self._each("num_attention_heads"))
        self.latent = settings.get("kv_lora_rank") is not None
        if self.latent:
            self.rank, self.rotary = size("kv_lora_rank"), size("qk_rope_head_dim")
            self.key_dim = size("qk_nope_head_dim") + self.rotary
            self.value_dim = size("v_head_dim")
        else:
            if settings.get("head_dim") is None and self.hidden % heads:
                raise FormatError(f"a hidden size of {self.hidden} does not divide into {heads} heads")
            self.key_dim = self.value_dim = size("head_dim", self.hidden // heads)
        self.experts = experts.num_experts(settings)
        self.experts_used = size("num_experts_per_tok", 2, high=MAX_EXPERTS) if self.experts else 0

    def size(self, key: str, default: int | None = None, *, high: int = MAX_SIZE) -> int:
        return self.settings.integer(key, default, high=high)

    def count(self, key: str) -> int:
        """0 where absent."""
        return self.settings.integer(key, 0, low=0, high=MAX_SIZE)

    def _each(self, key: str, default: int | None = None) -> list[int]:
        """One number for each layer; files may state a single number for all."""
        if not self.settings.is_sequence(key):
            return [self.size(key, default)] * self.num_layers
        values = self.settings.sequence(key, self.num_layers)
        return [Settings({key: value}).integer(key, low=0, high=MAX_SIZE) for value in values]

    @cached_property
    def layers(self) -> list[LayerSizes]:
        heads, ffn = self._each("num_attention_heads"), self._each("intermediate_size")
        kv_heads = self._each("num_key_value_heads", max(heads))
        key_dims = (
            self._each("head_dims") if self.settings.is_sequence("head_dims") else [self.key_dim] * self.num_layers
        )
        keeping = self.num_layers - self.count("num_kv_shared_layers")
        return [
            LayerSizes(
                kind=kind,
                heads=heads[i],
                kv_heads=kv_heads[i],
                key_dim=key_dims[i],
                ffn_size=ffn[i],
                has_experts=self.experts > 0 and experts.has_experts(self.settings, i),
                shares_kv=i >= keeping,
            )
            for i, kind in enumerate(self._kinds())
        ]

    def window_of(self, layer: LayerSizes) -> int | None:
        return self._window if layer.kind == "sliding" else None

    @cached_property
    def _window(self) -> int | None:
        heeded = self.family.windows or self.settings.flag("use_sliding_window", False)
        key = "attention_chunk_size" if self.settings.get("attention_chunk_size") is not None else "sliding_window"
        if not heeded or self.settings.get(key) is None:
            return None
        window = self.settings.integer(key, low=0, high=1 << 30)
        return window if 0 < window < self.context else None

    def _kinds(self) -> list[AttentionKind]:
        if self.settings.get("layer_types") is not None:
            return [KINDS.get(str(kind), "full") for kind in self.settings.sequence("layer_types", self.num_layers)]
        interval = self.count("full_attention_interval")
        if interval:
            return ["linear" if (i + 1) % interval else "full" for i in range(self.num_layers)]
        pattern = self.settings.integer("sliding_window_pattern", self.family.window_pattern, low=0, high=MAX_LAYERS)
        first = self.settings.integer("max_window_layers", 0, low=0, high=MAX_SIZE)
        if pattern:
            return ["sliding" if (i + 1) % pattern else "full" for i in range(self.num_layers)]
        return ["sliding" if i >= first else "full" for i in range(self.num_layers)]

    @property
    def conv_state(self) -> int:
        """Numbers that layers of short convolutions keep of a sequence, all together."""
        if self.settings.get("conv_L_cache") is None:
            return 0
        return sum(not layer.kv_heads for layer in self.layers) * (self.size("conv_L_cache") - 1) * self.hidden

    @property
    def mamba(self) -> ScanSpec | None:
        """The heads of Mamba-2 layers; None where linear layers are others."""
        if self.settings.get("mamba_n_heads") is None:
            return None
        size = self.size
        return ScanSpec(size("mamba_n_heads"), size("mamba_d_head"), size("mamba_n_groups"), size("mamba_d_state"))

    @property
    def state(self) -> int:
        """Numbers that a linear attention layer keeps of a sequence: its state, and the convolution's past."""
        if self.mamba is not None:
            past = self.size("mamba_d_conv") - 1
            return self.mamba.inner_size * self.mamba.state_dim + past * self.mamba.mixed_size
        key_heads, value_heads = self.size("linear_num_key_heads"), self.size("linear_num_value_heads")
        key_dim, value_dim = self.size("linear_key_head_dim"), self.size("linear_value_head_dim")
        convolved = 2 * key_heads * key_dim + value_heads * value_dim
        return value_heads * key_dim * value_dim + (self.size("linear_conv_kernel_dim") - 1) * convolved
