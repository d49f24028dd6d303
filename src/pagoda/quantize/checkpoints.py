"""The methods that make Hugging Face folders, each a function of a `Job`, and what their files hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.errors import ConfigError
from pagoda.formats.packed import GroupedWeight, pack_gptq
from pagoda.formats.safetensors_writer import Place
from pagoda.quantize.folder import (
    Arrays,
    Model,
    fitting_group_size,
    load_sample,
    open_model,
    quantize_layers,
    write_folder,
)
from pagoda.quantize.gptq import GPTQOptions, GPTQQuantizer, group_count
from pagoda.quantize.methods import Job

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
    return write_folder(job, model, GPTQPacking(options), store.load, sample=sample)


def check_multiples(model: Model, of: int, what: str) -> None:
    for name, shape in model.linears.items():
        if shape[0] % of or shape[1] % of:
            raise ConfigError(f"{what} of {of} rows and columns; {name} is {shape[0]} x {shape[1]}")


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

    def parts(self, weight: GroupedWeight) -> Arrays:
        return pack_gptq(weight)

    def config(self, dtype: str) -> dict[str, Any]:
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
