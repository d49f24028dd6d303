"""OLMo 3: OLMo 2 with sliding windows in three layers of four. Only the layers that see everything are stretched by
YaRN: the others turn as they were trained.
"""

from __future__ import annotations

from pagoda.formats.gguf_writer import Value, f32
from pagoda.models import olmo2
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.reader import DecoderReader, LayerKind, read_sizes, read_window, sliding_layers
from pagoda.models.rope import LEAST_THETA, read_local_rope, read_rope
from pagoda.models.source import Settings

THETA = 500_000.0


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    full = LayerKind(read_rope(file, sizes.head_dim))
    key = file.key("rope.freq_base") if file.is_gguf else "rope_theta"
    theta = file.settings.number(key, THETA, low=LEAST_THETA)
    local = LayerKind(read_local_rope(file, sizes.head_dim, "rope_theta", theta), read_window(file, sizes.max_context))
    kinds = [local if sliding else full for sliding in sliding_layers(file, sizes.num_layers)]
    return DecoderReader(file, sizes).decoder(kinds)


def _extra_values(settings: Settings, decoder: Decoder) -> dict[str, Value]:
    rope = settings.section("rope_parameters") or Settings({})
    local = rope.section("sliding_attention") or settings
    return {"rope.freq_base_swa": f32(local.number("rope_theta", THETA))}


FAMILY = Family(
    name="olmo3",
    gguf="olmo2",
    gguf_key="attention.sliding_window",
    hf_class="Olmo3ForCausalLM",
    build=build,
    compared=("llama.cpp 0.3.36: greedy tokens",),
    tensors=olmo2.FAMILY.tensors,
    defaults={"rms_norm_eps": 1e-5, "rope_theta": THETA, "sliding_window": 4096},
    extra_values=_extra_values,
    pre_norms=False,
    post_norms=True,
    whole_qk_norm=True,
    window_pattern=4,
)
