"""From a GGUF file to a model's shape: its tensor table is exact for any architecture; what its attention keeps of a
token comes from the metadata, whose keys are the same for all, and from which layers have which tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pagoda.errors import FormatError
from pagoda.formats.checkpoint import Checkpoint
from pagoda.models.planned import PLANNED
from pagoda.models.registry import FAMILIES, find_family
from pagoda.models.source import Settings
from pagoda.plan.model.shapes import EMBEDDING, AttentionShape, ModelShape, TensorShape

MAX_LAYERS, MAX_LENGTH = 1 << 12, 1 << 30

FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL"},
    **{26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 38: "MXFP4_MOE"},
}


def shape_from_gguf(checkpoint: Checkpoint) -> ModelShape:
    """FormatError if a size is missing or cannot be, or the file is no language model."""
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
        state_elements=reader.state_elements(),
        scored_vocabulary=checkpoint.metadata.get("tokenizer.ggml.model") == "llama",
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
        names = {name.split(".")[1] + "." + name.split(".")[2] for name in checkpoint.tensors if name.count(".") > 2}
        layers = {name.split(".")[0] for name in names}
        self._recurrent = {int(layer) for layer in layers if layer.isdecimal() and f"{layer}.ssm_conv1d" in names}
        self._convolved = sum(f"{layer}.shortconv" in names for layer in layers)  # layers of short convolutions
        self._without_kv = {layer for layer in self._recurrent if f"{layer}.attn_k" not in names}

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
        local_dims = (
            self.integer("attention.key_length_swa", key_dim),
            self.integer("attention.value_length_swa", value_dim),
        )
        kinds: Counter[tuple[int, int, int, int, int | None]] = Counter()
        sharing: Counter[tuple[int, int, int, int, int | None]] = Counter()
        keeping = num_layers - self.integer("attention.shared_kv_layers", 0, low=0, high=num_layers)
        served = num_layers - self.integer("nextn_predict_layers", 0, low=0, high=num_layers - 1)
        for layer, window in enumerate(self._windows(num_layers)[:served]):
            if heads[layer] and kv_heads[layer] and layer not in self._without_kv:  # 0: a layer without attention
                dims = local_dims if self._slides(layer, window) else (key_dim, value_dim)
                kind = (heads[layer], kv_heads[layer], *dims, window)
                kinds[kind] += 1
                sharing[kind] += layer >= keeping
        if not kinds:
            raise FormatError(f"{self._key('attention.head_count')} says that no layer has attention")
        return tuple(AttentionShape(count, *kind, latent, sharing[kind]) for kind, count in kinds.items())

    def _slides(self, layer: int, window: int | None) -> bool:
        """Also where the window is so long that it never ends."""
        stated = self._settings.get(self._key("attention.sliding_window_pattern"))
        return window is not None or (isinstance(stated, Sequence) and layer < len(stated) and bool(stated[layer]))

    def state_elements(self) -> int:
        """Numbers of all recurrent layers: the state, and what their convolution looks back to."""
        if self._convolved:
            return self._convolved * (self.integer("shortconv.l_cache") - 1) * self.integer("embedding_length")
        if not self._recurrent:
            return 0
        inner, size = self.integer("ssm.inner_size"), self.integer("ssm.state_size")
        convolved = inner + 2 * self.integer("ssm.group_count", 0, low=0) * size
        each = inner * size + (self.integer("ssm.conv_kernel") - 1) * convolved
        return len(self._recurrent) * each

    def _windows(self, num_layers: int) -> list[int | None]:
        chunk = self._family.defaults.get("attention_chunk_size", 0) if self._family else 0
        window = self.integer("attention.sliding_window", chunk, low=0, high=MAX_LENGTH)
        context = self.integer("context_length", 2048, high=MAX_LENGTH)
        if not 0 < window < context or (self._family and not self._family.windows):
            return [None] * num_layers
        key = self._key("attention.sliding_window_pattern")
        if self._settings.is_sequence(key):
            return [window if slides else None for slides in self._settings.sequence(key, num_layers)]
        usual = self._family.window_pattern if self._family else 0
        pattern = self.integer("attention.sliding_window_pattern", usual, low=0)
        return [window if not pattern or (layer + 1) % pattern else None for layer in range(num_layers)]
