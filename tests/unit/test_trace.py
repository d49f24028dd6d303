"""A recorded forward pass: every op a node, in the order stated, that knows what it reads and who reads it."""

from __future__ import annotations

import pytest

from pagoda.backends.specs import AttentionSpec
from pagoda.backends.trace import Node, Trace, record
from pagoda.models.registry import load_model
from tiny_models import TINY, memory_checkpoint


def nodes_of(name: str) -> list[Node]:
    return record(load_model(memory_checkpoint(TINY[name])))


@pytest.mark.parametrize("name", TINY)
def test_nodes_stand_in_order_and_know_their_readers(name: str) -> None:
    nodes = nodes_of(name)
    assert [node.index for node in nodes] == list(range(len(nodes)))
    for node in nodes:
        assert all(source.index < node.index for source in node.inputs)
        for user in node.users:
            assert user.inputs.count(node) == node.users.count(user)
    assert [node for node in nodes if not node.users] == nodes[-2:]  # nothing is computed in vain


def test_ops_of_one_layer() -> None:
    attention = ["rms_norm", "linear", "rope", "linear", "linear", "rope", "attention", "linear", "add"]
    feed_forward = ["rms_norm", "linear", "linear", "gated", "linear", "add"]
    ops = [node.op for node in nodes_of("llama")]
    assert ops == ["embed", *2 * (attention + feed_forward), "rms_norm", "logits", "hidden_states"]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_columns_are_those_of_the_values(name: str) -> None:
    config = TINY[name].config
    hidden, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    nodes = nodes_of(name)
    for op, columns in [("embed", hidden), ("attention", q), ("add", hidden), ("gated", ff), ("logits", vocab)]:
        assert {node.columns for node in nodes if node.op == op} == {columns}
    for node in nodes:
        if node.op == "linear":
            assert (node.columns, node.inputs[0].columns) == node["weight"].shape


def test_the_only_user() -> None:
    trace = Trace()
    table = memory_checkpoint(TINY["llama"]).tensors["model.embed_tokens.weight"]
    x = trace.embed(table, 2.0)
    assert x.only_user is None
    y = trace.add(x, x)
    assert x.only_user is None  # it is read twice
    z = trace.attention(3, y, x, x, AttentionSpec(4, 4, 16, 0.25))
    assert y.only_user is z
    assert (x["scale"], z["layer"], z.inputs) == (2.0, 3, (y, x, x))


def test_weights_of_an_op() -> None:
    trace, checkpoint = Trace(), memory_checkpoint(TINY["qwen2"])
    table, bias = (
        checkpoint.tensors[f"model.{name}"] for name in ("embed_tokens.weight", "layers.0.self_attn.q_proj.bias")
    )
    x = trace.embed(table)
    assert list(x.tensors) == [table]
    assert list(trace.linear(x, table, bias).tensors) == [table, bias]
    assert list(trace.add(x, x).tensors) == []
