"""What a model takes of the device's memory besides weights and KV: measured, not guessed.

The largest step is run once on a pool of one block, and two graphs are captured: the first brings the memory that all
share, the second shows what each further one adds.
"""

from __future__ import annotations

import numpy as np
import torch

from pagoda.backends.base import run_batch
from pagoda.backends.cuda.graphs import DecodeGraphs
from pagoda.backends.cuda.metadata import Limits
from pagoda.backends.cuda.model import CudaModel
from pagoda.errors import CapacityError
from pagoda.types import BLOCK_SIZE, Batch, Int32Array


def measure_buffers(model: CudaModel, limits: Limits, *, graphs: bool) -> tuple[int, int]:
    """Bytes that a step works in, and that graphs take; the model has no KV yet, and has none afterwards."""
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model.allocate_pools((1,) * limits.groups, int(limits.has_states))
        run_batch(model, largest_step(limits))
        model.top_k_blocks(1, weights=False)
        peak = torch.cuda.max_memory_allocated(device) - before
        return int(peak), _graph_bytes(model, limits) if graphs else 0
    except torch.OutOfMemoryError as error:
        raise CapacityError(
            f"the GPU's memory cannot hold a step of {limits.tokens} tokens; lower --max-batch-tokens or --max-num-seqs"
        ) from error
    finally:
        model.free_pools()
        torch.cuda.empty_cache()


def _graph_bytes(model: CudaModel, limits: Limits) -> int:
    graphs = DecodeGraphs(limits.seqs)
    torch.cuda.empty_cache()
    free = [torch.cuda.mem_get_info()[0]]
    for size in graphs.sizes[::-1][:2]:
        model.capture_into(graphs, [size])
        free.append(torch.cuda.mem_get_info()[0])
    first, second = free[0] - free[1], (free[1] - free[2] if len(free) == 3 else 0)
    return int(max(first, 0) + max(second, 0) * (len(graphs.sizes) - 1))


def largest_step(limits: Limits) -> Batch:
    """As many tokens as fit, of as few sequences as hold them, all in block 0, and all rows of logits."""
    longest = min(limits.tokens, limits.table_width * BLOCK_SIZE)
    counts: Int32Array = np.full(-(-limits.tokens // longest), longest, np.int32)
    counts[-1] = limits.tokens - counts[:-1].sum()
    counts = counts[: limits.seqs]
    width = -(-longest // BLOCK_SIZE)
    return Batch(
        tokens=np.zeros(counts.sum(), np.int32),
        positions=np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        seq_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        context_lens=counts,
        block_tables=(np.zeros((len(counts), width), np.int32),) * limits.groups,
        logit_rows=np.arange(min(limits.rows, int(counts.sum())), dtype=np.int32),
        state_starts=np.full(len(counts), -1, np.int32),
        state_saves=np.full(counts.sum(), -1, np.int32),
    )
