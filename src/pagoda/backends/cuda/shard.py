"""One model over several devices: each holds some heads, some of the feed-forward's columns and some of the vocabulary
(Megatron-LM, arXiv 1909.08053).

A recorded forward pass is cut by what reads what, not by names: a linear that attention or the activation reads gives
up rows, one that reads those gives up columns, and its products are summed over the devices. Blocks of quantized
weights stay whole, so any format can be cut that has enough of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist

from pagoda.backends.trace import Node
from pagoda.errors import ConfigError
from pagoda.formats.blocks import BLOCK_TYPES
from pagoda.formats.quantized import QuantizedTensor
from pagoda.types import RawTensor


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of `size` devices this is. With one, nothing is cut and nothing exchanged."""

    rank: int = 0
    size: int = 1

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all devices' x, which is overwritten."""
        dist.all_reduce(x)
        return x

    def gather(self, logits: torch.Tensor, columns: int) -> torch.Tensor:
        """All devices' columns [R, V / size] side by side, without the padding of the last. → [R, columns]"""
        per = self.share_of(columns)
        mine = torch.nn.functional.pad(logits, (0, per - logits.shape[1])).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.cat(parts, dim=1)[:, :columns].contiguous()

    def share_of(self, rows: int) -> int:
        """Rows of a vocabulary that each device has; the last one may have fewer."""
        return -(-rows // self.size)


WHOLE = Shard()


def cut(nodes: list[Node], shard: Shard) -> None:
    """Leave to each node this device's part of its weights and heads. ConfigError: it cannot be cut."""
    for node in nodes if shard.size > 1 else []:
        arguments = node.arguments
        match node.op:
            case "embed":
                arguments["table"] = _vocabulary(node["table"], shard)
            case "logits":
                arguments["weight"] = _vocabulary(node["weight"], shard)
            case "linear":
                _cut_linear(node, shard)
            case "attention":
                spec = node["spec"]
                _check_even(spec.num_heads, "query heads", shard)
                _check_even(spec.num_kv_heads, "KV heads", shard)
                heads, kv_heads = spec.num_heads // shard.size, spec.num_kv_heads // shard.size
                arguments["spec"] = replace(spec, num_heads=heads, num_kv_heads=kv_heads)
                arguments["sinks"] = None if node["sinks"] is None else _rows(node["sinks"], shard)
            case "rope" | "head_norm":
                arguments["num_heads"] //= shard.size
            case "rms_norm" if node["x"].op == "linear" and not _reads_columns(node["x"]):
                raise ConfigError(f"--tensor-parallel {shard.size}: norms over all heads cannot be shared out")
            case "rms_norm" | "layer_norm" | "gated" | "add" | "hidden_states":
                pass  # as whole or as cut as what they read
            case _:
                raise ConfigError(f"--tensor-parallel {shard.size}: {node.op} cannot be shared out")


def _reads_columns(linear: Node) -> bool:
    """What attention or the activation made is cut, and so are the columns that read it; of others the rows are."""
    return linear["x"].op in ("attention", "gated")


def _cut_linear(node: Node, shard: Shard) -> None:
    if _reads_columns(node):
        node.arguments["weight"] = _columns(node["weight"], shard)
        return
    _check_even(node["weight"].shape[0], f"rows of {node['weight'].name!r}", shard)
    node.arguments["weight"] = _rows(node["weight"], shard)
    node.arguments["bias"] = None if node["bias"] is None else _rows(node["bias"], shard)
    node.columns = node["weight"].shape[0]


def _vocabulary(raw: RawTensor, shard: Shard) -> RawTensor:
    per = shard.share_of(raw.shape[0])
    return _slice_rows(raw, shard.rank * per, min((shard.rank + 1) * per, raw.shape[0]))


def _rows(raw: RawTensor, shard: Shard) -> RawTensor:
    per = raw.shape[0] // shard.size
    return _slice_rows(raw, shard.rank * per, (shard.rank + 1) * per)


def _slice_rows(raw: RawTensor, start: int, end: int) -> RawTensor:
    if isinstance(raw, QuantizedTensor):
        return raw.cut(rows=slice(start, end))
    return replace(raw.part(start, end), name=raw.name)


def _columns(raw: RawTensor, shard: Shard) -> RawTensor:
    if isinstance(raw, QuantizedTensor):
        _check_even(raw.shape[1], f"columns of {raw.name!r}", shard)
        per = raw.shape[1] // shard.size
        return raw.cut(columns=slice(shard.rank * per, (shard.rank + 1) * per))
    block = BLOCK_TYPES[raw.type]
    _check_even(raw.shape[1] // block.elements, f"blocks of {raw.type} in a row of {raw.name!r}", shard)
    rows = raw.rows()
    width = rows.shape[1] // shard.size
    part = np.ascontiguousarray(rows[:, shard.rank * width : (shard.rank + 1) * width])
    return replace(raw, shape=(raw.shape[0], raw.shape[1] // shard.size), data=part.reshape(-1))


def _check_even(count: int, what: str, shard: Shard) -> None:
    if count % shard.size:
        raise ConfigError(f"--tensor-parallel {shard.size}: {count} {what} cannot be shared out evenly")
