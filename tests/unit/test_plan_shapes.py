"""Shapes have the published number of parameters, whatever they are read from."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import ARRAY, GGUF, STRING, U32, Field, Tensor
from pagoda.errors import FormatError, SourceError
from pagoda.models.registry import load_model
from pagoda.plan.cost.memory import kv_request_bytes
from pagoda.plan.cost.work import Workload, decode_step
from pagoda.plan.model.config_shapes import shape_from_config
from pagoda.plan.model.models import builtin_names, builtin_shape, find_shape
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.model.weights import weights_in
from tiny_models import TINY, hf_config, memory_checkpoint, write_gguf

# Parameters as the hub counts them in the models' safetensors files; tied heads once.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "phi-3.5-moe": 41_873_153_344,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert builtin_shape(name).parameters == PUBLISHED[name]


def test_every_builtin_name_has_a_shape() -> None:
    for name in builtin_names():
        shape = builtin_shape(name)
        assert shape.kv_elements > 0
        assert not shape.assumptions


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("llama-3-8b", 128 * 1024),  # 32 layers × 8 heads × 128 × K and V × 2 bytes
        ("llama-2-7b", 512 * 1024),  # without grouped queries: four times as much
        ("deepseek-v2-lite", 27 * (512 + 64) * 2),  # latent attention keeps rank + rotary of each layer
        ("deepseek-v3", 61 * (512 + 64) * 2),
    ],
)
def test_kv_of_a_token_in_f16(name: str, kv_bytes: int) -> None:
    assert 2 * builtin_shape(name).kv_elements == kv_bytes


def test_active_parameters_of_experts() -> None:
    assert builtin_shape("mixtral-8x7b").active_parameters == 12_879_925_248  # "12.9B active"
    assert builtin_shape("qwen3-30b-a3b").active_parameters / 1e9 == pytest.approx(3.35, abs=0.01)
    assert builtin_shape("deepseek-v3").active_parameters / 1e9 == pytest.approx(37.5, abs=0.1)


# Of the sizes that transformers 5.24 has as a config class's defaults (but for what is stated here): the parameters of
# the model that it makes of them, and the layers that keep K and V with their window.
MADE_BY_TRANSFORMERS = {
    "qwen3_next": (
        {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
        },
        79_674_391_296,
        [(12, None)],
    ),
    "llama4_text": (
        {
            "vocab_size": 202_048,
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131_072,
            "num_local_experts": 128,
            "interleave_moe_layer_step": 2,
        },
        400_711_848_960,
        [(12, None), (36, 8192)],
    ),
    "gemma3n_text": (
        {
            "vocab_size": 262_400,
            "hidden_size": 2048,
            "intermediate_size": 16_384,
            "num_hidden_layers": 35,
            "max_position_embeddings": 32_768,
        },
        6_835_235_568,
        [(4, None), (16, 512)],  # the last 15 read K and V of earlier ones
    ),
    "gpt2": (
        {"vocab_size": 50_257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_inner": None},
        124_439_808,
        [(12, None)],
    ),
    "gpt_oss": (
        {
            "vocab_size": 201_088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "sliding_window": 128,
            "max_position_embeddings": 131_072,
        },
        116_829_156_672,
        [(18, None), (18, 128)],
    ),
    "cohere2": (
        {
            "vocab_size": 256_000,
            "hidden_size": 8192,
            "intermediate_size": 22_528,
            "num_hidden_layers": 40,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "sliding_window": 4096,
            "max_position_embeddings": 8192,
        },
        34_980_831_232,
        [(10, None), (30, 4096)],
    ),
}


@pytest.mark.parametrize("model_type", MADE_BY_TRANSFORMERS)
def test_architectures_with_words_or_layers_of_their_own(model_type: str) -> None:
    config, parameters, kept = MADE_BY_TRANSFORMERS[model_type]
    shape = shape_from_config({"model_type": model_type, **config}, "x")
    assert shape.parameters == parameters
    assert [(kind.num_keeping, kind.window) for kind in shape.attention] == kept
    assert not shape.assumptions


def test_linear_attention_keeps_a_state_and_no_kv() -> None:
    """Qwen3-Next: a quarter of its 48 layers keeps K and V, the others a matrix a head and three columns."""
    config, _, _ = MADE_BY_TRANSFORMERS["qwen3_next"]
    shape = shape_from_config({"model_type": "qwen3_next", **config}, "x")
    assert shape.kv_elements == 12 * 2 * (256 + 256)
    assert shape.state_elements == 36 * (32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128))
    assert shape.num_layers == 48
    short, long = (kv_request_bytes(shape, "f16", tokens, 512) for tokens in (16, 16_000))
    assert short == 16 * 2 * shape.kv_elements + 2 * 4 * shape.state_elements
    assert long - short == (16_000 - 16) * 2 * shape.kv_elements
    explicit = {**config, "layer_types": ["linear_attention"] * 47 + ["full_attention"]}
    assert shape_from_config({"model_type": "qwen3_next", **explicit}, "x").kv_elements == 2 * (256 + 256)


def test_reading_and_computing_with_a_state() -> None:
    config, _, _ = MADE_BY_TRANSFORMERS["qwen3_next"]
    shape = shape_from_config({"model_type": "qwen3_next", **config}, "x")
    stateless = replace(shape, state_elements=0)
    step = decode_step(4, 1000)
    with_state, without = (Workload(s, weights_in(s, "fp16"), "f16").of(step) for s in (shape, stateless))
    assert (
        with_state.kv_bytes - without.kv_bytes == 4 * 2 * 4 * shape.state_elements
    )  # each sequence's, read and written
    assert with_state.flops - without.flops == pytest.approx(4 * 7 * shape.state_elements)


def test_layers_that_share_kv_read_it_but_keep_none() -> None:
    config, _, _ = MADE_BY_TRANSFORMERS["gemma3n_text"]
    shape = shape_from_config({"model_type": "gemma3n_text", **config}, "x")
    assert shape.kv_elements == 20 * 2 * (256 + 256)
    work = Workload(shape, weights_in(shape, "fp16"), "f16").of(decode_step(1, 256))
    assert work.kv_bytes == 256 * 35 * 2 * (256 + 256) * 2
    looked_up = {t.name for t in shape.tensors if "_embd" in t.name} - {"token_embd.weight"}
    assert looked_up == {"per_layer_token_embd.weight"}
    assert not looked_up & {t.name for t in shape.layer_matrices}


def test_blocks_that_differ() -> None:
    """Nemotron-NAS: what is counted by hand for four blocks of width 64 with 4 heads."""
    blocks = [
        {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 5.25}},  # int(2 · 5.25 · 64 / 3) = 224 → 256
        {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": None, "replace_with_linear": True}},
        {"attention": {"n_heads_in_group": None, "replace_with_linear": True}, "ffn": {"ffn_mult": 6.5}},  # 277 → 512
        {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": None, "no_op": True}},
    ]
    config = {**CONFIG, "model_type": "nemotron-nas", "num_hidden_layers": 4, "block_configs": blocks}
    shape = shape_from_config(config, "x")
    attention = (2 * 64 * 64 + 2 * 32 * 64) + (2 * 64 * 64 + 2 * 16 * 64) + 64 * 64
    ffn = 3 * 64 * 256 + 64 * 64 + 3 * 64 * 512
    norms = 64 * (1 + 3 + 2)
    assert shape.parameters == 2 * 100 * 64 + attention + ffn + norms
    assert [(kind.num_layers, kind.num_kv_heads) for kind in shape.attention] == [(1, 2), (1, 1)]
    assert shape.kv_elements == 2 * 16 * (2 + 1)


def test_windows() -> None:
    assert [(kind.num_layers, kind.window) for kind in builtin_shape("gemma-3-27b").attention] == [
        (10, None),
        (52, 1024),
    ]
    assert [kind.window for kind in builtin_shape("mistral-7b-v0.1").attention] == [4096]
    assert [kind.window for kind in builtin_shape("qwen2.5-7b").attention] == [None]


def _gguf(tmp_path: Path, architecture: str, **keys: Field) -> str:
    metadata = {
        "general.architecture": Field(STRING, architecture),
        **{f"{architecture}.{key}": value for key, value in keys.items()},
    }
    tensors = [
        Tensor("token_embd.weight", (256, 8), 1, bytes(256 * 8 * 2)),
        Tensor("blk.0.attn_q.weight", (256, 4), 22, bytes(4 * 82)),  # IQ2_S, which is sized but not decoded
        Tensor("blk.0.ffn_up_exps.weight", (256, 2, 8), 1, bytes(256 * 16 * 2)),
    ]
    return str(GGUF(metadata, tensors).write(tmp_path / "novel.gguf"))


SIZES = {"block_count": Field(U32, 2), "context_length": Field(U32, 4096), "attention.head_count": Field(U32, 4)}


def test_a_gguf_file_of_an_architecture_never_seen(tmp_path: Path) -> None:
    experts = {"expert_count": Field(U32, 8), "expert_used_count": Field(U32, 2)}
    heads = {"attention.head_count_kv": Field(ARRAY, (U32, [0, 2]))}  # one layer has no attention
    shape = find_shape(_gguf(tmp_path, "novel", **SIZES, **experts, **heads))
    assert shape.parameters == 256 * (8 + 4 + 16)
    assert shape.active_parameters == 256 * (8 + 4 + 16 // 4)
    assert shape.kv_elements == 2 * (64 + 64)
    assert (shape.architecture, shape.stored_as) == ("novel", "F16")


def test_recurrent_layers_of_a_gguf_file(tmp_path: Path) -> None:
    """Layer 0 is recurrent, layer 1 keeps K and V; sizes as llama.cpp's converter names them."""
    keys = {"ssm.inner_size": 64, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.conv_kernel": 4}
    metadata = {
        "general.architecture": Field(STRING, "qwen3next"),
        **{f"qwen3next.{key}": value for key, value in SIZES.items()},
        **{f"qwen3next.{key}": Field(U32, value) for key, value in keys.items()},
    }
    tensors = [
        Tensor("token_embd.weight", (256, 8), 1, bytes(256 * 8 * 2)),
        Tensor("blk.0.ssm_conv1d.weight", (4, 128), 0, bytes(4 * 128 * 4)),
        Tensor("blk.1.attn_k.weight", (256, 256), 1, bytes(256 * 256 * 2)),
    ]
    shape = find_shape(str(GGUF(metadata, tensors).write(tmp_path / "hybrid.gguf")))
    assert shape.kv_elements == 4 * (64 + 64)
    assert shape.state_elements == 64 * 16 + 3 * (64 + 2 * 2 * 16)
    assert not shape.assumptions


def test_a_gguf_file_may_say_that_layers_share_kv(tmp_path: Path) -> None:
    shape = find_shape(_gguf(tmp_path, "novel", **SIZES, **{"attention.shared_kv_layers": Field(U32, 1)}))
    assert [(kind.num_layers, kind.num_keeping) for kind in shape.attention] == [(2, 1)]


def test_a_gguf_file_without_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"novel\.block_count is missing"):
        find_shape(_gguf(tmp_path, "novel"))


