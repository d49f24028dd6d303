"""Mamba-2 layers of files of either kind: their sizes and numbers, and what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pagoda.errors import FormatError, PagodaError, UnsupportedError
from pagoda.formats.quantized import as_floats
from pagoda.models.layers import Decoder
from pagoda.models.mamba import mamba_head_dim
from pagoda.models.recurrent import Mamba
from pagoda.models.registry import load_model
from pagoda.models.source import Settings
from tiny_models import TINY, MemoryCheckpoint, changed_checkpoint, memory_checkpoint


def mamba_of(checkpoint: MemoryCheckpoint, layer: int = 0) -> Mamba:
    model = load_model(checkpoint)
    assert isinstance(model, Decoder)
    found = model.blocks[layer].recurrent
    assert isinstance(found, Mamba)
    return found


def changed(kind: str = "gguf", **metadata: Any) -> MemoryCheckpoint:
    return changed_checkpoint(TINY["granite4"], kind, **metadata)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_one_matrix_gives_the_gate_then_what_is_convolved_then_the_steps(kind: str) -> None:
    mamba = mamba_of(memory_checkpoint(TINY["granite4"], kind=kind))
    whole = memory_checkpoint(TINY["granite4"]).tensors["model.layers.0.mamba.in_proj.weight"].rows()
    parts = [mamba.gate, mamba.xbc, mamba.dt]
    assert [len(part.weight.rows()) for part in parts] == [128, 128 + 2 * 2 * 32, 8]
    np.testing.assert_array_equal(np.concatenate([part.weight.rows() for part in parts]), whole)
    assert mamba.state_elements == 8 * 16 * 32 + 3 * (128 + 2 * 2 * 32)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_states_decay_by_minus_the_exponential_of_what_folders_hold(kind: str) -> None:
    mamba = mamba_of(memory_checkpoint(TINY["granite4"], kind=kind))
    held = as_floats(memory_checkpoint(TINY["granite4"]).tensors["model.layers.0.mamba.A_log"])
    np.testing.assert_allclose(as_floats(mamba.decay), -np.exp(held), rtol=1e-6)
    assert mamba.norm is not None
    assert (mamba.decay.shape, mamba.skip.shape, mamba.norm.weight.shape) == ((8,), (8,), (128,))


@pytest.mark.parametrize(
    ("checkpoint", "error", "match"),
    [
        (changed(ssm__inner_size=129), FormatError, "does not divide into 8 heads"),
        (changed(ssm__group_count=3), FormatError, "8 Mamba heads cannot share 3 groups evenly"),
        (changed(ssm__conv_kernel=5), FormatError, "conv1d.*has shape"),
        (changed(ssm__state_size=16), FormatError, "ssm_in.*has shape"),
        (changed("safetensors", mamba_n_groups=3), FormatError, "cannot share 3 groups"),
        (changed("safetensors", time_step_limit=[0.001, 0.1]), UnsupportedError, "only steps without limits"),
        (changed("safetensors", mamba_proj_bias=True), FormatError, "in_proj.bias' is missing"),
    ],
)
def test_what_cannot_be_is_refused(checkpoint: MemoryCheckpoint, error: type[PagodaError], match: str) -> None:
    with pytest.raises(error, match=match):
        load_model(checkpoint)


def test_steps_without_limits_are_served() -> None:
    assert mamba_of(changed("safetensors", time_step_limit=[0.0, float("inf")])).spec.num_heads == 8


def test_a_head_that_is_told_to_be_automatic_is_a_part_of_the_inner_width() -> None:
    sizes = {"mamba_d_head": "auto", "mamba_n_heads": 8, "mamba_expand": 2, "hidden_size": 64}
    assert mamba_head_dim(Settings(sizes)) == 16
    assert mamba_head_dim(Settings({**sizes, "mamba_d_ssm": 256})) == 32
    assert mamba_head_dim(Settings({**sizes, "mamba_d_head": 24})) == 24
