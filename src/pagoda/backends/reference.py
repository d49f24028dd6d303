"""The oracle: a model whose ops are plain numpy (`reference_ops.py`); slow and right.

A token's numbers do not depend on what else is in the batch, bit for bit: products and attention go token by token.
`ReferenceBackend(batch_invariant=False)` gives that up for whole matrix products, several times as fast on long
prompts. KV is stored in float32 whatever `kv_type` asks for.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pagoda.backends.base import ForwardModel, LoadedModel, check_ends
from pagoda.backends.lowering import kv_layers
from pagoda.backends.paged_kv import PagedKV
from pagoda.backends.reference_ops import ReferenceAdapter, ReferenceOps, Weights
from pagoda.backends.specs import AdapterWeights, KVType, LoraType
from pagoda.backends.states import Key, state_shapes
from pagoda.backends.trace import record
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, Int32Array


class ReferenceModel:
    """A `LoadedModel` that computes with `ReferenceOps`."""

    graph_bytes = 0
    asynchronous = False
    ranker = None
    ops: type[ReferenceOps] = ReferenceOps

    def __init__(self, model: ForwardModel, max_batch_seqs: int, *, batch_invariant: bool = True) -> None:
        self._model = model
        self._batch_invariant = batch_invariant
        self._weights = Weights()
        self.kv_pools: tuple[PagedKV, ...] = ()
        self._layers: dict[int, tuple[int, PagedKV]] = {}
        self.states: dict[Key, FloatArray] = {}
        self._staged: Batch | None = None
        self._results: dict[str, FloatArray] = {}  # of the launched step
        nodes = record(model)
        self._ends = {node.op for node in nodes}
        specs = {layer: spec for layer, (_, spec) in kv_layers(model, nodes).items()}
        heads = {layer: (spec.num_kv_heads, spec.head_dim) for layer, spec in specs.items()}
        self._keys_alone = {layer for layer, spec in specs.items() if spec.values_from is not None}
        self._heads = [{layer: heads[layer] for layer in group.layers} for group in model.kv_groups]
        self._state_shapes = state_shapes(nodes)
        self.state_bytes = sum(4 * math.prod(shape) for shape in self._state_shapes.values())
        shapes = {tensor.name: tensor.shape for node in nodes for tensor in node.tensors}
        self.weight_bytes = sum(4 * math.prod(shape) for shape in shapes.values())
        self.buffer_bytes = 4 * max_batch_seqs * model.vocab_size  # logits; the rest comes and goes

    def block_bytes(self, group: int) -> int:
        return sum(
            (1 if layer in self._keys_alone else 2) * 4 * BLOCK_SIZE * heads * size
            for layer, (heads, size) in self._heads[group].items()
        )

    def place_adapter(self, weights: AdapterWeights, *, type: LoraType) -> ReferenceAdapter:
        return ReferenceAdapter(weights)

    def allocate_kv(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None:
        assert not self.kv_pools, "the KV pool is allocated once"
        self.states = {key: np.zeros((num_states, *shape), np.float32) for key, shape in self._state_shapes.items()}
        self.kv_pools = tuple(
            PagedKV(heads, n, self._keys_alone) for heads, n in zip(self._heads, num_blocks, strict=True)
        )
        self._layers = {layer: (g, pool) for g, pool in enumerate(self.kv_pools) for layer in pool.k}

    def stage(self, batch: Batch) -> None:
        self._staged = batch

    def launch(self, tokens: Int32Array) -> None:
        assert self._staged is not None, "a launch before a step was staged"
        batch, self._staged = replace(self._staged, tokens=tokens), None
        check_ends(batch, self._ends)
        invariant = self._batch_invariant
        ops = self.ops(self._weights, batch, self._layers, self.states, batch_invariant=invariant)
        self._model.forward(ops)
        self._results = ops.results

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        logits = self._results.get("logits", np.empty((0, self._model.vocab_size), np.float32))
        return logits if rows is None else logits[rows]

    def hidden_states(self) -> FloatArray:
        return self._results.get("hidden_states", np.empty((0, 0), np.float32))

    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None:
        for source, destination in pairs:
            for pool in self.kv_pools[group].arrays:
                pool[destination] = pool[source]

    def moved_bytes(self, group: int) -> int:
        return self.state_bytes if group == len(self.kv_pools) else self.block_bytes(group)

    def _arrays(self, group: int) -> list[FloatArray]:
        """[blocks, …] each: what the group's blocks consist of, or states."""
        return list(self.states.values()) if group == len(self.kv_pools) else list(self.kv_pools[group].arrays)

    def read_blocks(self, group: int, blocks: Int32Array) -> npt.NDArray[np.uint8]:
        parts = [pool[blocks].reshape(len(blocks), -1) for pool in self._arrays(group)]
        return np.ascontiguousarray(np.concatenate(parts, axis=1)).view(np.uint8)

    def write_blocks(self, group: int, blocks: Int32Array, data: npt.NDArray[np.uint8]) -> None:
        values, at = np.ascontiguousarray(data).view(np.float32).reshape(len(blocks), -1), 0
        for pool in self._arrays(group):
            count = pool[0].size
            pool[blocks] = values[:, at : at + count].reshape(len(blocks), *pool.shape[1:])
            at += count

    def close(self) -> None:
        self._weights.clear()
        self.kv_pools, self._layers, self.states = (), {}, {}


class ReferenceBackend:
    """`Backend` in numpy."""

    name = "reference"
    kv_type: KVType = "f16"

    def __init__(self, *, batch_invariant: bool = True) -> None:
        self._batch_invariant = batch_invariant

    def available_memory(self) -> int | None:
        return None

    def load(
        self, model: ForwardModel, *, max_batch_tokens: int, max_batch_seqs: int, kv_type: KVType
    ) -> ReferenceModel:
        return ReferenceModel(model, max_batch_seqs, batch_invariant=self._batch_invariant)

    def load_beside(
        self,
        model: ForwardModel,
        target: LoadedModel,
        *,
        max_batch_tokens: int,
        max_batch_seqs: int,
        kv_type: KVType,
    ) -> ReferenceModel:
        return self.load(model, max_batch_tokens=max_batch_tokens, max_batch_seqs=max_batch_seqs, kv_type=kv_type)
