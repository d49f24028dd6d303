"""Ops with a state: what they keep of a sequence, and what the native stages of their names are told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pagoda.backends.trace import Node

OPS = ("short_conv", "delta_rule", "selective_scan")
Key = tuple[str, int]  # op, layer


def state_shapes(nodes: Iterable[Node]) -> dict[Key, tuple[int, ...]]:
    """For each op with a state, the shape of the float32 numbers that it keeps of a sequence."""
    return {(node.op, node["layer"]): _shape(node) for node in nodes if node.op in OPS}


def _shape(node: Node) -> tuple[int, ...]:
    if node.op == "short_conv":
        columns, taps = node["weight"].shape
        return taps - 1, columns
    spec = node["spec"]
    if node.op == "selective_scan":
        return spec.num_heads, spec.state_dim, spec.head_dim
    return spec.num_v_heads, spec.k_dim, spec.v_dim


def stage_arguments(op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the names of the stage's fields; those of ops without a state as they are."""
    if op not in OPS:
        return dict(arguments)
    given = {name: value for name, value in arguments.items() if name not in ("layer", "spec")}
    if op == "short_conv":
        weight = given["weight"]
        return given | {"taps": weight.shape[1], "weight": replace(weight, shape=(math.prod(weight.shape),))}
    spec = arguments["spec"]
    if op == "selective_scan":
        heads = {"heads": spec.num_heads, "head_dim": spec.head_dim}
        return given | heads | {"groups": spec.num_groups, "state_dim": spec.state_dim}
    heads = {"k_heads": spec.num_k_heads, "v_heads": spec.num_v_heads}
    return given | heads | {"k_dim": spec.k_dim, "v_dim": spec.v_dim, "tiled": spec.tiled}
