from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paged_run import reference_run
from pagoda.errors import UnsupportedError
from pagoda.models.latent import latent_copies
from pagoda.models.registry import load_model
from tiny_models import TINY, MemoryCheckpoint, memory_checkpoint

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def logits(checkpoint: MemoryCheckpoint) -> np.ndarray:
    return reference_run(load_model(checkpoint)).step({"a": PROMPT})["a"]


def older(checkpoint: MemoryCheckpoint, layers: int) -> MemoryCheckpoint:
    """As converters wrote GGUF files before they cut the matrix of keys and values in two."""
    tensors = dict(checkpoint.tensors)
    for layer in range(layers):
        keys, values = (tensors.pop(f"blk.{layer}.attn_{of}_b.weight") for of in "kv")
        floats = [raw.data.view("<f4").reshape(raw.shape) for raw in (keys, values)]
        heads = [floats[0].swapaxes(1, 2), floats[1]]
        whole = np.ascontiguousarray(np.concatenate(heads, axis=1))
        shape = (whole.shape[0] * whole.shape[1], whole.shape[2])
        name = f"blk.{layer}.attn_kv_b.weight"
        tensors[name] = replace(keys, name=name, shape=shape, data=whole.view(np.uint8).reshape(-1))
    metadata = dict(checkpoint.metadata)
    for of in ("key", "value"):
        metadata[f"deepseek2.attention.{of}_length"] = metadata.pop(f"deepseek2.attention.{of}_length_mla")
    return replace(checkpoint, tensors=tensors, metadata=metadata)


@pytest.mark.parametrize("name", ["deepseek2", "deepseek3", "glm4lite"])
def test_gguf_files_from_before_the_matrix_was_cut_are_the_same_model(name: str) -> None:
    checkpoint = memory_checkpoint(TINY[name], kind="gguf")
    np.testing.assert_array_equal(logits(older(checkpoint, TINY[name].config["num_hidden_layers"])), logits(checkpoint))


def test_a_token_keeps_one_vector_for_all_heads() -> None:
    model = load_model(memory_checkpoint(TINY["deepseek2"]))
    assert (model.num_kv_heads, model.head_dim) == (1, 32 + 32)


@pytest.mark.parametrize(("heads", "copies"), [(16, 1), (20, 1), (24, 1), (32, 2), (64, 4), (128, 8), (29, 29)])
def test_no_vector_is_shared_by_more_heads_than_kernels_take(heads: int, copies: int) -> None:
    assert latent_copies(heads) == copies


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_experts_picked_by_groups_are_refused(kind: str) -> None:
    checkpoint = memory_checkpoint(TINY["deepseek3"], kind=kind)
    key = "deepseek2.expert_group_count" if kind == "gguf" else "n_group"
    with pytest.raises(UnsupportedError, match="picked by groups, here of 2"):
        load_model(replace(checkpoint, metadata={**checkpoint.metadata, key: 2}))
