"""Loads a model onto a GPU, or, to test all but the GPU, onto torch's CPU."""

from __future__ import annotations

import logging
from dataclasses import astuple

import torch

from pagoda.backends.base import ForwardModel
from pagoda.backends.cuda.compile import ProgramCompiler, fusions, is_computed
from pagoda.backends.cuda.eager import EagerOps
from pagoda.backends.cuda.kv import DTYPES, Heads
from pagoda.backends.cuda.measure import measure_buffers
from pagoda.backends.cuda.metadata import Limits, TileSizes
from pagoda.backends.cuda.model import CudaModel
from pagoda.backends.cuda.options import CudaOptions
from pagoda.backends.cuda.shard import WHOLE, Shard, cut
from pagoda.backends.cuda.states import device_shapes
from pagoda.backends.cuda.weights import WeightLoader, compute_type
from pagoda.backends.lowering import kv_layers, lower
from pagoda.backends.specs import KVType
from pagoda.backends.trace import Node, record
from pagoda.errors import CapacityError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.types import BLOCK_SIZE, RawTensor

log = logging.getLogger(__name__)


class CudaBackend:
    """See `pagoda.backends.base.Backend`. `shard` says which part of the model this process holds."""

    name = "cuda"
    kv_type: KVType = "f16"

    def __init__(self, options: CudaOptions, shard: Shard = WHOLE) -> None:
        self.options, self.shard = options, shard
        self.device = torch.device(options.device, shard.rank) if options.device == "cuda" else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cuda.matmul.allow_tf32 = False  # float32 weights are served in float32

    def available_memory(self) -> int | None:
        """Bytes of the GPU that are free now; None: the host's memory is what counts."""
        return int(torch.cuda.mem_get_info(self.device)[0]) if self.device.type == "cuda" else None

    def load(self, model: ForwardModel, *, max_batch_tokens: int, max_batch_seqs: int, kv_type: KVType) -> CudaModel:
        """Put the model on the device.

        UnsupportedError names what there is no kernel for; CapacityError says how much is missing and what would fit.
        """
        nodes, heads = self._recorded(model)
        self._check_room(nodes)
        state_shapes = device_shapes(nodes)
        limits = Limits(
            tokens=max_batch_tokens,
            rows=max(min(max_batch_seqs, max_batch_tokens), 1),
            seqs=min(max_batch_seqs, max_batch_tokens),
            table_width=-(-model.max_context // BLOCK_SIZE) + 1,
            groups=len(model.kv_groups),
            has_states=bool(state_shapes),
        )
        dtype = compute_type(_matrices(nodes))
        ops = self._ops(dtype, model.max_context, limits.seqs)
        weights = WeightLoader(dtype, self.device)
        with torch.inference_mode():
            compiler = ProgramCompiler(model, ops, weights, self.shard)
            program = compiler.compile(lower(nodes, fusions(weights)))
        graphs = self._graphs and not compiler.waits
        loaded = CudaModel(
            program,
            groups=model.kv_groups,
            heads=heads,
            kv_type=kv_type,
            state_shapes=state_shapes,
            vocab_size=model.vocab_size,
            limits=limits,
            tiles=_tile_sizes(nodes, ops, 8 * DTYPES[kv_type][1].itemsize),
            device=self.device,
            graphs=graphs,
            weight_bytes=weights.num_bytes,
            ops=ops,
            shard=self.shard,
        )
        if self.device.type == "cuda":
            activations, loaded.graph_bytes = measure_buffers(loaded, limits, graphs=graphs)
            loaded.buffer_bytes = activations + loaded.graph_bytes
        return loaded

    def check(self, model: ForwardModel) -> None:
        """Raise what `load` would, as far as it shows before weights are read."""
        self._check_room(self._recorded(model)[0])

    def _recorded(self, model: ForwardModel) -> tuple[list[Node], dict[int, Heads]]:
        """This device's part of the forward pass, and of its KV heads: by layer how many, and their size."""
        nodes = record(model)
        _check_ops(nodes)
        cut(nodes, self.shard)
        layers = kv_layers(model, nodes)
        return nodes, {layer: (spec.num_kv_heads, spec.head_dim) for layer, (_, spec) in layers.items()}

    @property
    def _graphs(self) -> bool:
        return self.options.graphs and self.device.type == "cuda" and self.options.ops == "fast"

    def _ops(self, dtype: torch.dtype, max_context: int, max_seqs: int) -> EagerOps:
        """The one place that chooses: kernels, or torch alone."""
        invariant = self.options.batch_invariant
        if self.options.ops == "eager":
            return EagerOps(dtype, batch_invariant=invariant)
        from pagoda.backends.cuda.fast import FastOps  # imports Triton

        return FastOps(dtype, batch_invariant=invariant, max_context=max_context, max_seqs=max_seqs)

    def _check_room(self, nodes: list[Node]) -> None:
        """Before minutes of loading, whether the weights can fit at all."""
        free = self.available_memory()
        if free is None:
            return
        matrices = {raw.name: raw for raw in _matrices(nodes)}
        needed = sum(raw.num_bytes for raw in matrices.values())
        if needed > free:
            elements = sum(tensor_bytes("BF16", raw.shape) // 2 for raw in matrices.values())
            raise CapacityError(
                f"the weights take {needed / 2**30:.1f} GiB, but the GPU has {free / 2**30:.1f} GiB free; "
                f"{_what_fits(elements, free)}, and --tensor-parallel shares them among GPUs"
            )


def _check_ops(nodes: list[Node]) -> None:
    """UnsupportedError names what only the CPU backend computes."""
    for node in nodes:
        if (node.op == "embed" and node["by"] == "positions") or (node.op == "attention" and not node["spec"].causal):
            raise UnsupportedError("encoders are computed on CPUs alone; use --device cpu")
        if not is_computed(node.op):
            raise UnsupportedError(f"{node.op} is computed on CPUs alone; use --device cpu")


def _tile_sizes(nodes: list[Node], ops: EagerOps, kv_bits: int) -> TileSizes:
    """Tiles that attention of every layer can take."""
    specs = [node["spec"] for node in nodes if node.op == "attention"]
    sizes = [ops.tile_sizes(spec.num_heads // spec.num_kv_heads, spec.head_dim, kv_bits) for spec in specs]
    return TileSizes(*(min(each) for each in zip(*map(astuple, sizes), strict=True)))


def _what_fits(elements: int, free: int) -> str:
    """The widest format that leaves a fifth of the memory to everything else."""
    for name in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"):
        block = BLOCK_TYPES[name]
        size = elements / block.elements * block.bytes
        if size < 0.8 * free:
            return f"in {name} they would take {size / 2**30:.1f} GiB and fit"
    return "no format is small enough to fit"


def _matrices(nodes: list[Node]) -> list[RawTensor]:
    return [raw for node in nodes for raw in node.tensors if len(raw.shape) > 1]
