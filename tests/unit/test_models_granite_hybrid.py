"""Granite 4 and its relatives: which layers attend, whether they see positions, shared experts, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.errors import FormatError, PagodaError, UnsupportedError
from pagoda.models.layers import Decoder, Experts, FeedForward
from pagoda.models.registry import load_model
from tiny_models import TINY, MemoryCheckpoint, changed_checkpoint, memory_checkpoint


def changed(name: str = "granite4", kind: str = "safetensors", **metadata: Any) -> MemoryCheckpoint:
    return changed_checkpoint(TINY[name], kind, **metadata)


def kinds(model: Decoder) -> str:
    return "".join("a" if block.attention is not None else "s" for block in model.blocks)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize(("name", "expected"), [("granite4", "ssasa"), ("bamba", "ssasa"), ("granitemoe", "aa")])
def test_which_layers_attend(name: str, expected: str, kind: str) -> None:
    model = load_model(memory_checkpoint(TINY[name], kind=kind))
    assert kinds(model) == expected
    assert model.is_hybrid == ("s" in expected)


def test_transformers_of_today_calls_layers_otherwise() -> None:
    names = {"mamba": "linear_attention", "attention": "full_attention"}
    types = [names[kind] for kind in TINY["granite4"].config["layer_types"]]
    assert kinds(load_model(changed(layer_types=types))) == "ssasa"
    assert kinds(load_model(changed(layer_types=None, layers_block_type=types))) == "ssasa"


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize(
    ("name", "sees"), [("granite4", False), ("granite4_attention", True), ("granitemoe", True), ("bamba", True)]
)
def test_attention_sees_positions_where_the_file_says_so(name: str, sees: bool, kind: str) -> None:
    model = load_model(memory_checkpoint(TINY[name], kind=kind))
    assert [attention.rope is not None for attention in model.attentions.values()] == [sees] * len(model.attentions)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_the_shared_expert_works_beside_the_others_or_alone(kind: str) -> None:
    mixed = load_model(memory_checkpoint(TINY["granite4"], kind=kind)).blocks[0].ffn
    assert isinstance(mixed, Experts)
    assert mixed.shared is not None
    assert mixed.shared_gate is None
    assert (mixed.shared.up.weight.shape, mixed.up[0].shape) == ((64, 64), (32, 64))
    plain = load_model(memory_checkpoint(TINY["granite4_dense"], kind=kind)).blocks[0].ffn
    assert isinstance(plain, FeedForward)
    assert plain.up.weight.shape == (96, 64)
    alone = load_model(memory_checkpoint(TINY["granitemoe"], kind=kind)).blocks[0].ffn
    assert isinstance(alone, Experts)
    assert alone.shared is None


def test_what_is_added_is_scaled_but_for_what_mamba_normalizes() -> None:
    """The stream is kept divided by the residual multiplier, 0.4, and its norms know it."""
    model = load_model(memory_checkpoint(TINY["granite4"]))
    norm, mamba = model.blocks[0].attn_norm, model.blocks[0].recurrent
    assert norm is not None
    assert norm.eps == pytest.approx(1e-5 / 0.4**2)
    assert mamba.norm.eps == 1e-5  # type: ignore[union-attr]
    assert model.embedding_scale == pytest.approx(6.0 / 0.4)


@pytest.mark.parametrize(
    ("checkpoint", "error", "match"),
    [
        (changed(layer_types=["mamba"] * 5), FormatError, "no layer has attention"),
        (changed(layer_types=["mamba"] * 4 + ["conv"]), FormatError, "must be of mamba and attention"),
        (changed(layer_types=["mamba"] * 4), FormatError, "must be a list of 5"),
        (changed(kind="gguf", attention__head_count_kv=[0, 0, 2, 0, 1]), UnsupportedError, "differs between layers"),
    ],
)
def test_what_cannot_be_is_refused(checkpoint: MemoryCheckpoint, error: type[PagodaError], match: str) -> None:
    with pytest.raises(error, match=match):
        load_model(checkpoint)
