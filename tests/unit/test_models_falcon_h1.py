"""Falcon-H1: attention and Mamba-2 in each layer, and what is multiplied where."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.cli.inspect import layers_of
from pagoda.errors import FormatError, PagodaError, UnsupportedError
from pagoda.models.falcon_h1 import Multipliers, read_multipliers
from pagoda.models.family import ModelFile
from pagoda.models.recurrent import Mamba
from pagoda.models.registry import family_of, load_model
from tiny_models import TINY, MemoryCheckpoint, changed_checkpoint, memory_checkpoint


def changed(kind: str = "safetensors", **metadata: Any) -> MemoryCheckpoint:
    return changed_checkpoint(TINY["falcon_h1"], kind, **metadata)


def multipliers(checkpoint: MemoryCheckpoint) -> Multipliers:
    return read_multipliers(ModelFile(checkpoint, family_of(checkpoint)))


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_each_layer_has_attention_and_a_state(kind: str) -> None:
    checkpoint = memory_checkpoint(TINY["falcon_h1"], kind=kind)
    model = load_model(checkpoint)
    assert model.is_hybrid
    assert [group.layers for group in model.kv_groups] == [(0, 1, 2)]
    found = layers_of(checkpoint)  # type: ignore[arg-type]
    assert (found["attention_layers"], found["recurrent_layers"]) == (3, 3)


def test_weights_of_gguf_files_are_multiplied_already() -> None:
    assert multipliers(memory_checkpoint(TINY["falcon_h1"], kind="gguf")) == Multipliers()
    assert multipliers(memory_checkpoint(TINY["falcon_h1"])).mamba_parts == (0.9, 1.1, 0.8, 1.2, 0.7)
    assert multipliers(changed(ssm_multipliers=None, mlp_multipliers=None)).ffn_down == 1.0


@pytest.mark.parametrize(("name", "has_norm"), [("falcon_h1", True), ("falcon_h1_plain", False)])
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_the_norm_after_the_scan_may_be_missing(name: str, has_norm: bool, kind: str) -> None:
    mamba = load_model(memory_checkpoint(TINY[name], kind=kind)).blocks[0].recurrent
    assert isinstance(mamba, Mamba)
    assert (mamba.norm is not None) == has_norm


def test_the_norm_may_stand_before_the_gate() -> None:
    mamba = load_model(changed(mamba_norm_before_gate=True)).blocks[0].recurrent
    assert isinstance(mamba, Mamba)
    assert mamba.norm_first


@pytest.mark.parametrize(
    ("checkpoint", "error", "match"),
    [
        (changed(attention_bias=True), UnsupportedError, "attention_bias: Falcon-H1 with biases"),
        (changed(ssm_multipliers=[1.0] * 4), FormatError, "must be a list of 5"),
        (changed(key_multiplier=-1.0), FormatError, "key_multiplier"),
    ],
)
def test_what_cannot_be_is_refused(checkpoint: MemoryCheckpoint, error: type[PagodaError], match: str) -> None:
    with pytest.raises(error, match=match):
        load_model(checkpoint)
