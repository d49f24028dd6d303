"""The methods that make Hugging Face folders, each a function of a `Job`, and what their files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.backends.grouped import BLOCK
from pagoda.errors import ConfigError
from pagoda.formats.nf4 import STATE
from pagoda.formats.packed import GroupedWeight, pack_awq, pack_gptq, pack_int8
from pagoda.formats.safetensors_writer import Place
from pagoda.quantize.algorithms.awq import BITS, AWQOptions, AWQQuantizer
from pagoda.quantize.algorithms.gptq import GPTQOptions, GPTQQuantizer, group_count
from pagoda.quantize.algorithms.int8 import quantize_rows
from pagoda.quantize.algorithms.nf4 import BLOCK_SIZE, NESTED_SIZE, STATE_BYTES, quantize_nf4
from pagoda.quantize.calibration.layers import Store, finite
from pagoda.quantize.folder.write import (
    DTYPE_NAMES,
    Arrays,
    OpenedModel,
    fitting_group_size,
    load_sample,
    open_model,
    quantize_layers,
    write_folder,
)
from pagoda.quantize.job import Job
from pagoda.types import FloatArray

GPTQ_BITS = (2, 3, 4, 8)


def gptq(job: Job) -> Path:
    """GPTQ, as AutoGPTQ, GPTQModel, transformers and vLLM read it."""
    s = job.settings
    if s.bits not in GPTQ_BITS:
        raise ConfigError(f"--bits: gptq has {', '.join(map(str, GPTQ_BITS))} bits, not {s.bits}")
    model = open_model(job.source)
    check_multiples(model, 32, f"gptq packs {s.bits}-bit codes")
    size = fitting_group_size(model, s.group_size, job.say)
    options = GPTQOptions(s.bits, size, s.symmetric, s.act_order, s.damping)
    sample = load_sample(job, model)
    store = quantize_layers(job, model, sample, GPTQQuantizer(options, job.say))
    return write_folder(job, model, GPTQPacking(options), lambda n: pack_gptq(_joined(model, store, n)), sample=sample)


def awq(job: Job) -> Path:
    """AWQ, as AutoAWQ's version "gemm", transformers and vLLM read it."""
    s = job.settings
    if s.bits != BITS:
        raise ConfigError(f"--bits: awq has {BITS} bits, not {s.bits}")
    model = open_model(job.source)
    check_multiples(model, 8, "awq packs eight codes a word, in multiples")
    check_columns(model)
    options = AWQOptions(fitting_group_size(model, s.group_size, job.say))
    sample = load_sample(job, model)
    store = quantize_layers(job, model, sample, AWQQuantizer(options))
    divisors = _by_tensor(model, store.divisors())

    def parts(name: str) -> Arrays:
        w = _joined(model, store, name)
        scales = w.scales / divisors[name][:, None] if name in divisors else w.scales
        return pack_awq(GroupedWeight(w.bits, w.codes, scales, w.zeros, w.groups))

    return write_folder(job, model, AWQPacking(options), parts, divisors=divisors, sample=sample)


def _joined(model: OpenedModel, store: Store, name: str) -> GroupedWeight:
    """A linear's weight, or all that stand in one tensor, one below the other: they read one input."""
    return GroupedWeight.join([store.load(piece.name).weight for piece in model.pieces[name]])


