"""Fused nodes: what each backend's fusions make of a forward pass, and what is refused.

Whether they compute what the ops say is tried on random graphs, by each backend's own tests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from op_graphs import ATTENTION, ROPE, SPEC, Bent, Graph, k_of, q_of, vector, weight
from pagoda.backends import fused_nodes as fused
from pagoda.backends.base import Handle, Ops
from pagoda.backends.lowering import Fusions, QkChain, kv_layers, lower, qk_chains
from pagoda.backends.trace import Node, Trace, record
from pagoda.errors import UnsupportedError
from pagoda.models.registry import load_model
from tiny_models import TINY, memory_checkpoint


def fusions(sums_with: Literal["products", "norms"], *, reads_through: bool) -> Fusions:
    return Fusions(lambda node: node["weight"].type, lambda node: reads_through, sums_with)


QUANTIZING = fusions("products", reads_through=True)  # as the CPU backend with block weights
SUMMING = fusions("norms", reads_through=False)  # as the CUDA backend


def lowered(name: str, fusions: Fusions) -> list[fused.FusedNode]:
    return list(lower(record(load_model(memory_checkpoint(TINY[name]))), fusions))


def kinds(nodes: list[fused.FusedNode]) -> list[str]:
    return [type(node).__name__ for node in nodes]


def test_norms_activations_and_sums_go_with_the_products_of_a_backend_that_quantizes() -> None:
    nodes = lowered("llama", QUANTIZING)
    layer = ["Linears", "Attention", "Linears", "Linears", "Linears"]
    assert kinds(nodes) == ["Embed", *2 * layer, "Logits", "HiddenStates"]
    linears = [node for node in nodes if isinstance(node, fused.Linears)]
    assert [type(node.source).__name__ for node in linears] == 2 * ["Norm", "Node", "Norm", "Gated"]
    assert [len(node.products) for node in linears] == 2 * [3, 1, 2, 1]
    assert [node.products[0].residual is not None for node in linears] == 2 * [False, True, False, True]
    for end in nodes[-2:]:  # whose rows are few
        assert isinstance(end, (fused.Logits, fused.HiddenStates))
        assert isinstance(end.source, fused.Norm)


def test_sums_go_with_the_norms_after_them_where_a_backend_says_so() -> None:
    layer = ["Linears", "Attention", "Linears", "AddNorm", "Linears", "Rowwise", "Linears", "AddNorm"]
    nodes = lowered("llama", SUMMING)
    assert kinds(nodes) == ["Embed", "Rowwise", *2 * layer, "Logits", "HiddenStates"]
    norms = [node for node in nodes if isinstance(node, fused.AddNorm)]
    assert [node.x for node in norms[1:]] == [node.sum for node in norms[:-1]]  # one residual stream


def test_norms_after_attention_add_into_the_residual_stream() -> None:
    nodes = lowered("gemma3", QUANTIZING)
    sums = [node for node in nodes if isinstance(node, fused.Rowwise)]
    assert len(sums) == 2 * 7
    assert all(isinstance(node.source, fused.Norm) and node.residual is not None for node in sums)


@pytest.mark.parametrize("fusions", [QUANTIZING, SUMMING])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_every_value_is_made_before_it_is_read(name: str, fusions: Fusions) -> None:
    made: set[Node] = set()
    for node in lowered(name, fusions):
        assert set(fused.values_read(node)) <= made
        parts = node.products if isinstance(node, fused.Linears) else (node,)
        made |= {part.out for part in parts}
        made |= {node.sum} if isinstance(node, fused.AddNorm) else set()


def test_linears_that_read_one_value_unlike_are_nodes_of_their_own() -> None:
    trace = Trace()
    x = trace.embed(weight("table", 40, 64))
    trace.linear(x, weight("a", 64, 64))
    trace.linear(x, weight("b", 64, 64, "Q8_0"))
    trace.linear(x, weight("c", 32, 64))
    nodes = [node for node in lower(trace.nodes, SUMMING) if isinstance(node, fused.Linears)]
    assert [[product.weight.name for product in node.products] for node in nodes] == [["a", "c"], ["b"]]


def test_an_op_that_nothing_is_known_of_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ops, "twist", lambda self, x, turns=1: x, raising=False)
    trace = Trace()
    x = trace.embed(weight("table", 40, 64))
    twisted = trace.twist(x, turns=3)
    nodes = list(lower(trace.nodes, QUANTIZING))
    assert nodes[1] == fused.Call(twisted, "twist", {"x": x, "turns": 3})
    assert list(fused.values_read(nodes[1])) == [x]
    with pytest.raises(AttributeError, match="no op 'shout'"):
        trace.shout(x)


# Attention, and refusals


def test_what_lies_between_a_projection_and_attention() -> None:
    trace = Trace()
    x = trace.embed(weight("table", 40, 64))
    q, k = q_of(trace, x), k_of(trace, x)
    norm = trace.head_norm(q, vector("n", 32), 1e-5, 2)
    turned = trace.rope(norm, 2, ROPE), trace.rope(k, 1, ROPE)
    chains = qk_chains(trace.attention(0, *turned, k_of(trace, x), SPEC))
    assert chains == [QkChain(q, norm, ROPE, (turned[0], norm)), QkChain(k, None, ROPE, (turned[1],))]


def rope_outside(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    return q_of(ops, ops.rope(x, 2, ROPE)), k_of(ops, x), k_of(ops, x)


def head_norm_outside(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    return q_of(ops, ops.head_norm(x, vector("n", 32), 1e-5, 2)), k_of(ops, x), k_of(ops, x)


def norm_after_rope(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    q = ops.head_norm(ops.rope(q_of(ops, x), 2, ROPE), vector("n", 32), 1e-5, 2)
    return q, ops.rope(k_of(ops, x), 1, ROPE), k_of(ops, x)


def queries_turned_alone(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    return ops.rope(q_of(ops, x), 2, ROPE), k_of(ops, x), k_of(ops, x)


def values_that_are_keys(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    k = k_of(ops, x)
    return ops.rope(q_of(ops, x), 2, ROPE), ops.rope(k, 1, ROPE), k


def unlike_eps(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
    q = ops.head_norm(q_of(ops, x), vector("n", 32), 1e-5, 2)
    return q, ops.head_norm(k_of(ops, x), vector("n", 32), 1e-6, 1), k_of(ops, x)


@pytest.mark.parametrize(
    ("bend", "apart"),
    [
        (rope_outside, ["rope"]),
        (head_norm_outside, ["head_norm"]),
        (norm_after_rope, ["rope", "head_norm", "rope"]),
        (queries_turned_alone, ["rope"]),
        (values_that_are_keys, ["rope", "rope"]),
        (unlike_eps, ["head_norm", "head_norm"]),
    ],
)
def test_what_attention_does_not_do_itself_is_done_apart(bend: Any, apart: list[str]) -> None:
    for how in (QUANTIZING, SUMMING):
        nodes = list(lower(record(Bent(bend)), how))
        assert [node.op for node in nodes if isinstance(node, fused.Call)] == apart
        (attention,) = (node for node in nodes if isinstance(node, fused.Attention))
        assert attention.rope is attention.q_norm is attention.k_norm is None


def test_equal_ropes_are_one() -> None:
    """A model may state the rotation of queries and that of keys apart."""

    def bend(ops: Ops, x: Handle) -> tuple[Handle, Handle, Handle]:
        return ops.rope(q_of(ops, x), 2, ROPE), ops.rope(k_of(ops, x), 1, replace(ROPE)), k_of(ops, x)

    (attention,) = (node for node in lower(record(Bent(bend)), SUMMING) if isinstance(node, fused.Attention))
    assert attention.rope is ROPE


@pytest.mark.parametrize("layers", [[], [1], [0, 0], [0, 2]])
def test_each_layer_has_one_attention(layers: list[int]) -> None:
    graph = Graph([ATTENTION, ATTENTION])

    def attentions(layers: list[int]) -> list[Node]:
        return [Node("attention", {"layer": layer, "k": SPEC, "spec": SPEC}, 64, i) for i, layer in enumerate(layers)]

    with pytest.raises(UnsupportedError, match="one attention in each layer"):
        kv_layers(graph, attentions(layers))
    assert kv_layers(graph, attentions([1, 0])) == {0: (0, SPEC), 1: (0, SPEC)}
