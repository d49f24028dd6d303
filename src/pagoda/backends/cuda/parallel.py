"""One model over several GPUs of this machine: a process each, which all run the same steps on their shard.

This process is rank 0: it plans, holds a shard itself, and tells the others what to do over pipes. Sums and gathers
inside a step go by torch.distributed: NCCL between GPUs, gloo between processes on a CPU, for tests. Whoever's pipe
closes ends; a rank that has died is noticed before the next step.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from pagoda.backends.base import ForwardModel
from pagoda.backends.cuda.adapters import CudaAdapter
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.metadata import check_tokens
from pagoda.backends.cuda.model import CudaModel
from pagoda.backends.cuda.options import CudaOptions
from pagoda.backends.cuda.shard import Shard
from pagoda.backends.specs import AdapterWeights, KVType, LoraType
from pagoda.errors import ConfigError, EngineError
from pagoda.types import Batch, FloatArray, Int32Array

Reopen = Callable[[], ForwardModel]  # opens the model again; other processes call it, so it must be picklable


class ParallelBackend:
    """A `Backend` over `size` devices."""

    name = "cuda"
    kv_type: KVType = "f16"

    def __init__(self, options: CudaOptions, size: int, reopen: Reopen) -> None:
        if options.device == "cuda" and torch.cuda.device_count() < size:
            raise ConfigError(f"--tensor-parallel {size}: this machine has {torch.cuda.device_count()} GPUs")
        self.options, self.size, self.reopen = options, size, reopen
        self._first = CudaBackend(options, Shard(0, size))

    def available_memory(self) -> int | None:
        return self._first.available_memory()

    def load(
        self, model: ForwardModel, *, max_batch_tokens: int, max_batch_seqs: int, kv_type: KVType
    ) -> ParallelModel:
        self._first.check(model)  # before processes start
        arguments = {"max_batch_tokens": max_batch_tokens, "max_batch_seqs": max_batch_seqs, "kv_type": kv_type}
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        ranks = []
        for rank in range(1, self.size):
            ours, theirs = context.Pipe()
            shard = Shard(rank, self.size)
            process = context.Process(
                target=_follow, args=(theirs, self.options, shard, port, self.reopen, arguments), daemon=True
            )
            process.start()
            theirs.close()
            ranks.append((process, ours))
        try:
            _join_group(self.options, Shard(0, self.size), port)
            return ParallelModel(self._first.load(model, **arguments), ranks)  # type: ignore[arg-type]
        except BaseException:
            _end(ranks)
            raise


@dataclass(frozen=True, eq=False)  # no slots: they take weak references from Python 3.11 on
class ParallelAdapter:
    """A `PlacedAdapter` of which every process has its part; the others know it by its number."""

    number: int
    part: CudaAdapter  # of this process

    @property
    def bytes(self) -> int:
        return self.part.bytes


class ParallelModel:
    """A `LoadedModel`: what this process does, the others are told to do too."""

    asynchronous = True
    state_bytes = 0  # ops with a state cannot be shared out

    def __init__(self, model: CudaModel, ranks: list[tuple[Any, Connection]]) -> None:
        self._model, self._ranks = model, ranks
        self.weight_bytes, self.buffer_bytes = model.weight_bytes, model.buffer_bytes
        self.graph_bytes = model.graph_bytes
        self._pipes = threading.Lock()  # adapters are placed while steps run
        self._numbers = count()
        self._dropped: deque[int] = deque()  # adapters that nobody refers to any more

    def block_bytes(self, group: int) -> int:
        return self._model.block_bytes(group)

    def place_adapter(self, weights: AdapterWeights, *, type: LoraType) -> ParallelAdapter:
        part = self._model.place_adapter(weights, type=type)  # one that is refused must not reach the others
        adapter = ParallelAdapter(next(self._numbers), part)
        self._tell("place_adapter", adapter.number, weights, type)
        weakref.finalize(adapter, self._dropped.append, adapter.number)
        return adapter

    def allocate_kv(self, num_blocks: tuple[int, ...], num_states: int = 0) -> None:
        self._tell("allocate_kv", num_blocks)
        self._model.allocate_kv(num_blocks)

    def stage(self, batch: Batch) -> None:
        adapters = [adapter for adapter in batch.adapters if isinstance(adapter, ParallelAdapter)]
        if len(adapters) < len(batch.adapters):
            raise ValueError("a step's adapters are all of this model")
        # a step that is refused must not reach the others
        self._model.stage(replace(batch, adapters=tuple(adapter.part for adapter in adapters)))
        while self._dropped:
            self._tell("drop_adapter", self._dropped.popleft())
        self._tell("stage", replace(batch, adapters=tuple(adapter.number for adapter in adapters)))

    def launch(self, tokens: Int32Array) -> None:
        check_tokens(tokens, len(tokens), self._model.vocab_size)
        self._tell("launch", tokens)
        self._model.launch(tokens)

    def wait(self, rows: Int32Array | None = None) -> FloatArray:
        return self._model.wait(rows)

    def hidden_states(self) -> FloatArray:
        return self._model.hidden_states()  # every rank has them all

    @property
    def ranker(self) -> CudaModel:
        return self._model  # every rank has all logits

    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None:
        self._model.copy_blocks(group, pairs)
        self._tell("copy_blocks", group, pairs)

    def moved_bytes(self, group: int) -> int:
        return self._model.block_bytes(group) * (len(self._ranks) + 1)

    def read_blocks(self, group: int, blocks: Int32Array) -> npt.NDArray[np.uint8]:
        """Each rank's part of a block, in their order."""
        with self._pipes:
            self._send("read_blocks", group, blocks)
            own = self._model.read_blocks(group, blocks)
            try:
                others = [pipe.recv() for _, pipe in self._ranks]
            except (EOFError, OSError):
                raise EngineError("the process of a GPU has ended while its KV was read; see its messages") from None
        return np.concatenate([own, *others], axis=1)

    def write_blocks(self, group: int, blocks: Int32Array, data: npt.NDArray[np.uint8]) -> None:
        own, *others = np.split(data, len(self._ranks) + 1, axis=1)
        with self._pipes:
            for rank, part in enumerate(others):
                self._send_to(rank, "write_blocks", group, blocks, part)
        self._model.write_blocks(group, blocks, own)

    def _tell(self, method: str, *arguments: object) -> None:
        with self._pipes:
            self._send(method, *arguments)

    def _send(self, method: str, *arguments: object) -> None:
        for rank in range(len(self._ranks)):
            self._send_to(rank, method, *arguments)

    def _send_to(self, rank: int, method: str, *arguments: object) -> None:
        process, pipe = self._ranks[rank]
        if not process.is_alive():
            raise EngineError(f"the process of GPU {rank + 1} has ended with code {process.exitcode}; see its messages")
        pipe.send((method, arguments))

    def close(self) -> None:
        self._model.close()
        if self._ranks:
            _end(self._ranks)
            self._ranks = []
            dist.destroy_process_group()