def _by_tensor(model: OpenedModel, divisors: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Divisors by the folder's tensors: where one holds several linears' rows, those of the others are 1."""
    found = dict(divisors)
    for name, pieces in model.pieces.items():
        if len(pieces) > 1 and any(piece.name in divisors for piece in pieces):
            ones = [np.ones(piece.shape[0], np.float32) for piece in pieces]
            each = [found.pop(piece.name, one) for piece, one in zip(pieces, ones, strict=True)]
            found[name] = np.concatenate(each)
    return found


def nf4(job: Job) -> Path:
    """NF4 with double quantization, as bitsandbytes keeps it: QLoRA's base."""
    model = open_model(job.source)
    check_columns(model)

    def parts(name: str) -> Arrays:
        return {f"weight{suffix}": array for suffix, array in quantize_nf4(finite(model.tensor(name)), dtype).items()}

    dtype = DTYPE_NAMES[model.dtype]
    return write_folder(job, model, NF4Packing(), parts)


def int8(job: Job) -> Path:
    """W8A8: a scale a row for weights, activations quantized token by token when they are served."""
    model = open_model(job.source)
    check_columns(model)
    return write_folder(job, model, Int8Packing(), lambda name: pack_int8(quantize_rows(finite(model.tensor(name)))))


def check_multiples(model: OpenedModel, of: int, what: str) -> None:
    for name, shape in model.linears.items():
        if shape[0] % of or shape[1] % of:
            raise ConfigError(f"{what} of {of} rows and columns; {name} is {shape[0]} x {shape[1]}")


def check_columns(model: OpenedModel) -> None:
    """ConfigError for rows that kernels cannot read: they take 32 codes at a time."""
    for name, (_, columns) in model.linears.items():
        if columns % BLOCK:
            raise ConfigError(
                f"{name} has rows of {columns} weights, which kernels that read {BLOCK} at a time cannot serve; "
                "take a GGUF format, such as --to q8_0, which leaves such tensors in floats"
            )


@dataclass(frozen=True, slots=True)
class GPTQPacking:
    options: GPTQOptions

    def places(self, rows: int, columns: int) -> dict[str, Place]:
        bits, groups = self.options.bits, group_count(columns, self.options.group_size)
        return {
            "qweight": Place("I32", (columns * bits // 32, rows)),
            "qzeros": Place("I32", (groups, rows * bits // 32)),
            "scales": Place("F16", (groups, rows)),
            "g_idx": Place("I32", (columns,)),
        }

    def config(self, dtype: str, kept: Sequence[str]) -> dict[str, Any]:
        o = self.options
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": o.bits,
            "group_size": o.group_size,
            "desc_act": o.act_order == "full",
            "static_groups": o.act_order == "static",
            "sym": o.symmetric,
            "damp_percent": o.damping,
            "true_sequential": True,
            "lm_head": False,
            "pack_dtype": "int32",
        }


@dataclass(frozen=True, slots=True)
class AWQPacking:
    options: AWQOptions

    def places(self, rows: int, columns: int) -> dict[str, Place]:
        groups = group_count(columns, self.options.group_size)
        return {
            "qweight": Place("I32", (columns, rows // 8)),
            "qzeros": Place("I32", (groups, rows // 8)),
            "scales": Place("F16", (groups, rows)),
        }

    def config(self, dtype: str, kept: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": BITS,
            "group_size": self.options.group_size,
            "zero_point": True,
            "modules_to_not_convert": None,
        }


@dataclass(frozen=True, slots=True)
class NF4Packing:
    def places(self, rows: int, columns: int) -> dict[str, Place]:
        blocks = -(-rows * columns // BLOCK_SIZE)
        return {
            "weight": Place("U8", (rows * columns // 2, 1)),
            "weight.absmax": Place("U8", (blocks,)),
            "weight.nested_absmax": Place("F32", (-(-blocks // NESTED_SIZE),)),
            "weight.nested_quant_map": Place("F32", (256,)),
            "weight.quant_map": Place("F32", (16,)),
            f"weight.{STATE}nf4": Place("U8", (STATE_BYTES,)),
        }

    def config(self, dtype: str, kept: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": list(kept),
        }


@dataclass(frozen=True, slots=True)
class Int8Packing:
    def places(self, rows: int, columns: int) -> dict[str, Place]:
        return {"weight": Place("I8", (rows, columns)), "weight_scale": Place("F32", (rows, 1))}

    def config(self, dtype: str, kept: Sequence[str]) -> dict[str, Any]:
        numbers = {"num_bits": 8, "type": "int", "symmetric": True}
        weights = {**numbers, "strategy": "channel", "dynamic": False}
        activations = {**numbers, "strategy": "token", "dynamic": True}
        return {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": weights,
                    "input_activations": activations,
                    "output_activations": None,
                    "format": "int-quantized",
                }
            },
            "ignore": list(kept),
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
        }
