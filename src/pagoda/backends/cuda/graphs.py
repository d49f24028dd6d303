"""Decoding steps as CUDA graphs: one launch instead of hundreds.

A graph is captured for each of a few batch sizes, the largest first so that the others find its memory; a step runs as
the smallest that holds it, padded with tokens that store nothing and see nothing. All graphs read the same metadata
buffer, whose header says where the block tables lie, so nothing of the context's length is captured.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pagoda.backends.cuda.metadata import StepBuffer
from pagoda.backends.cuda.program import Program
from pagoda.backends.cuda.states import Caches
from pagoda.types import Batch

LARGEST = 512  # sequences; above it a step is long enough to hide its launches


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, 8, then by 8 to 64, by 16 to 128, and by 32; `most` is the last."""
    sizes = {1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, LARGEST + 1, 32)}
    top = min(most, LARGEST)
    return sorted({size for size in sizes if size < top} | {top})


class DecodeGraphs:
    """Graphs by batch size."""

    def __init__(self, max_seqs: int) -> None:
        self.sizes = batch_sizes(max_seqs)
        self._graphs: dict[int, Any] = {}
        self._logits: dict[int, torch.Tensor] = {}
        self._pool: Any = None

    def serves(self, batch: Batch) -> bool:
        """Whether it is a token and a row of logits a sequence, and nothing else: no graph has adapters in it."""
        seqs = len(batch.seq_starts) - 1
        if len(batch.hidden_rows) or batch.adapter_of is not None:
            return False
        return seqs == len(batch.tokens) == len(batch.logit_rows) and seqs <= self.sizes[-1] and bool(self._graphs)

    def size_for(self, num_seqs: int) -> int:
        return self.sizes[bisect_left(self.sizes, num_seqs)]

    def replay(self, size: int) -> torch.Tensor:
        """The step that was sent. → logits [size, V], of which the first are the batch's"""
        self._graphs[size].replay()
        return self._logits[size]

    def capture(self, program: Program, caches: Caches, buffer: StepBuffer, sizes: list[int]) -> None:
        """Capture these sizes; each runs once before, so that kernels are compiled and memory is there."""
        for size in sorted(sizes, reverse=True):
            with torch.inference_mode():
                self._capture(size, program, caches, buffer)

    def _capture(self, size: int, program: Program, caches: Caches, buffer: StepBuffer) -> None:
        batch = _empty_batch(buffer.limits.groups)
        step = buffer.send(buffer.lay_out(batch, size, size), batch.tokens)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            program(step, caches)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = program(step, caches).logits
        assert logits is not None
        self._pool = self._pool or graph.pool()
        self._graphs[size], self._logits[size] = graph, logits


def _empty_batch(num_groups: int) -> Batch:
    """A step to capture with: one token in block 0, which the first sequence that gets the block writes over. Its state
    is saved nowhere."""
    zero = np.zeros(1, np.int32)
    batch = Batch(zero, zero, np.array([0, 1], np.int32), zero + 1, (zero[:, None],) * num_groups, zero)
    return replace(batch, state_starts=zero - 1, state_saves=zero - 1)
