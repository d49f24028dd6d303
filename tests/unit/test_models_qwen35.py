"""Qwen3.5's files: which layers are recurrent, what is left out, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pagoda.adapters.place import Base
from pagoda.cli.inspect import layers_of
from pagoda.errors import FormatError, PagodaError, UnsupportedError
from pagoda.models import qwen35
from pagoda.models.layers import Attention, Decoder, Experts
from pagoda.models.recurrent import DeltaNet
from pagoda.models.registry import load_model
from pagoda.types import RawTensor
from tiny_models import TINY, MemoryCheckpoint, changed_checkpoint, memory_checkpoint


def changed(name: str = "qwen35", kind: str = "gguf", **metadata: Any) -> MemoryCheckpoint:
    return changed_checkpoint(TINY[name], kind, **metadata)


def with_tensors(checkpoint: MemoryCheckpoint, *names: str) -> MemoryCheckpoint:
    data = np.zeros(64, np.uint8)
    return replace(checkpoint, tensors={**checkpoint.tensors, **{n: RawTensor(n, "F32", (16,), data) for n in names}})


def kinds(model: Decoder) -> str:
    return "".join("s" if isinstance(block.recurrent, DeltaNet) else "a" for block in model.blocks)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_three_layers_in_four_have_a_state(kind: str) -> None:
    assert kinds(load_model(memory_checkpoint(TINY["qwen35"], kind=kind))) == "sssas"


def test_files_that_say_how_often_mean_the_same() -> None:
    assert kinds(load_model(changed(attention__recurrent_layers=None))) == "sssas"
    assert kinds(load_model(changed(kind="safetensors", layer_types=None))) == "sssas"


def test_keys_and_values_are_those_of_layers_with_attention() -> None:
    model = load_model(memory_checkpoint(TINY["qwen35"]))
    assert [group.layers for group in model.kv_groups] == [(3,)]
    assert model.is_hybrid


def test_queries_and_their_gate_stand_by_turns_in_one_matrix() -> None:
    attention = load_model(memory_checkpoint(TINY["qwen35"])).attention
    whole = memory_checkpoint(TINY["qwen35"]).tensors["model.layers.3.self_attn.q_proj.weight"].rows()
    assert isinstance(attention, Attention)
    assert attention.gate is not None
    np.testing.assert_array_equal(attention.q.weight.rows()[:32], whole[:32])
    np.testing.assert_array_equal(attention.gate.weight.rows()[:32], whole[32:64])
    np.testing.assert_array_equal(attention.q.weight.rows()[32:64], whole[64:96])


def test_in_gguf_value_heads_stand_in_another_order() -> None:
    specs = {}
    for kind in ("gguf", "safetensors"):
        net = load_model(memory_checkpoint(TINY["qwen35"], kind=kind)).blocks[0].recurrent
        assert isinstance(net, DeltaNet)
        specs[kind] = [net.spec.k_head(j) for j in range(6)]
    assert specs == {"gguf": [0, 1, 0, 1, 0, 1], "safetensors": [0, 0, 0, 1, 1, 1]}


def test_a_shared_expert_works_beside_the_others() -> None:
    ffn = load_model(memory_checkpoint(TINY["qwen35moe"])).blocks[0].ffn
    assert isinstance(ffn, Experts)
    assert ffn.shared is not None
    assert ffn.shared_gate is not None
    assert ffn.shared_gate.weight.shape == (1, 64)


def test_of_a_model_that_sees_the_language_part_is_served() -> None:
    plain = memory_checkpoint(TINY["qwen35"])
    tensors = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in plain.tensors.items()}
    config = {"model_type": "qwen3_5", "text_config": dict(plain.metadata), "tie_word_embeddings": False}
    whole = with_tensors(
        replace(plain, metadata=config, tensors=tensors), "model.visual.pos_embed.weight", "mtp.fc.weight"
    )
    assert kinds(load_model(whole)) == "sssas"


def test_in_gguf_blocks_that_predict_several_tokens_are_left_out() -> None:
    layers = [True, True, True, False, True, False]
    checkpoint = changed(block_count=6, nextn_predict_layers=1, attention__recurrent_layers=layers)
    assert (
        kinds(load_model(with_tensors(checkpoint, "blk.5.nextn.eh_proj.weight", "blk.5.attn_norm.weight"))) == "sssas"
    )


@pytest.mark.parametrize(
    ("checkpoint", "error", "match"),
    [
        (changed(ssm__inner_size=97), FormatError, "does not divide into 6 heads"),
        (changed(ssm__group_count=4), FormatError, "cannot share 4 key heads evenly"),
        (changed(ssm__conv_kernel=5), FormatError, "conv1d.*has shape"),
        (changed(kind="safetensors", layer_types=["mamba"] * 5), FormatError, "linear_attention and full_attention"),
        (changed(attention__recurrent_layers=[True] * 5), FormatError, "no layer has attention"),
        (changed(nextn_predict_layers=5), FormatError, "nextn_predict_layers"),
        (with_tensors(changed(), "blk.0.ssm_d.weight"), UnsupportedError, "ssm_d"),
    ],
)
def test_what_cannot_be_is_refused(checkpoint: MemoryCheckpoint, error: type[PagodaError], match: str) -> None:
    with pytest.raises(error, match=match):
        load_model(checkpoint)


def test_inspect_says_which_layers_have_a_state_and_what_is_left_out() -> None:
    layers = [True, True, True, False, True, False]
    checkpoint = changed(block_count=6, nextn_predict_layers=1, attention__recurrent_layers=layers)
    found = layers_of(with_tensors(checkpoint, "blk.5.nextn.eh_proj.weight"))  # type: ignore[arg-type]
    assert (found["attention_layers"], found["recurrent_layers"]) == (1, 4)
    assert found["state_bytes"] == 4 * 4 * (6 * 16 * 16 + 3 * (2 * 2 * 16 + 6 * 16))
    assert found["left_out"] == []
    assert found["head"].startswith("not used: tensor 'blk.5.")


def test_adapters_of_queries_meet_their_gates_too() -> None:
    model = load_model(memory_checkpoint(TINY["qwen35"]))
    base = Base(model, qwen35.DENSE, False, "qwen35")
    attention = model.blocks[3].attention
    assert base.linears("model.layers.3.self_attn.q_proj", "attn_q", 3) == (attention.q, attention.gate)
