"""Rotary frequencies: their definition, and each scaling at the ends where its value is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pagoda.backends.specs import RopeSpec
from pagoda.errors import ConfigError
from pagoda.models import rope
from pagoda.models.registry import load_model
from pagoda.models.rope_override import RopeScaling, override_rope
from tiny_models import TINY, TinyModel, memory_checkpoint
from tiny_specs import LLAMA3_SCALING, LONGROPE_SCALING


def rope_of(kind: str = "safetensors", layer: int = 0, name: str = "llama", **config: Any) -> RopeSpec:
    model = load_model(memory_checkpoint(TINY[name].with_config(**config), kind=kind))
    return model.blocks[layer].attention.rope  # type: ignore[attr-defined]


def test_pair_i_turns_by_theta_to_the_minus_two_i_over_d() -> None:
    found = rope_of(rope_theta=500_000.0, head_dim=16)
    expected = [500_000.0 ** (-2 * i / 16) for i in range(8)]
    np.testing.assert_array_equal(found.inv_freq, np.array(expected).astype(np.float32))
    assert (found.rotary_dim, found.scale) == (16, 1.0)


@pytest.mark.parametrize(
    ("name", "kind", "style"),
    [
        ("llama", "gguf", "interleaved"),
        ("llama", "safetensors", "neox"),
        ("mistral", "safetensors", "neox"),
        ("qwen2", "gguf", "neox"),
        ("qwen3", "gguf", "neox"),
        ("gemma3", "gguf", "neox"),
    ],
)
def test_styles(name: str, kind: str, style: str) -> None:
    assert rope_of(kind, name=name).style == style


def test_only_a_part_of_each_head_may_turn() -> None:
    assert rope_of(partial_rotary_factor=0.5).rotary_dim == 8


def test_linear_scaling_slows_every_pair() -> None:
    plain = rope_of().inv_freq
    for kind in ("gguf", "safetensors"):
        scaled = rope_of(kind, rope_scaling={"rope_type": "linear", "factor": 4.0}).inv_freq
        np.testing.assert_allclose(scaled, plain / 4, rtol=1e-7)
    np.testing.assert_allclose(rope_of(rope_scaling={"type": "linear", "factor": 4.0}).inv_freq, plain / 4, rtol=1e-7)


def test_llama3_keeps_fast_pairs_slows_slow_ones_and_blends_between() -> None:
    base = 2 * math.pi / np.array([10.0, 30.0, 100.0])  # wavelengths of 10, 30 and 100 tokens
    found = rope.llama3_frequencies(base, factor=8.0, low=1.0, high=4.0, original=100.0)
    keep = (100 / 30 - 1) / (4 - 1)
    np.testing.assert_allclose(found / base, [1.0, keep + (1 - keep) / 8, 1 / 8])


def test_llama3_factors_in_a_tensor_equal_those_from_the_settings() -> None:
    from_config, from_tensor = (rope_of(kind, name="llama3").inv_freq for kind in ("safetensors", "gguf"))
    np.testing.assert_allclose(from_tensor, from_config, rtol=1e-6)
    assert LLAMA3_SCALING["factor"] == pytest.approx(float(rope_of().inv_freq[-1] / from_config[-1]))


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize(("served", "factors"), [(64, "short_factor"), (65, "long_factor"), (None, "long_factor")])
def test_longrope_goes_by_the_context_that_is_served(kind: str, served: int | None, factors: str) -> None:
    model = load_model(memory_checkpoint(TINY["phi3_long"], kind=kind), max_context=served)
    found = model.blocks[0].attention.rope
    base = rope.frequencies(12, 10_000.0)  # three quarters of a head of 16
    np.testing.assert_allclose(found.inv_freq, base / LONGROPE_SCALING[factors], rtol=1e-6)
    assert found.scale == pytest.approx(math.sqrt(1 + math.log(256 / 64) / math.log(64)), rel=1e-6)


@pytest.mark.parametrize("type", ["su", "yarn", "longrope"])
def test_longrope_is_told_by_its_factors_and_may_state_its_scale(type: str) -> None:
    scaling = {**LONGROPE_SCALING, "rope_type": type, "attention_factor": 1.25}
    found = rope_of(name="phi3_long", rope_scaling=scaling)
    assert found.scale == 1.25
    np.testing.assert_array_equal(found.inv_freq, rope_of(name="phi3_long").inv_freq)


def test_yarn_keeps_the_first_pairs_and_slows_the_last() -> None:
    base = rope.frequencies(64, 10_000.0)
    ratio = rope.yarn_frequencies(base, 10_000.0, factor=4.0, original=2048, fast=32.0, slow=1.0) / base
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(0.25)
    assert (np.diff(ratio) <= 0).all()
    assert 0.3 < ratio[len(ratio) // 2] < 1.0


def test_yarn_scales_queries_and_keys() -> None:
    spec = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert rope_of(rope_scaling=spec).scale == pytest.approx(0.1 * math.log(4) + 1)
    assert rope_of("gguf", rope_scaling=spec).scale == pytest.approx(0.1 * math.log(4) + 1)
    assert rope_of(rope_scaling={**spec, "attention_factor": 1.5}).scale == 1.5
    deep = {**spec, "mscale": 0.707, "mscale_all_dim": 1.0}
    assert rope_of(rope_scaling=deep).scale == pytest.approx((0.0707 * math.log(4) + 1) / (0.1 * math.log(4) + 1))


def test_gemma_turns_sliding_layers_by_a_theta_of_their_own() -> None:
    for kind in ("gguf", "safetensors"):
        local, full = (rope_of(kind, layer, "gemma3").inv_freq for layer in (0, 5))
        np.testing.assert_allclose(local, rope.frequencies(32, 10_000.0), rtol=1e-6)
        np.testing.assert_allclose(full, rope.frequencies(32, 1_000_000.0) / 8, rtol=1e-6)


# Of head size 16 and theta 10000, as transformers 5.24 computes them.
YARN_4_OF_1024 = [1.0, 0.316228, 0.08125, 0.019764, 0.004375, 0.000791, 0.00025, 7.9e-05]
LLAMA3_8_OF_4096 = [1.0, 0.316228, 0.1, 0.031623, 0.01, 0.001374, 0.000125, 4e-05]
PLAIN = [1.0, 0.316228, 0.1, 0.031623, 0.01, 0.003162, 0.001, 0.000316]
DYNAMIC_2_AT_TWICE = [1.0, 0.270296, 0.07306, 0.019748, 0.005338, 0.001443, 0.00039, 0.000105]


def served(context: int | None, kind: str = "safetensors", **config: Any) -> RopeSpec:
    model = load_model(memory_checkpoint(TINY["llama"].with_config(**config), kind=kind), context)
    return model.blocks[0].attention.rope


def test_yarn_without_a_factor_takes_the_ratio_of_the_contexts() -> None:
    scaling = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024}
    found = rope_of(max_position_embeddings=4096, rope_scaling=scaling)
    np.testing.assert_allclose(found.inv_freq, YARN_4_OF_1024, atol=5e-7)
    assert found.scale == pytest.approx(1.138629436111989)


def test_llama3_without_an_original_context_takes_the_stated_one() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found = rope_of(max_position_embeddings=4096, rope_scaling=scaling)
    np.testing.assert_allclose(found.inv_freq, LLAMA3_8_OF_4096, atol=5e-7)


@pytest.mark.parametrize(("context", "expected"), [(None, PLAIN), (32, PLAIN), (128, DYNAMIC_2_AT_TWICE)])
def test_dynamic_scaling_is_of_the_context_that_is_served(context: int | None, expected: list[float]) -> None:
    found = served(context, max_position_embeddings=64, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    np.testing.assert_allclose(found.inv_freq, expected, atol=5e-7)


@pytest.mark.parametrize(
    ("name", "context"),
    [("llama", 2048), ("mistral", 131_072), ("qwen2", 32_768), ("qwen3", 32_768), ("gemma3", 131_072)],
)
def test_a_context_that_is_not_stated_is_that_of_the_configuration_class(name: str, context: int) -> None:
    """transformers 5.24: LlamaConfig().max_position_embeddings and so on."""
    spec = TINY[name]
    config = {key: value for key, value in spec.config.items() if key != "max_position_embeddings"}
    assert load_model(memory_checkpoint(TinyModel(spec.architecture, config))).max_context == context


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize(("wanted", "context"), [(None, 64), (32, 64), (200, 200), (256, 256), (257, 64)])
def test_a_scaling_lets_the_context_be_longer_where_that_is_asked_for(
    kind: str, wanted: int | None, context: int
) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    spec = TINY["llama"].with_config(max_position_embeddings=64, rope_scaling=scaling)
    assert load_model(memory_checkpoint(spec, kind=kind), wanted).max_context == context


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_a_users_scaling_replaces_the_files(kind: str) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    stated = TINY["llama"].with_config(max_position_embeddings=1024, rope_scaling=scaling)
    plain = memory_checkpoint(TINY["llama"].with_config(max_position_embeddings=1024), kind=kind)
    found = load_model(override_rope(plain, "yarn:4", None, None))
    assert found.max_context == 4096
    np.testing.assert_allclose(found.blocks[0].attention.rope.inv_freq, YARN_4_OF_1024, atol=5e-7)
    none = load_model(override_rope(memory_checkpoint(stated, kind=kind), "none", None, None))
    np.testing.assert_allclose(none.blocks[0].attention.rope.inv_freq, PLAIN, atol=5e-7)
    theta = load_model(override_rope(plain, None, 1e6, 2000), 2000)
    np.testing.assert_allclose(theta.blocks[0].attention.rope.inv_freq[1], 1e6 ** (-1 / 8), rtol=1e-6)
    assert theta.max_context == 2000


@pytest.mark.parametrize("text", ["", "yarn", "yarn:x", "ntk:2", "yarn:0.5", "yarn:4:0", "yarn:4:64:1", "linear:inf"])
def test_a_scaling_that_cannot_be_read_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="such as yarn:4"):
        RopeScaling.parse(text)