CONFIG = {
    "model_type": "brandnew",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


GEMMAS = ["gemma3n_second", "gemma4", "gemma4_dense", "gemma4_experts"]


@pytest.mark.parametrize("name", ["olmo3", "glm4", "cohere2", "nemotron", *GEMMAS, "cohere_plus"])
def test_a_config_gives_the_shapes_that_its_gguf_file_has(name: str, tmp_path: Path) -> None:
    """Experts may be stacked with their gates and ups in one: their elements are counted."""
    planned = shape_from_config(hf_config(TINY[name]), name)
    held = find_shape(str(write_gguf(tmp_path / "model.gguf", TINY[name])))
    assert set(planned.attention) == set(held.attention)

    def elements(shape: ModelShape) -> dict[str, int]:
        tensors = [tensor for tensor in shape.tensors if not tensor.is_expert and "rope_" not in tensor.name]
        experts = sum(tensor.elements for tensor in shape.tensors if tensor.is_expert)
        return {"experts": experts} | {tensor.name: tensor.elements for tensor in tensors}

    assert elements(planned) == elements(held)


def test_short_convolutions_keep_no_kv_but_a_state(tmp_path: Path) -> None:
    """Two layers of five attend, 2 heads of 16 numbers; the others keep two rows of 64."""
    planned = shape_from_config(hf_config(TINY["lfm2"]), "lfm2")
    held = find_shape(str(write_gguf(tmp_path / "model.gguf", TINY["lfm2"])))
    assert planned.kv_elements == held.kv_elements == 2 * 2 * 2 * 16
    assert planned.state_elements == held.state_elements == 3 * 2 * 64
    assert planned.parameters == held.parameters


@pytest.mark.parametrize("name", ["granite4", "granite4_dense", "falcon_h1", "falcon_h1_plain", "nemotron_h"])
def test_layers_of_mamba_keep_a_state(name: str, tmp_path: Path) -> None:
    planned = shape_from_config(hf_config(TINY[name]), name)
    held = find_shape(str(write_gguf(tmp_path / "model.gguf", TINY[name])))
    blocks = load_model(memory_checkpoint(TINY[name])).blocks
    kept = sum(block.recurrent.state_elements for block in blocks if block.recurrent is not None)
    assert planned.state_elements == held.state_elements == kept > 0
    assert planned.kv_elements == held.kv_elements
    assert planned.parameters == held.parameters


def test_an_unknown_architecture_says_what_was_assumed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shape = find_shape(str(tmp_path))
    assert "'brandnew' is unknown" in shape.assumptions[0]
    assert shape.parameters == 2 * 100 * 64 + 64 + 2 * (2 * 64 + 4 * 64 * 64 + 3 * 64 * 128)


def test_the_language_part_of_a_model_that_sees() -> None:
    shape = shape_from_config({"model_type": "gemma3", "text_config": {**CONFIG, "model_type": "gemma3_text"}}, "x")
    assert shape.architecture == "gemma3"
    assert "only the language part" in shape.assumptions[0]


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
@pytest.mark.parametrize("value", [-1, 0, 1.5, "many", None, 10**12])
def test_sizes_that_cannot_be_are_refused(key: str, value: object) -> None:
    with pytest.raises(FormatError, match=key):
        shape_from_config({**CONFIG, key: value}, "x")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.integers(0, 3), st.none(), st.just({"attention": 1})), max_size=50),
    st.dictionaries(st.sampled_from(["attention", "ffn"]), st.integers(), max_size=2),
)
KEYS = {key for config, _, _ in MADE_BY_TRANSFORMERS.values() for key in config} | {
    *(
        "block_configs",
        "no_rope_layers",
        "layer_types",
        "num_kv_shared_layers",
        "linear_num_key_heads",
        "altup_num_inputs",
    ),
    *("attention_chunk_size", "full_attention_interval", "mlp_only_layers", "tie_word_embeddings", "kv_lora_rank"),
}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*MADE_BY_TRANSFORMERS, "nemotron-nas"]), st.sampled_from(sorted(KEYS)), JUNK)
def test_any_junk_is_read_or_refused(model_type: str, key: str, junk: object) -> None:
    sizes = MADE_BY_TRANSFORMERS.get(model_type, (CONFIG, 0, []))[0]
    with suppress(FormatError):
        shape_from_config({**sizes, "model_type": model_type, key: junk}, "x")


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(SourceError, match="llama-3-8b"):
        find_shape("llama3-8b")