class FollowingModel:
    """What rank 0 tells another rank's model, where its adapters are numbers."""

    def __init__(self, model: CudaModel) -> None:
        self._model = model
        self._adapters: dict[int, CudaAdapter] = {}
        self.allocate_kv, self.launch, self.close = model.allocate_kv, model.launch, model.close
        self.copy_blocks, self.read_blocks, self.write_blocks = model.copy_blocks, model.read_blocks, model.write_blocks

    def place_adapter(self, number: int, weights: AdapterWeights, type: LoraType) -> None:
        self._adapters[number] = self._model.place_adapter(weights, type=type)

    def drop_adapter(self, number: int) -> None:
        del self._adapters[number]

    def stage(self, batch: Batch) -> None:
        adapters = tuple(self._adapters[number] for number in batch.adapters if isinstance(number, int))
        self._model.stage(replace(batch, adapters=adapters))


def _follow(
    pipe: Connection, options: CudaOptions, shard: Shard, port: int, reopen: Reopen, arguments: dict[str, Any]
) -> None:
    """The life of another rank: load, then do as told until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's to handle
    torch.set_num_threads(1)
    _join_group(options, shard, port)
    model = FollowingModel(CudaBackend(options, shard).load(reopen(), **arguments))
    while True:
        try:
            method, given = pipe.recv()
        except (EOFError, OSError):
            break
        answer = getattr(model, method)(*given)
        if answer is not None:
            pipe.send(answer)
    model.close()
    os._exit(0)  # the group may be half gone: nothing is left to hand over in order


def _join_group(options: CudaOptions, shard: Shard, port: int) -> None:
    if options.device == "cuda":
        torch.cuda.set_device(shard.rank)
    dist.init_process_group(
        "nccl" if options.device == "cuda" else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=shard.rank,
        world_size=shard.size,
    )


def _end(ranks: list[tuple[Any, Connection]]) -> None:
    for _, pipe in ranks:
        pipe.close()
    for process, _ in ranks:
        process.join(10)
        if process.is_alive():
            process.kill()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
