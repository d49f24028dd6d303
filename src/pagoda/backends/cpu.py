"""The CPU backend: a model's forward pass as one native call a step, without Python between its ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagoda import _native
from pagoda.backends.base import ForwardModel, LoadedModel, check_ends
from pagoda.backends.compile import Compiler, fusions
from pagoda.backends.cores import usable_cores
from pagoda.backends.lowering import kv_layers, lower
from pagoda.backends.packed_weights import EmptyWeights, PackedWeights
from pagoda.backends.specs import AdapterWeights, KVType, LoraType, kv_type_for
from pagoda.backends.trace import record
from pagoda.errors import CapacityError, ConfigError, EngineError, UnsupportedError
from pagoda.types import Batch, FloatArray, Int32Array

NO_ROWS: FloatArray = np.empty((0, 0), np.float32)  # of what a model does not end in


class CpuBackend:
    """Threads and kernels. `isa` forces an instruction set; ConfigError where the machine lacks it.

    `activation_bits`, 16 or 8: of the codes in which activations meet block-quantized weights. `bf16_products`: next to
    16-bit float weights they are rounded to bfloat16, where the CPU has instructions for that.
    """

    name = "cpu"

    def __init__(
        self, *, threads: int = 0, isa: str | None = None, activation_bits: int = 16, bf16_products: bool = False
    ) -> None:
        available = _native.available_isas()
        if isa is not None and isa not in available:
            raise ConfigError(f"isa {isa!r} is not available on this machine; available: {', '.join(available)}")
        self.runtime = _native.Runtime(threads or usable_cores(), isa, activation_bits, bf16_products)

    @property
    def threads(self) -> int:
        return self.runtime.threads

    @property
    def isa(self) -> str:
        return self.runtime.isa

    @property
    def kv_type(self) -> KVType:
        return kv_type_for(self.isa)

    def available_memory(self) -> int | None:
        return None

    def load(self, model: ForwardModel, *, max_batch_tokens: int, max_batch_seqs: int, kv_type: KVType) -> CpuModel:
        """Pack the weights and record the forward pass. `max_batch_seqs` bounds the rows of logits of one step.

        UnsupportedError names a tensor whose type or width no kernel takes; CapacityError where memory runs out.
        """
        return self._load(model, PackedWeights(self.runtime), max_batch_tokens, max_batch_seqs, kv_type)

    def load_beside(
        self,
        model: ForwardModel,
        target: LoadedModel,
        *,
        max_batch_tokens: int,
        max_batch_seqs: int,
        kv_type: KVType,
    ) -> CpuModel:
        """As `load`; matrices that `target`, a model of this backend, has packed are the same memory."""
        assert isinstance(target, CpuModel)
        return self._load(model, target.weights, max_batch_tokens, max_batch_seqs, kv_type)

    def _load(
        self, model: ForwardModel, weights: PackedWeights, max_batch_tokens: int, max_batch_seqs: int, kv_type: KVType
    ) -> CpuModel:
        before = weights.num_bytes
        program, ends, sites = self._compiled(model, weights, max_batch_tokens, max_batch_seqs, kv_type)
        return CpuModel(program, weights, weights.num_bytes - before, ends, sites)

    def sizes(
        self,
        model: ForwardModel,
        *,
        max_batch_tokens: int,
        max_batch_seqs: int,
        kv_type: KVType,
        beside: ForwardModel | None = None,
    ) -> tuple[int, int]:
        """(weight_bytes, buffer_bytes) of what `load` would make, and `load_beside` of the other; no weight is read,
        and nothing is allocated for long.

        Raises what `load` raises for models and tensors that it does not take.
        """
        weights, buffer_bytes = EmptyWeights(self.runtime), 0
        for one in (model, beside):
            if one is not None:
                program, *_ = self._compiled(one, weights, max_batch_tokens, max_batch_seqs, kv_type)
                buffer_bytes += program.buffer_bytes
        return weights.num_bytes, buffer_bytes

    def _compiled(
        self, model: ForwardModel, weights: PackedWeights, max_batch_tokens: int, max_batch_seqs: int, kv_type: KVType
    ) -> tuple[_native.Program, _Ends, dict[str, tuple[int, ...]]]:
        """The program of the model's forward pass, its ends and where adapters add to it (see `CpuModel`)."""
        if kv_type == "fp8":
            raise ConfigError("--kv-type fp8 needs a GPU; on CPUs, int8 takes as little")
        nodes = record(model)
        max_rows = max(min(max_batch_seqs, max_batch_tokens), 1)  # no token's logits are wanted twice
        program = self.runtime.program(max_batch_tokens, max_rows, kv_type)
        layers = kv_layers(model, nodes)
        program.set_layers(
            [(group, spec.num_kv_heads, spec.head_dim, spec.values_from) for group, spec in layers.values()],
            len(model.kv_groups),
        )
        try:
            places = {layer: place for place, layer in enumerate(layers)}
            compiler = Compiler(program, weights, lower(nodes, fusions(weights)), places)
            compiler.compile()
        except MemoryError as error:
            raise CapacityError("not enough memory for the weights; take a smaller model or format") from error
        except ValueError as error:
            raise UnsupportedError(f"the CPU backend cannot run this model: {error}") from error
        results = {} if compiler.hidden_states is None else {"hidden_states": program.buffer(compiler.hidden_states)}
        if any(node.op == "logits" for node in nodes):
            results["logits"] = program.logits()
        given = None if compiler.given is None else program.buffer(compiler.given)
        return program, _Ends(results, given), compiler.lora_sites


