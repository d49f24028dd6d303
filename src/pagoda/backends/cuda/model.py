"""A loaded model: steps go in as metadata, logits come out. One thread uses it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from pagoda.backends.base import KVGroup, KVType
from pagoda.backends.cuda.graphs import DecodeGraphs
from pagoda.backends.cuda.kv import KVLayer, KVPool, block_bytes
from pagoda.backends.cuda.metadata import Limits, StepBuffer, TileSizes, check_batch
from pagoda.backends.cuda.program import Program
from pagoda.errors import CapacityError, EngineError
from pagoda.types import Batch, FloatArray


class CudaModel:
    """A `LoadedModel`. Steps of one token a sequence may run as captured graphs."""

    def __init__(
        self,
        program: Program,
        *,
        groups: tuple[KVGroup, ...],
        kv_heads: int,
        head_dim: int,
        kv_type: KVType,
        vocab_size: int,
        limits: Limits,
        tiles: TileSizes,
        device: torch.device,
        graphs: bool,
        weight_bytes: int,
    ) -> None:
        self.weight_bytes = weight_bytes
        self.buffer_bytes = 0
        self.groups = groups
        self.vocab_size = vocab_size
        self._program: Program | None = program
        self._kv_shape = kv_heads, head_dim, kv_type
        self._limits = limits
        self._device = device
        self._buffer = StepBuffer(limits, tiles, device)
        self._pools: list[KVPool] = []
        self._layers: Mapping[int, KVLayer] = {}
        self._graphs = DecodeGraphs(limits.seqs) if graphs else None
        self._logits = torch.empty((0, vocab_size), dtype=torch.float32)

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
        return block_bytes(self.groups[group], *self._kv_shape)

    def allocate_kv(self, num_blocks: tuple[int, ...]) -> None:
        """The pools, and then the graphs, which hold on to their addresses."""
        self.allocate_pools(num_blocks)
        if self._graphs is not None:
            try:
                self.capture_into(self._graphs, self._graphs.sizes)
            except torch.OutOfMemoryError as error:
                raise CapacityError(
                    "the GPU's memory ran out while decoding was captured; lower --memory-utilization or "
                    "--max-num-seqs, or take --no-cuda-graphs"
                ) from error

    def allocate_pools(self, num_blocks: tuple[int, ...]) -> None:
        assert self.program
        if len(num_blocks) != len(self.groups):
            raise ValueError(f"blocks for {len(num_blocks)} KV groups, but there are {len(self.groups)}")
        try:
            self._pools = [
                KVPool(group, count, *self._kv_shape, self._device)
                for group, count in zip(self.groups, num_blocks, strict=True)
            ]
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                "the GPU's memory cannot hold the KV cache; lower --kv-memory, --memory-utilization or --max-context"
            ) from error
        self._layers = {layer: pool.layer(layer) for pool in self._pools for layer in pool.index}

    def free_pools(self) -> None:
        self._pools, self._layers = [], {}

    def capture_into(self, graphs: DecodeGraphs, sizes: list[int]) -> None:
        graphs.capture(self.program, self._layers, self._buffer, sizes)

    def forward(self, batch: Batch) -> FloatArray:
        self.check(batch)
        with torch.inference_mode():
            return self._to_host(self.launch(batch))

    def launch(self, batch: Batch) -> torch.Tensor:
        """Start a step that was checked. → logits [R, V] on the device, until the next step"""
        tokens, rows = len(batch.tokens), len(batch.logit_rows)
        if self._graphs is not None and self._graphs.serves(batch):
            return self._graphs.replay(batch, self._buffer)[:rows]
        step = self._buffer.fill(batch, tokens, rows)
        return self.program(step, self._layers)

    def check(self, batch: Batch) -> None:
        """ValueError for a step that must not run."""
        assert self.program
        if not self._pools:
            raise ValueError("a step before there are blocks of its KV groups: call allocate_kv")
        blocks = tuple(pool.num_blocks for pool in self._pools)
        check_batch(batch, self._limits, self.vocab_size, blocks, tuple(group.window for group in self.groups))

    def _to_host(self, logits: torch.Tensor) -> FloatArray:
        if self._device.type != "cuda":
            return np.asarray(logits.numpy())
        if len(self._logits) < len(logits):
            self._logits = torch.empty(logits.shape, dtype=torch.float32, pin_memory=True)
        host = self._logits[: len(logits)]
        host.copy_(logits, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return np.asarray(host.numpy())

    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None:
        assert self.program
        if not 0 <= group < len(self._pools):
            raise ValueError(f"KV group {group}, but there are {len(self._pools)}")
        with torch.inference_mode():
            self._pools[group].copy(pairs)

    def close(self) -> None:
        """Weights, buffers, graphs and KV go with the last reference."""
        self._program, self._graphs = None, None
        self.free_pools()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
