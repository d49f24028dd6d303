"""A recorded forward pass: every op a node, in the order stated, that knows what it reads and who reads it."""

from __future__ import annotations

import pytest

from pagoda.backends import trace as nodes
from pagoda.backends.base import AttentionSpec
from pagoda.backends.trace import Trace
from pagoda.models.registry import load_model
from tiny_models import DENSE, TINY, memory_checkpoint


def trace_of(name: str) -> Trace:
    trace = Trace()
    load_model(memory_checkpoint(TINY[name])).forward(trace)
    return trace


@pytest.mark.parametrize("name", DENSE)
def test_nodes_stand_in_order_and_know_their_readers(name: str) -> None:
    trace = trace_of(name)
    assert [node.index for node in trace.nodes] == list(range(len(trace.nodes)))
    for node in trace.nodes:
        assert all(source.index < node.index for source in node.inputs)
        for user in node.users:
            assert user.inputs.count(node) == node.users.count(user)
    assert [node for node in trace.nodes if not node.users] == trace.nodes[-1:]  # nothing is computed in vain


def test_ops_of_one_layer() -> None:
    kinds = [type(node).__name__ for node in trace_of("llama").nodes]
    attention = ["Norm", "Linear", "Rope", "Linear", "Rope", "Linear", "Attention", "Linear", "Add"]
    feed_forward = ["Norm", "Linear", "Linear", "Gated", "Linear", "Add"]
    assert kinds == ["Embed", *2 * (attention + feed_forward), "Norm", "Logits"]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_columns_are_those_of_the_values(name: str) -> None:
    config = TINY[name].config
    hidden, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    trace = trace_of(name)
    for kind, columns in [
        (nodes.Embed, hidden),
        (nodes.Attention, q),
        (nodes.Add, hidden),
        (nodes.Gated, ff),
        (nodes.Logits, vocab),
    ]:
        assert {node.columns for node in trace.nodes if isinstance(node, kind)} == {columns}
    for node in trace.nodes:
        if isinstance(node, nodes.Linear):
            assert (node.columns, node.inputs[0].columns) == node.weight.shape


def test_the_only_user() -> None:
    trace = Trace()
    table = memory_checkpoint(TINY["llama"]).tensors["model.embed_tokens.weight"]
    x = trace.embed(table, 2.0)
    assert x.only_user is None
    y = trace.add(x, x)
    assert x.only_user is None  # it is read twice
    z = trace.attention(3, y, x, x, AttentionSpec(4, 4, 16, 0.25))
    assert y.only_user is z
    assert (x.scale, z.layer, z.inputs) == (2.0, 3, (y, x, x))  # type: ignore[attr-defined]
