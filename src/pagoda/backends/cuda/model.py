"""A loaded model: steps go in as metadata, logits come out. One thread uses it, and need not wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pagoda.backends.base import TopKBlocks, check_ends
from pagoda.backends.cuda.adapters import AdapterTables, CudaAdapter, StepAdapters, place
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.graphs import DecodeGraphs
from pagoda.backends.cuda.kv import Heads, KVBlocks, block_bytes, read_blocks, write_blocks
from pagoda.backends.cuda.metadata import Layout, Limits, StepBuffer, TileSizes, check_batch, check_tokens
from pagoda.backends.cuda.program import Program
from pagoda.backends.cuda.shard import Shard
from pagoda.backends.cuda.states import Caches, allocate_states, state_bytes
from pagoda.backends.specs import AdapterWeights, KVGroup, KVType, LoraType
from pagoda.backends.states import Key
from pagoda.errors import CapacityError, EngineError
from pagoda.types import Batch, FloatArray, Int32Array


@dataclass(frozen=True, slots=True)
class _Staged:
    layout: Layout
    num_tokens: int
    num_rows: int
    graph: int | None  # its size
    adapters: StepAdapters | None


class CudaModel:
    """A `LoadedModel`, and its own `TokenRanker`. Steps of one token a sequence may run as captured graphs."""

    asynchronous = True

    def __init__(
        self,
        program: Program,
        *,
        groups: tuple[KVGroup, ...],
        heads: Mapping[int, Heads],
        kv_type: KVType,
        state_shapes: Mapping[Key, tuple[int, ...]],
        vocab_size: int,
        limits: Limits,
        tiles: TileSizes,
        device: torch.device,
        graphs: bool,
        weight_bytes: int,
        ops: EagerOps,
        shard: Shard,
    ) -> None:
        self.weight_bytes = weight_bytes
        self.buffer_bytes = self.graph_bytes = 0
        self.groups = groups
        self.vocab_size = vocab_size
        self._program: Program | None = program
        self._heads, self._kv_type = heads, kv_type  # heads: KV heads and their size, by layer
        self._state_shapes, self._num_states = state_shapes, 0
        self.state_bytes = state_bytes(state_shapes)
        self._limits = limits
        self._device = device
        self._buffer = StepBuffer(limits, tiles, device)
        self._pools: list[KVBlocks] = []
        self._caches = Caches()
        self._graphs = DecodeGraphs(limits.seqs) if graphs else None
        self._staged: _Staged | None = None
        self._no_logits = torch.empty((0, vocab_size), dtype=torch.float32, device=device)
        self.logits = self._no_logits  # of the launched step, [R, V]
        self._hidden_states: torch.Tensor | None = None  # of the launched step, [R2, E]; None: of no row
        self._ops, self._shard = ops, shard
        self._tables: AdapterTables | None = None  # of the step with adapters that was staged last
        self._host: dict[str, torch.Tensor] = {}  # pinned, by what comes to lie there

    @property
    def program(self) -> Program:
        """EngineError once the model is closed."""
        if self._program is None:
            raise EngineError("the model is closed")
        return self._program

    def block_bytes(self, group: int) -> int:
        assert self.program
        if not 0 <= group < len(self.groups):
            raise ValueError(f"KV group {group}, but there are {len(self.groups)}")
        return block_bytes((self._heads[layer] for layer in self.groups[group].layers), self._kv_type)

    def place_adapter(self, weights: AdapterWeights, *, type: LoraType) -> CudaAdapter:
        """This device's part of it. All adapters of a step must be kept in one type."""
        return place(weights, self.program.sites, type, self._shard, self._device)

    def _adapters(self, batch: Batch) -> StepAdapters | None:
        if batch.adapter_of is None or batch.adapter_of.max(initial=-1) < 0:
            return None
        if self._tables is None or self._tables.adapters != batch.adapters:
            self._tables = AdapterTables.of(batch.adapters, self._device)
        return StepAdapters.of(batch, self._tables)

    def allocate_kv(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None:
        """The pools, and then the graphs, which hold on to their addresses."""
        self.allocate_pools(num_blocks, num_states)
        if self._graphs is not None:
            try:
                self.capture_into(self._graphs, self._graphs.sizes)
            except torch.OutOfMemoryError as error:
                raise CapacityError(
                    "the GPU's memory ran out while decoding was captured; lower --memory-utilization or "
                    "--max-num-seqs, or take --no-cuda-graphs"
                ) from error

    def allocate_pools(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None:
        assert self.program
        if len(num_blocks) != len(self.groups):
            raise ValueError(f"blocks for {len(num_blocks)} KV groups, but there are {len(self.groups)}")
        try:
            self._pools = [
                KVBlocks(group, count, self._heads, self._kv_type, self._device)
                for group, count in zip(self.groups, num_blocks, strict=True)
            ]
            states = allocate_states(self._state_shapes, num_states, self._device)
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                "the GPU's memory cannot hold the KV cache; lower --kv-memory, --memory-utilization or --max-context"
            ) from error
        self._num_states = num_states
        self._caches = Caches({layer: kv for pool in self._pools for layer, kv in pool.layers.items()}, states)

    def free_pools(self) -> None:
        self._pools, self._caches = [], Caches()

    def capture_into(self, graphs: DecodeGraphs, sizes: list[int]) -> None:
        graphs.capture(self.program, self._caches, self._buffer, sizes)

    def stage(self, batch: Batch) -> None:
        """ValueError for a step that must not run."""
        self.check(batch)
        tokens, rows = len(batch.tokens), len(batch.logit_rows)
        size = self._graphs.size_for(tokens) if self._graphs is not None and self._graphs.serves(batch) else None
        layout = self._buffer.lay_out(batch, size or tokens, size or rows)
        self._staged = _Staged(layout, tokens, rows, size, self._adapters(batch))

    def launch(self, tokens: Int32Array) -> None:
        """ValueError: nothing is staged, or no such tokens."""
        staged, self._staged = self._staged, None
        if staged is None:
            raise ValueError("a launch before a step was staged")
        check_tokens(tokens, staged.num_tokens, self.vocab_size)
        with torch.inference_mode():
            step = self._buffer.send(staged.layout, tokens, staged.adapters)
            if self._graphs is not None and staged.graph is not None:
                self.logits = self._graphs.replay(staged.graph)[: staged.num_rows]
            else:
                results = self.program(step, self._caches)
                self.logits = self._no_logits if results.logits is None else results.logits
                self._hidden_states = results.hidden_states

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        assert self.program
        with torch.inference_mode():
            chosen = self.logits if rows is None else self.logits[torch.from_numpy(rows).to(self._device)]
            (logits,) = self._to_host({"logits": chosen})
            return logits

    def hidden_states(self) -> FloatArray:
        assert self.program
        if self._hidden_states is None:
            return np.empty((0, 0), np.float32)
        with torch.inference_mode():
            (states,) = self._to_host({"hidden_states": self._hidden_states})
            return states

    @property
    def ranker(self) -> CudaModel:
        return self

    def top_k_blocks(self, k: int, *, weights: bool) -> TopKBlocks:
        assert self.program
        with torch.inference_mode():
            blocks, values, maxima = self._ops.likeliest(self.logits, k)
            found = {"blocks": blocks, "values": values}
            if weights:
                found["weights"] = self._ops.weights(self.logits, maxima)
            host = self._to_host(found)
            return TopKBlocks(host[0], host[1], host[2] if weights else None)

    def check(self, batch: Batch) -> None:
        """ValueError for a step that must not run, whatever its tokens."""
        check_ends(batch, self.program.ends)
        if not self._pools:
            raise ValueError("a step before there are blocks of its KV groups: call allocate_kv")
        blocks = tuple(pool.num_blocks for pool in self._pools)
        windows = tuple(group.window for group in self.groups)
        check_batch(batch, self._limits, blocks, windows, self._num_states)

    def _to_host(self, tensors: dict[str, torch.Tensor]) -> list[npt.NDArray[Any]]:
        """Copy all, and wait once."""
        if self._device.type != "cuda":
            return [tensor.contiguous().numpy() for tensor in tensors.values()]
        hosts = []
        for name, tensor in tensors.items():
            if name not in self._host or self._host[name].numel() < tensor.numel():
                self._host[name] = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
            host = self._host[name][: tensor.numel()].view(tensor.shape)
            host.copy_(tensor, non_blocking=True)
            hosts.append(host)
        torch.cuda.current_stream().synchronize()
        return [host.numpy() for host in hosts]

    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None:
        assert self.program
        if not 0 <= group < len(self._pools):
            raise ValueError(f"KV group {group}, but there are {len(self._pools)}")
        with torch.inference_mode():
            self._pools[group].copy(pairs)

    def _blocks(self, group: int) -> list[torch.Tensor]:
        """What blocks of the group consist of, or states, whose group comes after the last: [blocks, …] each."""
        return list(self._caches.states.values()) if group == len(self._pools) else self._pools[group].blocks

    def moved_bytes(self, group: int) -> int:
        return self.state_bytes if group == len(self._pools) else self.block_bytes(group)

    def read_blocks(self, group: int, blocks: Int32Array) -> npt.NDArray[np.uint8]:
        with torch.inference_mode():
            return read_blocks(self._blocks(group), blocks)

    def write_blocks(self, group: int, blocks: Int32Array, data: npt.NDArray[np.uint8]) -> None:
        with torch.inference_mode():
            write_blocks(self._blocks(group), blocks, data)

    def close(self) -> None:
        """Weights, buffers, graphs and KV go with the last reference."""
        self._program, self._graphs, self._staged, self._tables = None, None, None, None
        self.logits = torch.empty((0, self.vocab_size))
        self.free_pools()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