@dataclass(frozen=True, slots=True)
class _Ends:
    """A program's own memory: what its passes end in, by op, all the rows that a step may want; and what a step gives
    it besides tokens, if it reads such."""

    results: Mapping[str, FloatArray]
    given: FloatArray | None


class CpuModel:
    """A program with its weights; a `LoadedModel`.

    lora_sites: by weight, the program's numbers of the linears that have it.
    """

    graph_bytes = 0
    asynchronous = False
    ranker = None

    def __init__(
        self,
        program: _native.Program,
        weights: PackedWeights,
        weight_bytes: int,
        ends: _Ends,
        lora_sites: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._program: _native.Program | None = program
        self.weights = weights
        self._lora_sites = lora_sites
        self.weight_bytes = weight_bytes
        self.buffer_bytes = program.buffer_bytes
        self._results, self._given = ends.results, ends.given
        self._staged: Batch | None = None
        self._num_rows = {"logits": 0, "hidden_states": 0}  # of the step that was launched last

    @property
    def program(self) -> _native.Program:
        if self._program is None:
            raise EngineError("the model is closed")
        return self._program

    def block_bytes(self, group: int) -> int:
        return self.program.block_bytes(group)

    def place_adapter(self, weights: AdapterWeights, *, type: LoraType) -> _native.Adapter:
        deltas = []
        for name, delta in weights.items():
            if name not in self._lora_sites:
                raise UnsupportedError(f"adapters of {name!r} cannot be served: merge it into the model (pagoda merge)")
            a, b = (np.ascontiguousarray(factor, np.float32) for factor in (delta.a, delta.b))
            rows = (delta.bias, delta.row_scale)
            bias, scale = (None if v is None else np.ascontiguousarray(v, np.float32) for v in rows)
            deltas += [(site, a, b, bias, scale) for site in self._lora_sites[name]]
        return self.program.make_adapter(deltas, type)

    @property
    def state_bytes(self) -> int:
        return self.program.state_bytes

    def allocate_kv(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None:
        try:
            self.program.allocate_kv(list(num_blocks), num_states)
        except MemoryError as error:
            raise CapacityError("not enough memory for the KV cache; lower --kv-memory or --max-context") from error

    def stage(self, batch: Batch) -> None:
        self._staged = batch

    def launch(self, tokens: Int32Array) -> None:
        """Compute the staged step. ValueError for a step that must not run."""
        batch, self._staged = self._staged, None
        if batch is None:
            raise ValueError("a launch before a step was staged")
        program = self.program
        check_ends(batch, self._results)
        if self._given is not None:
            if batch.given is None:
                raise ValueError("the step lacks what the model reads besides tokens")
            self._given[: len(tokens)] = batch.given
        tables, rows = list(batch.block_tables), (batch.logit_rows, batch.hidden_rows)
        adapters = [adapter for adapter in batch.adapters if isinstance(adapter, _native.Adapter)]
        step = (tokens, batch.positions, batch.seq_starts, tables, *rows, batch.token_types)
        program.forward(*step, adapters, batch.adapter_of, batch.state_starts, batch.state_saves)
        self._num_rows = {"logits": len(batch.logit_rows), "hidden_states": len(batch.hidden_rows)}

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        logits = self._result("logits")
        return logits if rows is None else logits[rows]

    def hidden_states(self) -> FloatArray:
        return self._result("hidden_states")

    def _result(self, end: str) -> FloatArray:
        assert self.program
        return self._results.get(end, NO_ROWS)[: self._num_rows[end]]

    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None:
        self.program.copy_blocks(group, np.ascontiguousarray(pairs, np.int32))

    def moved_bytes(self, group: int) -> int:
        return self.program.block_bytes(group)

    def read_blocks(self, group: int, blocks: Int32Array) -> npt.NDArray[np.uint8]:
        out = np.empty((len(blocks), self.moved_bytes(group)), np.uint8)
        self.program.read_blocks(group, np.ascontiguousarray(blocks, np.int32), out)
        return out

    def write_blocks(self, group: int, blocks: Int32Array, data: npt.NDArray[np.uint8]) -> None:
        self.program.write_blocks(group, np.ascontiguousarray(blocks, np.int32), np.ascontiguousarray(data))

    def close(self) -> None:
        """Weights, buffers and KV go with the last reference to the program: whoever still holds logits holds one."""
        self.weights.clear()
        self._program, self._results, self._given = None, {}, None
