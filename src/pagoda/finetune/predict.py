"""What a run will take, said before it: memory by part, and time. `session.py` says afterwards how far off that was.

Memory, with T tokens in the model at once, E hidden, F feed-forward, L layers, V vocabulary, float32 activations:

    libraries    torch, transformers and peft in the process, measured
    weights      packed as served; the embedding's rows are read from the file
    adapters     16 bytes a parameter: weight, gradient, AdamW's two moments; with DoRA a parameter more for each row
    activations  T · 4 · (9 E + 4 F) a layer; with checkpointing of one layer, and T · 4 · E of the others
    head         logits of some rows: 10 bytes each, at most 2.5 pieces of `head_loss.PIECE_BYTES`
    allocator    what glibc holds between what lives on: measured, as activations of so many layers

Time: a token's products with the layers' matrices, forward, backward, and forward again where checkpointing is on, and
two of the head for each learned token, at the rates of this machine's kernels; they are `SHARE` of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from pagoda.config import limit_openmp_spinning
from pagoda.finetune.data.batches import num_trained
from pagoda.finetune.prepare import Prepared
from pagoda.models.layers import Block, Decoder, Experts
from pagoda.models.registry import load_model
from pagoda.plan.advice.finetuning import ALL
from pagoda.types import RawTensor

LIBRARIES = 430_000_000  # with a tokenizer, and what matrix products of torch set up
HOLES = 11  # layers whose activations fit in what glibc holds between what lives on
SHARE = 0.55  # of a step's time that is products with the base's matrices
PROBE_TOKENS, PROBE_SECONDS = 256, 0.3
HEAD_PIECE = 160_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the run's peak, by what they are for."""

    libraries: int
    weights: int
    adapters: int
    activations: int
    head: int
    allocator: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Prediction:
    memory: Memory
    seconds: float
    tokens: int  # that are trained on, over all steps

    def to_json(self) -> dict[str, Any]:
        return {"memory": {**asdict(self.memory), "total": self.memory.total}, **self._rest()}

    def _rest(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 1), "tokens": self.tokens}


Rates = tuple[float, float]  # weights times tokens a second: forward, backward


def predict(prepared: Prepared, rates: Rates) -> Prediction:
    """A run's memory and time at the given rates of products."""
    decoder = load_model(prepared.checkpoint)
    settings, data = prepared.settings, prepared.data
    seen = prepared.schedule.steps * settings.batch / len(data.train)  # times that each example is
    tokens = round(seen * sum(map(len, data.train)))
    learned = seen * num_trained(data.train)
    weights = sum(np.prod(m.shape) for block in decoder.blocks for m in block.matrices)
    head = np.prod(decoder.output.shape)
    forward, backward = rates
    passes = (2 if settings.checkpointing else 1) / forward + 1 / backward
    seconds = (tokens * weights * passes + learned * head * (1 / forward + 1 / backward)) / SHARE
    return Prediction(_memory(prepared, decoder), float(seconds), tokens)


def _memory(prepared: Prepared, decoder: Decoder) -> Memory:
    settings, data = prepared.settings, prepared.data
    longest = max(map(len, data.train))
    at_once = max(min(settings.micro_tokens, settings.batch * sum(map(len, data.train)) // len(data.train)), longest)
    learned = at_once * num_trained(data.train) / sum(map(len, data.train))
    hidden, layers = decoder.embedding.shape[1], decoder.num_layers
    layer = at_once * 4 * (9 * hidden + 4 * _width(decoder))
    kept = layer + at_once * 4 * hidden * layers if settings.checkpointing else layer * layers
    matrices = [m for block in decoder.blocks for m in block.matrices]
    packed = sum(m.num_bytes for m in matrices) + decoder.output.num_bytes
    adapted = [m for block in decoder.blocks for m in _targets(block, settings.targets)]
    return Memory(
        libraries=LIBRARIES,
        weights=packed,
        adapters=16 * sum(settings.rank * sum(m.shape) + settings.dora * m.shape[0] for m in adapted),
        activations=kept,
        head=round(min(learned * decoder.vocab_size * 10, HEAD_PIECE)),
        allocator=HOLES * layer if settings.checkpointing else 0,
    )


def _targets(block: Block, targets: Sequence[str]) -> list[RawTensor]:
    """A layer's matrices that get adapters. Of fused ones each part counts, which is a little too much."""
    assert block.attention is not None  # as in all models that are trained
    assert block.ffn is not None
    ffn = ("gate", "up", "down") if isinstance(block.ffn, Experts) else tuple(block.ffn.linears)
    names = (*block.attention.linears, *ffn)
    return [m for name, m in zip(names, block.matrices, strict=False) if name in targets or tuple(targets) == (ALL,)]


def _width(decoder: Decoder) -> int:
    ffn = decoder.blocks[0].ffn
    assert ffn is not None
    return ffn.gate[0].shape[0] if isinstance(ffn, Experts) else ffn.up.weight.shape[0]


def measure_rates(prepared: Prepared) -> Rates:
    """How fast this machine's kernels multiply with the first layer's matrices. Imports torch."""
    limit_openmp_spinning()
    import torch

    from pagoda import _native
    from pagoda.backends.cores import usable_cores
    from pagoda.backends.packed_weights import PackedWeights
    from pagoda.finetune.model.packed_matrix import PackedMatrix

    threads = prepared.settings.threads or usable_cores()
    torch.set_num_threads(threads)
    runtime = _native.Runtime(threads, None, int(prepared.settings.activation_type[3:]))
    packed = PackedWeights(runtime)
    matrices = [PackedMatrix(packed, raw) for raw in load_model(prepared.checkpoint).blocks[0].matrices]
    inputs = [(torch.ones(PROBE_TOKENS, m.columns), torch.ones(PROBE_TOKENS, m.rows)) for m in matrices]
    weights = sum(m.rows * m.columns for m in matrices)

    def forward() -> None:
        for matrix, (x, _) in zip(matrices, inputs, strict=True):
            matrix.product(x)

    def backward() -> None:
        for matrix, (_, g) in zip(matrices, inputs, strict=True):
            matrix.transposed_product(g)

    return weights * PROBE_TOKENS / _seconds(forward), weights * PROBE_TOKENS / _seconds(backward)


def _seconds(work: Callable[[], None]) -> float:
    """The shortest of as many runs as PROBE_SECONDS allow, after one that warms up."""
    work()
    best, end = float("inf"), time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
