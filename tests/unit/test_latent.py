from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paged_run import reference_run
from pagoda.backends.specs import ExpertGroups
from pagoda.errors import FormatError, UnsupportedError
from pagoda.models.latent import latent_copies
from pagoda.models.layers import Experts
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


GROUPS = ("expert_group_count", "expert_group_used_count", "n_group", "topk_group")


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize(
    ("name", "groups"), [("deepseek2_groups", ExpertGroups(4, 2, 1)), ("deepseek3_groups", ExpertGroups(4, 2, 2))]
)
def test_groups_of_experts_are_read_from_either_kind_of_file(name: str, groups: ExpertGroups, kind: str) -> None:
    experts = load_model(memory_checkpoint(TINY[name], kind=kind)).blocks[1].ffn
    assert isinstance(experts, Experts)
    assert experts.spec.groups == groups


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize(
    ("count", "used", "error"),
    [
        (5, 2, "3 of 12 experts cannot be picked from 5 groups"),
        (6, 1, "3 of 12 experts cannot be picked from 6 groups"),
        (12, 3, "3 of 12 experts cannot be picked from 12 groups"),  # whose two best are not there
        (4, 5, "is 5, "),
        (13, 1, "is 13, "),
    ],
)
def test_groups_that_no_model_could_have(kind: str, count: int, used: int, error: str) -> None:
    checkpoint = memory_checkpoint(TINY["deepseek3_groups"], kind=kind)
    keys = [key if kind == "safetensors" else f"deepseek2.{key}" for key in GROUPS[2 * (kind == "safetensors") :][:2]]
    metadata = {**checkpoint.metadata, keys[0]: count, keys[1]: used}
    with pytest.raises(FormatError, match=error):
        load_model(replace(checkpoint, metadata=metadata))


def test_a_method_of_picking_that_is_not_the_familys() -> None:
    checkpoint = memory_checkpoint(TINY["deepseek2_groups"], kind="safetensors")
    greedy = load_model(replace(checkpoint, metadata={**checkpoint.metadata, "topk_method": "greedy"})).blocks[1].ffn
    assert isinstance(greedy, Experts)
    assert greedy.spec.groups is None
    with pytest.raises(UnsupportedError, match="topk_method 'noaux_tc'"):
        load_model(replace(checkpoint, metadata={**checkpoint.metadata, "topk_method": "noaux_tc"}))
