"""Nemotron-H: layers of one part each, told by letters or names, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.errors import FormatError, PagodaError, UnsupportedError
from pagoda.models.layers import Block
from pagoda.models.registry import load_model
from tiny_models import TINY, MemoryCheckpoint, changed_checkpoint, memory_checkpoint

NAMES = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}


def changed(kind: str = "safetensors", **metadata: Any) -> MemoryCheckpoint:
    return changed_checkpoint(TINY["nemotron_h"], kind, **metadata)


def letter(block: Block) -> str:
    parts = {"*": block.attention, "M": block.recurrent, "-": block.ffn}
    (found,) = (sign for sign, part in parts.items() if part is not None)
    return found


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_each_layer_is_one_part(kind: str) -> None:
    model = load_model(memory_checkpoint(TINY["nemotron_h"], kind=kind))
    assert "".join(map(letter, model.blocks)) == "M-M*-MM*"
    assert [group.layers for group in model.kv_groups] == [(3, 7)]


def test_layers_may_be_named() -> None:
    named = [NAMES[sign] for sign in "M-M*-MM*"]
    model = load_model(changed(hybrid_override_pattern=None, num_hidden_layers=None, layers_block_type=named))
    assert "".join(map(letter, model.blocks)) == "M-M*-MM*"


@pytest.mark.parametrize(
    ("checkpoint", "error", "match"),
    [
        (changed(hybrid_override_pattern="MEM*-MM*"), UnsupportedError, "mixtures of experts"),
        (changed(hybrid_override_pattern="MXM*-MM*"), FormatError, "said to be 'X'"),
        (changed(hybrid_override_pattern=None), FormatError, "neither hybrid_override_pattern nor"),
        (changed("gguf", feed_forward_length=[0, 96, 0, 96, 96, 0, 0, 0]), FormatError, "both KV heads and"),
    ],
)
def test_what_cannot_be_is_refused(checkpoint: MemoryCheckpoint, error: type[PagodaError], match: str) -> None:
    with pytest.raises(error, match=match):
        load_model(checkpoint)
