"""Rotary frequencies: their definition, and each scaling at the ends where its value is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pagoda.backends.base import RopeSpec
from pagoda.models import rope
from pagoda.models.registry import load_model
from tiny_models import LLAMA3_SCALING, LONGROPE_SCALING, TINY, memory_checkpoint


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
