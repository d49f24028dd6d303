"""Shapes have the published number of parameters, whatever they are read from."""

import json
from pathlib import Path

import pytest

from gguf_files import ARRAY, GGUF, STRING, U32, Field, Tensor
from pagoda.errors import FormatError, SourceError
from pagoda.plan.model.config_shapes import shape_from_config
from pagoda.plan.model.models import builtin_names, builtin_shape, find_shape

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
        ("deepseek-v3", 61 * (512 + 64) * 2),  # latent attention keeps rank + rotary of each layer
    ],
)
def test_kv_of_a_token_in_f16(name: str, kv_bytes: int) -> None:
    assert 2 * builtin_shape(name).kv_elements == kv_bytes


def test_active_parameters_of_experts() -> None:
    assert builtin_shape("mixtral-8x7b").active_parameters == 12_879_925_248  # "12.9B active"
    assert builtin_shape("qwen3-30b-a3b").active_parameters / 1e9 == pytest.approx(3.35, abs=0.01)
    assert builtin_shape("deepseek-v3").active_parameters / 1e9 == pytest.approx(37.5, abs=0.1)


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


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(SourceError, match="llama-3-8b"):
        find_shape("llama3-8b")
