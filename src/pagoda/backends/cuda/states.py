"""States of recurrent layers on the device: of each op a tensor [states, …] float32, by the shapes of
`backends/states.py`.

Heads lie turned around, as [H, v_dim, k_dim] and [H, head_dim, state_dim]: what is summed over is read side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch

from pagoda.backends.cuda.kv import KVLayer
from pagoda.backends.states import Key, state_shapes
from pagoda.backends.trace import Node


def device_shapes(nodes: Iterable[Node]) -> dict[Key, tuple[int, ...]]:
    """What each op with a state keeps of a sequence, as it lies here."""
    return {key: _as_it_lies(key[0], shape) for key, shape in state_shapes(nodes).items()}


def _as_it_lies(op: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[1]) if op in ("delta_rule", "selective_scan") else shape


def state_bytes(shapes: Mapping[Key, tuple[int, ...]]) -> int:
    return sum(4 * prod(shape) for shape in shapes.values())


def allocate_states(
    shapes: Mapping[Key, tuple[int, ...]], num_states: int, device: torch.device
) -> dict[Key, torch.Tensor]:
    return {key: torch.zeros((num_states, *shape), dtype=torch.float32, device=device) for key, shape in shapes.items()}


@dataclass(frozen=True, slots=True)
class Caches:
    """What passes keep of sequences from one to the next: keys and values by layer, states by op and layer."""

    kv: Mapping[int, KVLayer] = field(default_factory=dict)
    states: Mapping[Key, torch.Tensor] = field(default_factory=dict)
