from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paged_run import PagedRun, reference_run
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.reference import ReferenceBackend
from pagoda.backends.specs import ExpertGroups, KVType
from pagoda.errors import FormatError, UnsupportedError
from pagoda.models.layers import Experts
from pagoda.models.registry import load_model
from pagoda.types import BLOCK_SIZE
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


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int16", "int8"])
@pytest.mark.parametrize("name", ["deepseek3", "mistral4"])
def test_which_is_kept_once_as_key_and_value(name: str, kv_type: KVType) -> None:
    model = load_model(memory_checkpoint(TINY[name]))
    loaded = CpuBackend(threads=1).load(model, max_batch_tokens=4, max_batch_seqs=1, kv_type=kv_type)
    each = {"f32": 4, "f16": 2, "int16": 2, "int8": 1}[kv_type] * 64 + (4 if kv_type in ("int16", "int8") else 0)
    assert loaded.block_bytes(0) == model.num_layers * BLOCK_SIZE * each
    numpy = ReferenceBackend().load(model, max_batch_tokens=4, max_batch_seqs=1, kv_type=kv_type)
    assert numpy.block_bytes(0) == model.num_layers * BLOCK_SIZE * 4 * 64


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


@pytest.mark.parametrize("kv_type", ["f32", "int16"])
@pytest.mark.parametrize("heads", [30, 29])
def test_more_heads_than_kernels_take_at_once_share_a_vector(heads: int, kv_type: KVType) -> None:
    spec = TINY["deepseek3"].with_config(num_attention_heads=heads, num_key_value_heads=heads)
    model = load_model(memory_checkpoint(spec))
    loaded = CpuBackend(threads=2).load(model, max_batch_tokens=64, max_batch_seqs=64, kv_type=kv_type)
    prompt = [(7 * i) % 90 for i in range(40)]
    got = PagedRun(model, loaded).step({"a": prompt})["a"]
    expected = reference_run(model).step({"a": prompt})["a"]
    np.testing.assert_allclose(got, expected, atol=2e-4 if kv_type == "f32" else 2e-2)
