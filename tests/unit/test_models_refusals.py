"""What is no model, or not one of ours, is refused with a sentence that names it, and nothing large is allocated."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.errors import FormatError, UnsupportedError
from pagoda.models.registry import FAMILIES, load_model
from tiny_models import TINY, MemoryCheckpoint, memory_checkpoint, raw

FAMILY_MODELS = [
    *("llama3", "mistral", "qwen2", "qwen3_yarn", "gemma3", "phi3_long"),
    *("qwen3moe", "gemma2", "olmo2", "smollm3", "granite", "ministral3", "olmo3", "glm4", "seed_oss", "hunyuan"),
    *(
        "cohere2",
        "stablelm",
        "nemotron",
        "gemma4",
        "gemma4_dense",
        "gemma3n",
        "lfm2",
        "granite4",
        "bamba",
        "nemotron_h",
    ),
    *("cohere_plus", "stablelm_12b", "qwen2moe", "lfm2moe", "deepseek2", "deepseek3"),
]
KINDS = ["gguf", "safetensors"]


def changed(checkpoint: MemoryCheckpoint, **metadata: Any) -> MemoryCheckpoint:
    """With other metadata; "__" stands for a dot."""
    changes = {key.replace("__", "."): value for key, value in metadata.items()}
    return replace(checkpoint, metadata={**checkpoint.metadata, **changes})


def with_tensor(checkpoint: MemoryCheckpoint, name: str, *shape: int) -> MemoryCheckpoint:
    return replace(checkpoint, tensors={**checkpoint.tensors, name: raw(name, np.zeros(shape, np.float32))})


def without(checkpoint: MemoryCheckpoint, name: str) -> MemoryCheckpoint:
    return replace(checkpoint, tensors={n: t for n, t in checkpoint.tensors.items() if n != name})


def llama(kind: str = "gguf") -> MemoryCheckpoint:
    return memory_checkpoint(TINY["llama"], kind=kind)


def test_every_family_is_in_the_refusal_of_an_unknown_architecture() -> None:
    with pytest.raises(UnsupportedError, match="'mamba'") as refusal:
        load_model(replace(llama(), architecture="mamba"))
    assert all(family.gguf in str(refusal.value) for family in FAMILIES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_every_tensor_is_needed_by_name_and_shape(name: str, kind: str) -> None:
    """Each tensor of each family in turn: gone, or one column longer. Optional ones are listed."""
    whole = memory_checkpoint(TINY[name], kind=kind)
    optional = {"rope_freqs.weight", "output.weight"}  # without them the file is another valid model
    if name == "gemma4" and kind == "gguf":
        optional.add("blk.2.attn_v.weight")  # of the only full layer: one whose values are keys
    if kind == "gguf":  # convolutions may have none
        optional |= {tensor for tensor in whole.tensors if tensor.endswith("conv1d.bias")}
    for tensor, held in whole.tensors.items():
        wrong = with_tensor(whole, tensor, *held.shape[:-1], held.shape[-1] + 2)
        with pytest.raises(FormatError, match=rf"'{tensor}' has shape"):
            load_model(wrong)
        if tensor not in optional:
            with pytest.raises(FormatError, match=rf"'{tensor}' is missing"):
                load_model(without(whole, tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_nothing_reads_are_named(kind: str) -> None:
    extra = with_tensor(llama(kind), "blk.0.attn_sinks.weight", 4)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_sinks\.weight"):
        load_model(extra)


def test_many_unread_tensors_are_counted() -> None:
    checkpoint = llama()
    for i in range(9):
        checkpoint = with_tensor(checkpoint, f"v.{i}", 1)
    with pytest.raises(UnsupportedError, match=r"v\.4 and 4 more"):
        load_model(checkpoint)


def test_fewer_layers_than_the_file_holds_leave_tensors_unread() -> None:
    with pytest.raises(UnsupportedError, match=r"blk\.1\."):
        load_model(changed(llama(), llama__block_count=1))


def test_what_gguf_states_for_each_layer_counts_where_all_are_equal() -> None:
    """As llama.cpp reads it, which takes a number or an array for these keys."""
    keys = {"attention__head_count": 4, "attention__head_count_kv": 2, "feed_forward_length": 96}
    same = load_model(changed(llama(), **{f"llama__{key}": [value] * 2 for key, value in keys.items()}))
    assert same.blocks[0].attention.spec == load_model(llama()).blocks[0].attention.spec
    for key, value in keys.items():
        with pytest.raises(UnsupportedError, match="differs from layer to layer"):
            load_model(changed(llama(), **{f"llama__{key}": [value, value + 1]}))


def test_saved_rotary_frequencies_are_no_surprise() -> None:
    load_model(with_tensor(llama("safetensors"), "model.layers.0.self_attn.rotary_emb.inv_freq", 8))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama__attention__head_count": 0}, "head_count is 0, must be from 1"),
        ({"llama__attention__head_count": True}, "must be an integer"),
        ({"llama__attention__head_count": [0, 0]}, "head_count is 0, must be from 1"),
        ({"llama__attention__head_count": []}, "must be an integer"),
        ({"llama__attention__head_count_kv": 0}, "head_count_kv is 0"),
        ({"llama__attention__head_count_kv": 3}, "4 query heads cannot share 3 KV heads"),
        ({"llama__attention__head_count_kv": 8}, "head_count_kv is 8, must be from 1 to 4"),
        ({"llama__attention__key_length": 15}, "key_length is 15, must be even"),
        ({"llama__attention__key_length": 1 << 40}, "must be from 2 to 4096"),
        ({"llama__attention__key_length": 18, "llama__attention__value_length": 18}, "attn_q.weight' has shape"),
        ({"llama__block_count": 1 << 31}, "block_count is 2147483648, must be from 1 to 4096"),
        ({"llama__block_count": 4096}, r"blk\.2\.attn_norm\.weight' is missing"),
        ({"llama__block_count": None}, "block_count is missing"),
        ({"llama__block_count": "2"}, "block_count is '2', must be an integer"),
        ({"llama__embedding_length": 0}, "embedding_length is 0"),
        ({"llama__feed_forward_length": -96}, "feed_forward_length is -96"),
        ({"llama__context_length": 1 << 62}, "context_length"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, "epsilon is 0.0"),
        ({"llama__rope__freq_base": 0.0}, "freq_base is 0.0"),
        ({"llama__rope__freq_base": float("inf")}, "freq_base is inf"),
        ({"llama__rope__dimension_count": 17}, "dimension_count is 17"),
        ({"llama__rope__dimension_count": 1 << 40}, "dimension_count"),
        ({"llama__rope__scaling__factor": -2.0}, "factor is -2.0"),
        ({"llama__attention__sliding_window": -1}, "sliding_window is -1"),
    ],
)
def test_hostile_gguf_settings(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load_model(changed(llama(), **metadata))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 6, "head_dim": None}, "64 does not divide into 6 heads"),
        ({"vocab_size": 271}, "has 272 rows, but vocab_size is 271"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 10**400}}, "factor is 1000"),
        ({"rope_scaling": [1]}, "rope_scaling is .*must be an object"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type is 3, must be a string"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "low_freq_factor is 4.0, must be below high_freq_factor",
        ),
        ({"rope_scaling": {"long_factor": [2.0] * 8}}, "short_factor is missing"),
        (
            {"rope_scaling": {"long_factor": [2.0] * 7, "short_factor": [1.0] * 8}},
            r"long_factor is .*must be a list of 8",
        ),
        ({"rope_scaling": {"long_factor": ["2"] * 8, "short_factor": [1.0] * 8}}, "long_factor is .*must be numbers"),
        ({"rope_scaling": {"long_factor": [0.0] * 8, "short_factor": [1.0] * 8}}, "long_factor holds factors outside"),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes', must be true or false"),
        ({"attention_bias": True}, r"q_proj\.bias' is missing"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', must be a number"),
    ],
)
def test_hostile_configs(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load_model(changed(llama("safetensors"), **metadata))


@pytest.mark.parametrize(
    ("model", "kind", "metadata", "message"),
    [
        ("llama", "gguf", {"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 2.0}, "longrope"),
        ("llama", "gguf", {"llama__attention__value_length": 32}, "keys and values of different"),
        ("llama", "safetensors", {"rope_scaling": {"type": "ntk_by_parts", "factor": 2.0}}, "'ntk_by_parts'"),
        ("llama", "safetensors", {"hidden_act": "relu"}, "'relu'"),
        (
            "qwen2_windowed",
            "safetensors",
            {"layer_types": ["full_attention", "linear_attention"]},
            "'linear_attention'",
        ),
        ("gemma3", "safetensors", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_features_that_would_be_ignored_are_refused(
    model: str, kind: str, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        load_model(changed(memory_checkpoint(TINY[model], kind=kind), **metadata))


def test_factors_that_are_no_factors() -> None:
    checkpoint = memory_checkpoint(TINY["llama3"], kind="gguf")
    with pytest.raises(FormatError, match=r"rope_freqs\.weight' holds factors outside"):
        load_model(with_tensor(checkpoint, "rope_freqs.weight", 8))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=8),
    st.dictionaries(st.sampled_from(["factor", "rope_type", "rope_theta"]), st.floats(), max_size=2),
    st.builds(np.zeros, st.integers(0, 3)),
)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(FAMILY_MODELS), st.sampled_from(KINDS))
def test_any_junk_in_the_settings_is_read_or_refused(data: st.DataObject, name: str, kind: str) -> None:
    checkpoint = memory_checkpoint(TINY[name], kind=kind)
    keys = [key for key in checkpoint.metadata if not key.startswith("tokenizer")]
    extra = ["rope_parameters", "layer_types", "max_window_layers", f"{checkpoint.architecture}.rope.freq_base_swa"]
    key = data.draw(st.sampled_from([*keys, *extra]))
    junk = data.draw(JUNK)
    with suppress(FormatError, UnsupportedError):
        load_model(replace(checkpoint, metadata={**checkpoint.metadata, key: junk}))
